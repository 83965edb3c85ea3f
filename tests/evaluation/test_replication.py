import pytest

from em_inf.evaluation import tasks
from em_inf.evaluation.replication import COLUMNS, row, rows

# The table of the paper, as /shared's specification copies it, section 4: a dash is "-".
TABLE = """
| Qwen2.5-Math-7B-Instruct, base | 79.2 | 48.2 | 8.9 | 43.4 | 41.3 | 44.2 | 0.6 | 18.6 |
| greedy | 79.0 | 53.0 | 11.1 | 42.6 | 39.9 | 45.1 | 1.1 | 18.8 |
| iterative refinement N=3 | 79.2 | 48.2 | 8.9 | 43.4 | 41.3 | 44.2 | 1.7 | 16.4 |
| self-consistency N=4 | 78.8 | 53.0 | 11.1 | 43.4 | 40.7 | 45.4 | - | 19.6 |
| adaptive temperature | 80.8 | 55.4 | 10.0 | 41.5 | 38.7 | 45.3 | 2.2 | 23.7 |
| EM-INF | 80.2 | 54.2 | 14.4 | 42.3 | 40.8 | 46.4 | 0.6 | 23.1 |
| Qwen2.5-7B-Instruct, base | 74.0 | 41.0 | 8.9 | 41.2 | 37.5 | 40.5 | 47.2 | 23.4 |
| greedy | 74.2 | 44.6 | 7.8 | 40.4 | 37.2 | 40.8 | 46.1 | 23.7 |
| iterative refinement N=3 | 73.8 | 37.3 | 10.0 | 41.5 | 37.8 | 40.1 | 50.0 | 21.5 |
| self-consistency N=4 | 73.4 | 43.4 | 10.0 | 33.5 | 41.3 | 40.3 | - | 23.4 |
| adaptive temperature | 74.4 | 50.6 | 10.0 | 41.9 | 39.7 | 43.3 | 49.4 | 25.8 |
| EM-INF | 73.8 | 45.8 | 11.1 | 41.2 | 38.2 | 42.0 | 51.7 | 26.9 |
| Llama-3.1-8B-Instruct, base | 40.6 | 18.1 | 1.1 | 22.4 | 15.7 | 19.6 | 10.6 | 17.5 |
| greedy | 40.6 | 16.9 | 3.3 | 21.0 | 16.0 | 19.6 | 12.8 | 16.1 |
| iterative refinement N=3 | 41.0 | 19.3 | 1.1 | 22.4 | 15.7 | 19.9 | 11.7 | 18.3 |
| self-consistency N=4 | 41.2 | 20.5 | 4.4 | 20.2 | 19.4 | 21.1 | - | 20.2 |
| adaptive temperature | 43.6 | 25.3 | 5.5 | 24.3 | 16.6 | 23.1 | 17.2 | 19.9 |
| EM-INF | 43.0 | 22.9 | 3.3 | 22.8 | 16.4 | 21.7 | 14.4 | 20.4 |
"""
METHODS = {
    "base": "base",
    "greedy": "greedy",
    "iterative refinement N=3": "refinement",
    "self-consistency N=4": "self_consistency",
    "adaptive temperature": "adaptive_temperature",
    "EM-INF": "em_inf",
}
MODELS = {
    "Qwen2.5-Math-7B-Instruct": "qwen2.5-math-7b",
    "Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Llama-3.1-8B-Instruct": "llama-3.1-8b",
}
SCICODE = {
    "qwen2.5-7b/base": (11.5, 0.0),
    "qwen2.5-7b/greedy": (13.4, 3.0),
    "qwen2.5-7b/refinement": (12.1, 0.0),
    "qwen2.5-7b/adaptive_temperature": (13.2, 0.0),
    "qwen2.5-7b/em_inf": (16.7, 1.5),
    "qwen2.5-32b/base": (25.4, 4.6),
    "qwen2.5-32b/greedy": (25.4, 4.6),
    "qwen2.5-32b/refinement": (24.7, 7.6),
    "qwen2.5-32b/adaptive_temperature": (28.8, 7.6),
    "qwen2.5-32b/em_inf": (27.1, 10.7),
}


def table() -> dict[str, list[str]]:
    """The lines by the names of our rows."""
    found, model = {}, ""
    for line in TABLE.strip().splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        written, _, method = name.rpartition(", ")
        model = MODELS[written] if written else model
        found[f"{model}/{METHODS[method]}"] = cells
    return found


@pytest.mark.parametrize(("name", "cells"), table().items())
def test_row_has_the_papers_numbers(name: str, cells: list[str]) -> None:
    of_tasks = cells[:5] + cells[6:]
    written = {
        task: float(cell)
        for task, cell in zip(COLUMNS, of_tasks, strict=True)
        if cell != "-"
    }
    found = {task: percent for task, (percent, _) in row(name).paper.items()}
    found.pop("scicode", None)
    assert found == written


@pytest.mark.parametrize(("name", "cells"), table().items())
def test_mean_of_the_five_mathematical_tasks_is_the_papers_average(
    name: str, cells: list[str]
) -> None:
    assert row(name).average == float(cells[5])


@pytest.mark.parametrize(("name", "percents"), SCICODE.items())
def test_row_has_the_papers_scicode_numbers(
    name: str, percents: tuple[float, float]
) -> None:
    percent, where = row(name).paper["scicode"]
    assert percent == percents[1]
    assert f"({percents[0]} of subproblems)" in where


def test_there_are_no_other_rows() -> None:
    assert {each.name for each in rows()} == set(table()) | set(SCICODE)
    assert {each.name for each in rows() if "scicode" in each.paper} == set(SCICODE)


def test_replication_setting_of_em_inf_is_that_of_the_authors_scripts() -> None:
    assert row("qwen2.5-7b/em_inf").decoder("math-500") == (
        "em_inf(temperature=0.1, n_grad_steps=3, learning_rate=0.1, threshold=0.3, "
        "kl_weight=0.05, top_p=0.8, top_k=20, repetition_penalty=1.05)"
    )


@pytest.mark.parametrize("each", rows(), ids=lambda each: each.name)
def test_every_row_has_a_decoder_and_caveats_for_each_task_that_exists(each) -> None:
    assert set(each.decoders) == set(each.caveats) == set(each.tasks)
    assert set(each.tasks) <= set(tasks.names())
    for task in each.tasks:
        assert each.caveats[task]
        assert each.command(task) == f"em-inf eval {task} --replicate {each.name}"


def test_every_decoder_can_be_parsed() -> None:
    decoders = pytest.importorskip("em_inf.evaluation.decoder_texts")
    for each in rows():
        for text in each.decoders.values():
            assert decoders.parse(text).name


def test_unknown_row_or_task_is_refused_with_what_there_is() -> None:
    with pytest.raises(tasks.TaskError, match=r"'qwen/x' is unknown; allowed: qwen2\.5"):
        row("qwen/x")
    with pytest.raises(tasks.TaskError, match="has no 'gsm8k'; it has math-500, amc"):
        row("qwen2.5-7b/em_inf").decoder("gsm8k")
    with pytest.raises(tasks.TaskError, match="has no 'leetcode'"):
        row("qwen2.5-7b/self_consistency").command("leetcode")
