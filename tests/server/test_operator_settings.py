"""Every setting: what is taken, and what is refused in which words."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from em_inf.logits_processors.settings import (
    BUILT_IN_PRESETS,
    METHOD_FIELDS,
    Settings,
    SettingsError,
    settings_of_method,
)
from em_inf.server.operator_settings import (
    SERVER_SETTINGS_VARIABLE,
    ServerSettings,
    load_presets,
    server_settings,
)

NAN, INF = float("nan"), float("inf")
ADAPTIVE = {"method": "adaptive_temperature"}
SERVER = ServerSettings.build()


def resolved(value: Any, server: ServerSettings = SERVER) -> Settings:
    """Settings of a wire value that turns EM-INF on."""
    settings, _ = server.resolve(value)
    assert settings is not None
    return settings


def refusal(value: Any, server: ServerSettings = SERVER) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        server.resolve(value)
    return caught.value


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Lets a test say what the command line wrote for this process."""
    monkeypatch.delenv(SERVER_SETTINGS_VARIABLE, raising=False)
    server_settings.cache_clear()
    yield monkeypatch
    server_settings.cache_clear()


# The forms of the wire value ----------------------------------------------------------


def test_absent_is_off_unless_the_operator_turns_it_on() -> None:
    assert SERVER.resolve(None) == (None, "default")


def test_true_takes_the_default_settings() -> None:
    assert SERVER.resolve(True) == (Settings(), "default")


def test_false_is_off() -> None:
    assert SERVER.resolve(False) == (None, "default")


def test_empty_object_takes_the_default_settings() -> None:
    assert SERVER.resolve({}) == (Settings(), "custom")


def test_object_takes_the_rest_from_the_defaults() -> None:
    assert resolved({"n_grad_steps": 7}) == Settings(n_grad_steps=7)


def test_object_is_labelled_custom() -> None:
    assert SERVER.resolve({"n_grad_steps": 7})[1] == "custom"


def test_object_with_enabled_false_is_off() -> None:
    assert SERVER.resolve({"enabled": False, "n_grad_steps": 7})[0] is None


def test_object_with_enabled_false_is_checked_all_the_same() -> None:
    assert refusal({"enabled": False, "n_grad_steps": -1}).field == "em_inf.n_grad_steps"


@pytest.mark.parametrize("enabled", [True, None])
def test_object_with_enabled_true_or_null_is_on(enabled: bool | None) -> None:
    assert resolved({"enabled": enabled}) == Settings()


@pytest.mark.parametrize("name", ["preset", *Settings.model_fields])
def test_null_field_is_as_good_as_absent(name: str) -> None:
    assert resolved({name: None}) == Settings()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1, "1"),
        (0, "0"),
        (0.3, "0.3"),
        (NAN, "nan"),
        ([], "an array of 0 items"),
        ([{"n_grad_steps": 5}], "an array of 1 items"),
        pytest.param(10**5000, "an integer of 16610 bits", id="huge"),
    ],
)
def test_value_of_another_form_is_refused(value: Any, shown: str) -> None:
    error = refusal(value)
    assert error.field == "em_inf"
    assert error.reason == (
        f"{shown} is not allowed; it must be true, false, null, the name of a preset or "
        "an object of settings"
    )


# Fields -------------------------------------------------------------------------------

IN_RANGE = [
    ("method", "gradient"),
    ("method", "adaptive_temperature"),
    ("n_grad_steps", 0),
    ("n_grad_steps", 64),
    ("learning_rate", 1e-6),
    ("learning_rate", 1),
    ("learning_rate", 1.0),
    ("threshold", 0),
    ("threshold", 0.0),
    ("threshold", 1e308),
    ("kl_weight", 0),
    ("kl_weight", 100),
    ("report", "none"),
    ("report", "summary"),
    ("report", "trace"),
]


@pytest.mark.parametrize(("name", "value"), IN_RANGE)
def test_value_at_the_edge_of_its_range_is_taken(name: str, value: Any) -> None:
    assert getattr(resolved({name: value}), name) == value


@pytest.mark.parametrize("value", [1e-6, 0.5, 1, 1.0])
def test_target_ratio_at_the_edge_of_its_range_is_taken(value: float) -> None:
    assert resolved({**ADAPTIVE, "target_ratio": value}).target_ratio == value


METHODS = "it must be one of 'gradient', 'adaptive_temperature'"
STEPS = "it must be an integer of at least 0 and at most 64"
RATE = "it must be a finite number of at least 1e-06 and at most 1"
THRESHOLD = "it must be a finite number of at least 0"
WEIGHT = "it must be a finite number of at least 0 and at most 100"
RATIO = "it must be a finite number of at least 1e-06 and at most 1"
REPORTS = "it must be one of 'none', 'summary', 'trace'"

