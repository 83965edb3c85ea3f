"""Write the held-out problems that `em-inf eval arithmetic` asks, into the clients.

    .venv/bin/python -m em_inf.server.demo_model.export

`held_out` is what `evaluate.py` draws; `tune` shares no arithmetic with it.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from em_inf.server.demo_model.evaluate import SEED
from em_inf.server.demo_model.problems import Problem, problems

DATA = Path(__file__).parents[2] / "evaluation/tasks/data/arithmetic.jsonl"
HELD_OUT, TUNE = 1000, 500


def rows() -> Iterator[dict[str, Any]]:
    """The file's lines."""
    drawn = problems("held_out", SEED)
    reported = list(itertools.islice(drawn, HELD_OUT))
    seen = {problem.arithmetic for problem in reported}
    others = (problem for problem in drawn if problem.arithmetic not in seen)
    yield from (_row("held_out", i, one) for i, one in enumerate(reported))
    yield from (
        _row("tune", i, one) for i, one in enumerate(itertools.islice(others, TUNE))
    )


def _row(split: str, index: int, problem: Problem) -> dict[str, Any]:
    return {
        "id": f"{split}-{index:04}",
        "split": split,
        "question": problem.question,
        "answer": problem.answer,
        "arithmetic": problem.arithmetic,
    }


def main() -> None:
    """Write them."""
    DATA.write_text("".join(json.dumps(row) + "\n" for row in rows()))


if __name__ == "__main__":
    main()
