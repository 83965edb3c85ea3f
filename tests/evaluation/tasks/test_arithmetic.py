import json

import pytest

from em_inf.evaluation import tasks
from em_inf.evaluation.graders import grader
from em_inf.server.demo_model import export
from em_inf.server.demo_model.problems import extract_answer


def test_bundled_problems_are_those_that_the_model_card_measured() -> None:
    written = [json.loads(line) for line in export.DATA.read_text().splitlines()]
    assert written == list(export.rows())


def test_thousand_problems_are_held_out_and_five_hundred_more_are_for_tuning() -> None:
    assert len(tasks.load("arithmetic").problems) == 1000
    assert len(tasks.load("arithmetic", split="tune").problems) == 500


def test_tuning_split_shares_no_chain_of_calculations_with_the_held_out_one() -> None:
    chains: dict[str, set[str]] = {"held_out": set(), "tune": set()}
    for line in export.DATA.read_text().splitlines():
        row = json.loads(line)
        chains[row["split"]].add(row["arithmetic"])
    assert not chains["held_out"] & chains["tune"]


def test_every_id_is_unique() -> None:
    both = [
        *tasks.load("arithmetic").problems,
        *tasks.load("arithmetic", split="tune").problems,
    ]
    assert len({problem.id for problem in both}) == 1500


def test_limit_takes_the_first_problems() -> None:
    assert (
        tasks.load("arithmetic", limit=7).problems
        == tasks.load("arithmetic").problems[:7]
    )


@pytest.mark.parametrize(
    "text",
    [
        "Tom starts with 3. 3 + 4 = 7. The answer is 7.",
        "The answer is 8. Then 1 + 1 = 2. The answer is 9.",
        "Tom starts with 3. 3 + 4 = 7. The ans",
        "",
    ],
)
def test_its_grader_reads_what_the_model_card_read(text: str) -> None:
    task = tasks.load("arithmetic", limit=1)
    found = grader(task.grader).extract(text, task.problems[0])
    assert (None if found is None else int(found)) == extract_answer(text)


def test_unknown_split_limit_and_path_are_refused_by_name() -> None:
    with pytest.raises(tasks.TaskError, match="split: 'train' is unknown"):
        tasks.load("arithmetic", split="train")
    with pytest.raises(tasks.TaskError, match="limit: 0"):
        tasks.load("arithmetic", limit=0)
    with pytest.raises(tasks.TaskError, match="arithmetic is bundled"):
        tasks.load("arithmetic", path=export.DATA)


def test_unknown_task_is_refused_with_the_names() -> None:
    with pytest.raises(
        tasks.TaskError, match=r"'gsm9k' is unknown; allowed: arithmetic, "
    ):
        tasks.load("gsm9k")