NOT_A_NUMBER: list[tuple[Any, str]] = [
    ("5", "'5'"),
    ("", "''"),
    (True, "true"),
    (False, "false"),
    ([1], "an array of 1 items"),
    ({"a": 1}, "an object of 1 items"),
    (NAN, "nan"),
    (INF, "inf"),
    (-INF, "-inf"),
    (10**400, "an integer of 1329 bits"),
    (10**5000, "an integer of 16610 bits"),
    (-(10**5000), "an integer of 16610 bits"),
]
NOT_A_WORD: list[tuple[Any, str]] = [
    ("Gradient", "'Gradient'"),
    ("", "''"),
    ("none ", "'none '"),
    (0, "0"),
    (True, "true"),
    (["none"], "an array of 1 items"),
    ({}, "an object of 0 items"),
    ("x" * 100_000, "'" + "x" * 80 + "' ..."),
]
REFUSED: list[tuple[str, Any, str, str]] = [
    *(("method", value, shown, METHODS) for value, shown in NOT_A_WORD),
    *(("report", value, shown, REPORTS) for value, shown in NOT_A_WORD),
    *(("n_grad_steps", value, shown, STEPS) for value, shown in NOT_A_NUMBER),
    *(("learning_rate", value, shown, RATE) for value, shown in NOT_A_NUMBER),
    *(("threshold", value, shown, THRESHOLD) for value, shown in NOT_A_NUMBER),
    *(("kl_weight", value, shown, WEIGHT) for value, shown in NOT_A_NUMBER),
    *(("target_ratio", value, shown, RATIO) for value, shown in NOT_A_NUMBER),
    ("n_grad_steps", -1, "-1", STEPS),
    ("n_grad_steps", 65, "65", STEPS),
    ("n_grad_steps", 5.0, "5.0", STEPS),
    ("n_grad_steps", 2**63, str(2**63), STEPS),
    ("learning_rate", 0, "0", RATE),
    ("learning_rate", -0.1, "-0.1", RATE),
    ("learning_rate", 1e-320, "1e-320", RATE),
    ("learning_rate", 9.9e-7, "9.9e-07", RATE),
    ("learning_rate", 1.1, "1.1", RATE),
    ("threshold", -1e-9, "-1e-09", THRESHOLD),
    ("kl_weight", -1, "-1", WEIGHT),
    ("kl_weight", 100.5, "100.5", WEIGHT),
    ("target_ratio", 0.0, "0.0", RATIO),
    ("target_ratio", 1e-46, "1e-46", RATIO),
    ("target_ratio", 1.01, "1.01", RATIO),
]


@pytest.mark.parametrize(
    ("name", "value", "shown", "allowed"),
    REFUSED,
    ids=[f"{name}-{shown[:30]}" for name, _, shown, _ in REFUSED],
)
def test_refusal_names_the_field_the_value_and_what_is_allowed(
    name: str, value: Any, shown: str, allowed: str
) -> None:
    error = refusal({name: value})
    assert error.field == f"em_inf.{name}"
    assert error.reason == f"{shown} is not allowed; {allowed}"
    assert str(error) == f"{error.field}: {error.reason}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1, "1"), ("true", "'true'"), ([], "an array of 0 items")],
)
def test_enabled_of_another_form_is_refused(value: Any, shown: str) -> None:
    error = refusal({"enabled": value})
    assert error.field == "em_inf.enabled"
    assert error.reason == f"{shown} is not allowed; true or false"


@pytest.mark.parametrize("name", ["lr", "N_GRAD_STEPS", "n_grad_steps ", "", "key"])
def test_unknown_field_is_refused_with_the_known_ones(name: str) -> None:
    error = refusal({name: 1})
    assert error.field == f"em_inf.{name}"
    assert error.reason == (
        "is unknown; allowed are enabled, preset, method, n_grad_steps, learning_rate, "
        "threshold, kl_weight, target_ratio, report"
    )


def test_unknown_field_with_null_is_refused_all_the_same() -> None:
    assert refusal({"lr": None}).field == "em_inf.lr"


