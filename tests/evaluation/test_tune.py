"""`em-inf tune` against the real server, and what it refuses before it asks anything."""

import json
from pathlib import Path

import pytest

from em_inf.evaluation.records import run_from_json
from em_inf.server.operator_settings import ServerSettings, load_presets
from tests.clients.asking import metric
from tests.clients.conftest import Run
from tests.e2e.serving import Server

NOWHERE = "http://127.0.0.1:9"


def asked(server: Server) -> float:
    name = "vllm:request_success_total"
    return sum(metric(server, name, finished_reason=end) for end in ("stop", "length"))


def test_search_ends_in_a_verdict_on_other_questions_and_a_preset(
    run: Run, server: Server, tmp_path: Path
) -> None:
    command = (
        "tune", "arithmetic", "--trials", "2", "--limit", "8", "--name", "ours",
        "--output", str(tmp_path), "--json",
    )  # fmt: skip
    code, out, err = run(*command)
    assert code == 0, err
    told = json.loads(out)
    assert [of["decoder"] for of in told["trials"][:4]] == [
        "greedy", "temperature(1)", "adaptive_temperature(temperature=1)",
        "em_inf(temperature=1)",
    ]  # fmt: skip
    assert len(told["trials"]) == 6
    assert "not distinguishable from greedy" in told["verdict"] or "by" in told["verdict"]

    presets = load_presets((tmp_path / "presets.json").read_text())
    settings, name = ServerSettings.build(presets=presets).resolve("ours")
    assert settings is not None
    assert name == "ours"

    done = run_from_json(json.loads((tmp_path / "report/report.json").read_text())["run"])
    assert {record.name for record in done.decoders} >= {
        "greedy", "temperature(1)", told["winner"]["decoder"],
    }  # fmt: skip
    assert len(done.answers) == 8 * len(done.decoders)
    for answer in done.answers:
        assert answer.verdict.grade != "not_graded"
    assert all(
        token.entropy_before is not None for of in done.traces for token in of.tokens
    )
    shown = {(trace.decoder, trace.problem) for trace in done.traces}
    assert len(shown) == len(done.traces)

    before = asked(server)
    code, again, err = run(*command)
    assert code == 0, err
    # One token for each decoder, to see that the server takes it; no answer twice.
    assert asked(server) - before <= len(done.decoders)
    assert json.loads(again)["winner"] == told["winner"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--name", "paper"], "is built in"),
        (["--temperature", "0.9", "0.2"], "--temperature: 0.9 0.2 is not 0 < LOW"),
        (["--share", "1"], "no number between 0 and 1"),
        (["--trials", "0"], "no integer of at least 1"),
        (["--grader", "nobody"], "nobody"),
    ],
)
def test_wrong_option_is_named_before_anything_is_asked(
    run: Run, tmp_path: Path, given: list[str], says: str
) -> None:
    folder = tmp_path / "out"
    code, _, err = run("tune", "arithmetic", "--output", str(folder), *given, url=NOWHERE)
    assert code == 2
    assert says in err


def test_data_with_too_few_questions_to_split_is_refused(
    run: Run, tmp_path: Path
) -> None:
    data = tmp_path / "one.jsonl"
    data.write_text('{"prompt": "1+1?", "answer": "2"}\n')
    code, _, err = run("tune", str(data), "--output", str(tmp_path / "o"), url=NOWHERE)
    assert code == 2
    assert "there must be some of both" in err


def test_nobody_at_the_address_is_told_as_such(run: Run, tmp_path: Path) -> None:
    code, _, err = run(
        "tune", "arithmetic", "--limit", "2", "--output", str(tmp_path / "o"),
        "--retries", "1", url=NOWHERE,
    )  # fmt: skip
    assert code == 3
    assert NOWHERE in err
