from dataclasses import replace

import pytest

from em_inf.evaluation.costs import repetition
from em_inf.evaluation.records import DecoderRecord, Verdict
from em_inf.evaluation.report.tables import tables_of
from em_inf.evaluation.summary import points, scores_of, summarize, uses_em_inf
from tests.evaluation.made_up import answer, drawn_run, run_of


def of_rights(**rights: str):
    """A run from strings: 1 for a right answer, 0 for a wrong one, - for none."""
    names = {"em_inf": "em_inf(n_grad_steps=5)", "sc": "self_consistency(n=4)"}
    return run_of(
        [
            answer(names.get(name, name), f"q{place}", mark == "1")
            for name, marks in rights.items()
            for place, mark in enumerate(marks)
            if mark != "-"
        ]
    )


def test_decoder_that_differs_by_chance_is_not_distinguishable() -> None:
    found = summarize(of_rights(greedy="1100110011", em_inf="1010110011"))
    line = found.of("em_inf(n_grad_steps=5)")
    assert line.verdict == "not distinguishable from greedy on this data"
    assert found.headlines[0].startswith("EM-INF does not beat greedy here: ")
    assert "No decoder is distinguishable from greedy on this data." in found.headlines


def test_better_decoder_is_said_to_be_better_by_how_much() -> None:
    found = summarize(of_rights(greedy="0" * 20 + "1" * 20, em_inf="1" * 40))
    line = found.of("em_inf(n_grad_steps=5)")
    assert line.difference is not None
    assert (
        line.verdict == "better by 50.0 [34.9, 65.1] points"
        or line.verdict.startswith("better by 50.0 [")
    )
    assert found.headlines[0].startswith("EM-INF beats greedy here: ")


def test_worse_decoder_has_its_interval_the_right_way_round() -> None:
    found = summarize(of_rights(greedy="1" * 40, em_inf="0" * 20 + "1" * 20))
    line = found.of("em_inf(n_grad_steps=5)")
    assert line.difference is not None
    low, high = line.difference.interval.low, line.difference.interval.high
    assert line.verdict == f"worse by 50.0 [{points(-high)}, {points(-low)}] points"
    assert -high < -low


def test_verdict_goes_by_the_corrected_p() -> None:
    # Six of six: 0.031 alone, 0.094 as the first of three.
    run = of_rights(
        greedy="0" * 6 + "1" * 30, em_inf="1" * 36, b="0" * 6 + "1" * 30,
        c="0" * 6 + "1" * 30,
    )  # fmt: skip
    line = summarize(run).of("em_inf(n_grad_steps=5)")
    assert line.difference is not None
    assert line.difference.p < 0.05 < (line.holm_p or 0)
    assert line.verdict.startswith("not distinguishable")


def test_answers_without_extraction_or_grade_are_not_right_and_counted_apart() -> None:
    run = of_rights(greedy="1111", em_inf="1111")
    answers = list(run.answers)
    answers[5] = replace(answers[5], verdict=Verdict("not_extracted"))
    answers[6] = replace(answers[6], verdict=Verdict("not_graded", "4", "timed out"))
    found = summarize(replace(run, answers=tuple(answers)))
    line = found.of("em_inf(n_grad_steps=5)")
    assert line.accuracy is not None
    assert line.accuracy.value == 0.5
    assert line.grades == {"right": 2, "wrong": 0, "not_extracted": 1, "not_graded": 1}
    assert any("1 held nothing" in sentence for sentence in found.headlines)


def test_unanswered_questions_are_stated_and_left_out_of_pairs() -> None:
    found = summarize(of_rights(greedy="1111", em_inf="11--"))
    line = found.of("em_inf(n_grad_steps=5)")
    assert line.difference is not None
    assert (line.unanswered, line.difference.questions) == (2, 2)
    assert any(sentence.startswith("Unfinished: 2 of 8") for sentence in found.headlines)


def test_decoder_without_any_answer_is_not_compared() -> None:
    run = of_rights(greedy="11")
    silent = DecoderRecord("silent", "greedy", {})
    found = summarize(replace(run, decoders=(*run.decoders, silent)))
    assert found.of("silent").verdict.startswith("not compared")
    assert found.of("silent").accuracy is None


def test_unknown_baseline_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'nobody' is no decoder.*'greedy'"):
        summarize(replace(of_rights(greedy="1"), baseline="nobody"))


def test_costs_add_up_an_answers_calls() -> None:
    run = run_of([answer("greedy", f"q{place}", True, calls=4) for place in range(5)])
    costs = summarize(run).of("greedy").costs
    assert (costs.tokens, costs.calls, costs.seconds, costs.length) == (80, 4, 2.0, 20)
    assert (costs.touched, costs.grad_steps) == (0.25, 0.75)
    assert (costs.wall_seconds, costs.tokens_per_second) == (2.0, 40.0)
    assert costs.answers_per_minute == 30.0


def test_mean_entropy_weighs_tokens_and_leaves_out_what_was_not_measured() -> None:
    answers = [
        answer("greedy", "q1", True, tokens=30, entropy_before=0.1),
        answer(
            "greedy", "q2", True, tokens=10, entropy_before=0.5, finish_reason="length"
        ),
        answer("greedy", "q3", True, tokens=99, entropy_before=None, tries=3),
    ]  # fmt: skip
    costs = summarize(run_of(answers)).of("greedy").costs
    assert costs.entropy_before == pytest.approx(0.2)
    assert costs.cut == pytest.approx(1 / 3)
    assert costs.retries == 2


def test_repetition_is_the_share_of_four_grams_seen_before() -> None:
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("a b c d e") == 0
    assert repetition("too short") is None


def test_matched_temperature_is_a_control() -> None:
    names = ("greedy", "em_inf(n_grad_steps=5)", "matched(of=em_inf(n_grad_steps=5))")
    run = run_of(
        [answer(name, f"q{place}", True) for name in names for place in range(9)]
    )
    found = summarize(run)
    (control,) = found.controls
    assert (control.decoder, control.matched) == names[1:]
    assert any("plain temperature of the same entropy" in of for of in found.headlines)
    assert any(table.title.startswith("Beside plain") for table in tables_of(found))


def test_papers_figure_stands_beside_ours() -> None:
    run = of_rights(greedy="1100", em_inf="1110")
    base, other = run.decoders
    paper = replace(other, paper=(80.2, "Table 3, EM-INF, MATH-500"))
    table = tables_of(summarize(replace(run, decoders=(base, paper))))[-1]
    assert table.title == "Beside the paper"
    assert table.rows[0][2:] == ("80.2", "Table 3, EM-INF, MATH-500")


@pytest.mark.parametrize(
    ("sent", "uses"),
    [
        (None, False), (True, True), ("strong", True), ("adaptive", False), ({}, True),
        ({"n_grad_steps": 0}, False), ({"enabled": False}, False),
        ({"method": "adaptive_temperature"}, False), ({"preset": "adaptive"}, False),
    ],
)  # fmt: skip
def test_em_inf_is_recognised_by_its_request(sent, uses: bool) -> None:
    assert uses_em_inf(DecoderRecord("x", "x", {"em_inf": sent})) is uses


def test_scores_are_in_order_of_the_sample() -> None:
    given = [
        answer("greedy", "q1", right, sample) for sample, right in ((1, True), (0, False))
    ]
    assert scores_of(given) == {"q1": [0.0, 1.0]}


def test_every_table_has_a_cell_for_each_column() -> None:
    for table in tables_of(summarize(drawn_run(questions=30, samples=2))):
        assert {len(row) for row in table.rows} == {len(table.columns)}