def test_huge_field_name_is_cut_in_the_message() -> None:
    error = refusal({"x" * 100_000: 1})
    assert error.field == "em_inf." + "x" * 77 + "..."


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("adaptive_temperature", "n_grad_steps", 5),
        ("adaptive_temperature", "learning_rate", 0.1),
        ("adaptive_temperature", "kl_weight", 0.001),
        ("gradient", "target_ratio", 0.5),
    ],
)
def test_field_of_the_other_method_is_refused_even_at_its_default(
    method: str, name: str, value: float
) -> None:
    error = refusal({"method": method, name: value})
    other = next(m for m in METHOD_FIELDS if m != method)
    assert error.field == f"em_inf.{name}"
    assert error.reason == (
        f"{value} is not allowed, since {name} belongs to the method '{other}' and this "
        f"request's method is '{method}'"
    )


@pytest.mark.parametrize("method", METHOD_FIELDS)
def test_threshold_belongs_to_both_methods(method: str) -> None:
    assert resolved({"method": method, "threshold": 1.5}).threshold == 1.5


def test_null_field_of_the_other_method_is_as_good_as_absent() -> None:
    assert resolved({**ADAPTIVE, "n_grad_steps": None}).method == "adaptive_temperature"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().n_grad_steps = 3  # type: ignore[misc]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=200)
    | st.sampled_from(sorted(BUILT_IN_PRESETS)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*Settings.model_fields, "enabled", "preset"]) | st.text(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_json_value_is_resolved_or_refused_in_a_short_message(value: Any) -> None:
    message = ""
    try:
        SERVER.resolve(value)
    except SettingsError as error:
        message = str(error)
    assert len(message) < 1000


# Presets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper", Settings(n_grad_steps=3, threshold=0.3, kl_weight=0.05)),
        ("balanced", Settings(n_grad_steps=5)),
        ("strong", Settings(n_grad_steps=15)),
        ("adaptive", Settings(method="adaptive_temperature")),
    ],
)
def test_built_in_preset_resolves_to_its_settings(name: str, expected: Settings) -> None:
    assert SERVER.resolve(name) == (expected, name)


def test_every_built_in_preset_is_offered() -> None:
    assert list(SERVER.presets) == list(BUILT_IN_PRESETS)


def test_preset_in_an_object_is_the_base_of_the_other_fields() -> None:
    assert resolved({"preset": "paper", "n_grad_steps": 9}) == Settings(
        n_grad_steps=9, threshold=0.3, kl_weight=0.05
    )


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ({"preset": "paper"}, "paper"),
        ({"preset": "paper", "report": "trace"}, "paper"),
        ({"preset": "paper", "enabled": True}, "paper"),
        ({"preset": "paper", "threshold": 0.4}, "custom"),
    ],
)
def test_label_is_the_preset_unless_a_setting_is_laid_over_it(
    value: Any, label: str
) -> None:
    assert SERVER.resolve(value)[1] == label


def test_preset_of_one_method_can_be_turned_to_the_other() -> None:
    settings = resolved({"preset": "paper", **ADAPTIVE, "target_ratio": 0.25})
    assert (settings.method, settings.target_ratio) == ("adaptive_temperature", 0.25)


def test_field_of_the_other_method_than_the_presets_is_refused() -> None:
    error = refusal({"preset": "adaptive", "n_grad_steps": 3})
    assert error.field == "em_inf.n_grad_steps"


@pytest.mark.parametrize(
    ("value", "field"),
    [("Paper", "em_inf"), ("", "em_inf"), ({"preset": "x"}, "em_inf.preset")],
)
def test_unknown_preset_is_refused_with_the_known_ones(value: Any, field: str) -> None:
    error = refusal(value)
    assert error.field == field
    assert error.reason.endswith(
        "is no preset; it must be one of "
        "'paper', 'balanced', 'strong', 'adaptive', 'measure'"
    )


@pytest.mark.parametrize(
    "value", ["x" * 100_000, {"preset": "x" * 100_000}], ids=["name", "object"]
)
def test_huge_preset_name_is_cut_in_the_message(value: Any) -> None:
    assert refusal(value).reason.startswith("'" + "x" * 80 + "' ... is no preset")


@pytest.mark.parametrize("value", [1, True, ["paper"], {}])
def test_preset_that_is_not_a_string_is_refused(value: Any) -> None:
    assert refusal({"preset": value}).field == "em_inf.preset"


# What the operator decides ------------------------------------------------------------


def test_operators_preset_is_offered_beside_the_built_in_ones() -> None:
    server = ServerSettings.build(presets={"mine.v-2_0": {"threshold": 0.7}})
    assert server.resolve("mine.v-2_0") == (Settings(threshold=0.7), "mine.v-2_0")
    assert server.resolve("paper")[1] == "paper"


@pytest.mark.parametrize(
    "name", ["", "Mine", "-mine", "my preset", "on", "off", "ä", "x" * 65, "x\n"]
)
def test_operators_preset_with_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^preset .*a name is 1 to 64"):
        ServerSettings.build(presets={name: {}})


@pytest.mark.parametrize("name", BUILT_IN_PRESETS)
def test_built_in_preset_cannot_be_changed(name: str) -> None:
    with pytest.raises(SettingsError, match=f"preset '{name}': is built in"):
        ServerSettings.build(presets={name: {"n_grad_steps": 1}})


@pytest.mark.parametrize("fields", [None, True, "paper", 3, []])
def test_operators_preset_that_is_no_object_is_refused(fields: Any) -> None:
    with pytest.raises(SettingsError, match=r"preset 'mine': .* is not an object"):
        ServerSettings.build(presets={"mine": fields})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n_grad_steps": 65}, "n_grad_steps"),
        ({"threshold": "high"}, "threshold"),
        ({"target_ratio": 0.5}, "target_ratio"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_operators_preset_is_checked_as_a_request_is(
    fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        ServerSettings.build(presets={"mine": fields})
    assert caught.value.field == f"preset 'mine'.{field}"


@pytest.mark.parametrize(
    ("default", "settings", "label"),
    [
        ("on", Settings(), "default"),
        (" on ", Settings(), "default"),
        ("paper", Settings(n_grad_steps=3, kl_weight=0.05), "paper"),
        ("mine", Settings(threshold=0.7), "mine"),
        ('{"n_grad_steps": 9}', Settings(n_grad_steps=9), "default"),
        ('{"preset": "strong"}', Settings(n_grad_steps=15), "strong"),
        (
            '{"preset": "strong", "threshold": 1}',
            Settings(n_grad_steps=15, threshold=1.0),
            "default",
        ),
    ],
)
def test_absent_takes_what_the_operator_turned_on(
    default: str, settings: Settings, label: str
) -> None:
    server = ServerSettings.build(default=default, presets={"mine": {"threshold": 0.7}})
    assert server.resolve(None) == (settings, label)


@pytest.mark.parametrize("default", ["off", " off ", '{"enabled": false}'])
def test_absent_is_off_where_the_operator_says_so(default: str) -> None:
    assert ServerSettings.build(default=default).resolve(None)[0] is None


def test_true_takes_the_operators_default() -> None:
    server = ServerSettings.build(default="paper")
    assert server.resolve(True) == (server.presets["paper"], "paper")


def test_object_takes_the_rest_from_the_operators_default() -> None:
    server = ServerSettings.build(default='{"kl_weight": 0.5}')
    assert resolved({"n_grad_steps": 9}, server) == Settings(
        n_grad_steps=9, kl_weight=0.5
    )


def test_presets_do_not_take_from_the_operators_default() -> None:
    server = ServerSettings.build(default='{"kl_weight": 0.5}')
    assert resolved("balanced", server) == Settings()


@pytest.mark.parametrize(
    ("default", "field"),
    [
        ("On", "--em-inf-default"),
        ("", "--em-inf-default"),
        ("nobody", "--em-inf-default"),
        ("[]", "--em-inf-default"),
        ("{", "--em-inf-default"),
        ('{"n_grad_steps": 5.5}', "--em-inf-default.n_grad_steps"),
        ('{"threshold": NaN}', "--em-inf-default.threshold"),
        ('{"preset": "nobody"}', "--em-inf-default.preset"),
    ],
)
def test_wrong_default_of_the_operator_is_refused_by_its_flag(
    default: str, field: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        ServerSettings.build(default=default)
    assert caught.value.field == field


@pytest.mark.parametrize("limit", [5, 1000])
def test_step_limit_at_the_edge_of_its_range_is_taken(limit: int) -> None:
    server = ServerSettings.build(max_grad_steps=limit)
    assert resolved({"n_grad_steps": limit}, server).n_grad_steps == limit


@pytest.mark.parametrize("limit", [-1, 0, 4, 1001])
def test_step_limit_out_of_range_is_refused(limit: int) -> None:
    with pytest.raises(SettingsError, match="--em-inf-max-grad-steps"):
        ServerSettings.build(max_grad_steps=limit)


def test_step_limit_of_the_operator_stands_in_the_refusal() -> None:
    error = refusal({"n_grad_steps": 11}, ServerSettings.build(max_grad_steps=10))
    assert error.reason == (
        "11 is not allowed; it must be an integer of at least 0 and at most 10"
    )


def test_built_in_preset_beyond_the_step_limit_is_not_offered() -> None:
    server = ServerSettings.build(max_grad_steps=10)
    assert list(server.presets) == ["paper", "balanced", "adaptive", "measure"]


def test_server_settings_survive_the_way_through_the_environment() -> None:
    server = ServerSettings.build(
        default='{"preset": "mine", "learning_rate": 1e-5, "report": "trace"}',
        presets={"mine": {"threshold": 1 / 3}, "other": {**ADAPTIVE, "target_ratio": 1}},
        max_grad_steps=100,
    )
    assert ServerSettings.model_validate_json(server.model_dump_json()) == server


def test_process_reads_its_server_settings_from_the_environment(
    environment: pytest.MonkeyPatch,
) -> None:
    server = ServerSettings.build(default="strong", max_grad_steps=20)
    environment.setenv(SERVER_SETTINGS_VARIABLE, server.model_dump_json())
    assert server_settings() == server


def test_process_without_server_settings_takes_the_defaults(
    environment: pytest.MonkeyPatch,
) -> None:
    assert server_settings() == ServerSettings.build()


def test_file_of_presets_is_read_as_json() -> None:
    assert load_presets('{"mine": {"threshold": 1}}') == {"mine": {"threshold": 1}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "not JSON"), ("{'a': 1}", "not JSON"), ("[]", "one JSON object")],
)
def test_file_of_presets_that_is_no_json_object_is_refused(
    text: str, reason: str
) -> None:
    with pytest.raises(SettingsError, match=f"--em-inf-presets: .*{reason}"):
        load_presets(text)


# What the server says of itself -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("n_grad_steps", {"minimum": 0, "maximum": 64}),
        ("learning_rate", {"minimum": 1e-6, "maximum": 1}),
        ("threshold", {"minimum": 0}),
        ("kl_weight", {"minimum": 0, "maximum": 100}),
        ("target_ratio", {"minimum": 1e-6, "maximum": 1}),
        ("method", {"enum": ["gradient", "adaptive_temperature"]}),
        ("report", {"enum": ["none", "summary", "trace"]}),
    ],
)
def test_wire_schema_shows_the_range_of_each_setting(
    name: str, bounds: dict[str, Any]
) -> None:
    shown = SERVER.wire_schema()["anyOf"][-1]["properties"][name]
    keywords = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum")
    assert {k: v for k, v in shown.items() if k in keywords} == bounds


def test_wire_schema_describes_each_field() -> None:
    properties = SERVER.wire_schema()["anyOf"][-1]["properties"]
    assert set(properties) == {"enabled", "preset", *Settings.model_fields}
    assert all(schema["description"] for schema in properties.values())


def test_wire_schema_admits_no_other_field() -> None:
    assert SERVER.wire_schema()["anyOf"][-1]["additionalProperties"] is False


def test_wire_schema_offers_every_form_and_preset() -> None:
    null, boolean, name, fields = SERVER.wire_schema()["anyOf"]
    assert [null["type"], boolean["type"]] == ["null", "boolean"]
    assert name["enum"] == list(SERVER.presets)
    assert fields["properties"]["preset"]["enum"] == list(SERVER.presets)


def test_wire_schema_shows_the_operators_step_limit_and_presets() -> None:
    server = ServerSettings.build(presets={"mine": {}}, max_grad_steps=8)
    schema = server.wire_schema()
    assert schema["anyOf"][-1]["properties"]["n_grad_steps"]["maximum"] == 8
    assert schema["anyOf"][2]["enum"] == [
        "paper",
        "balanced",
        "adaptive",
        "measure",
        "mine",
    ]


def test_allowed_values_show_the_operators_defaults() -> None:
    allowed = ServerSettings.build(default='{"threshold": 0.75}').allowed_values()
    assert allowed["threshold"]["default"] == 0.75
    assert allowed["kl_weight"]["default"] == 0.001


def test_schemas_are_json() -> None:
    schema = SERVER.wire_schema()
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (
            Settings(n_grad_steps=3, report="trace"),
            {
                "method": "gradient",
                "n_grad_steps": 3,
                "learning_rate": 0.1,
                "threshold": 0.3,
                "kl_weight": 0.001,
            },
        ),
        (
            Settings(method="adaptive_temperature"),
            {
                "method": "adaptive_temperature",
                "target_ratio": 0.5,
                "threshold": 0.3,
            },
        ),
    ],
)
def test_response_shows_the_settings_that_the_method_reads(
    settings: Settings, shown: dict[str, Any]
) -> None:
    assert settings_of_method(settings) == shown
