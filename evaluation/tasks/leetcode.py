"""LeetCode contests of July 2023 to January 2024, graded by their tests.

The authors' copy is `eval/data/leetcode/leetcode-test.json` of `shivamag125/EM_PT` at
91cda30: JSON lines with the columns of DeepSeek-Coder's LeetCode evaluation
(`20240121-Jul`), 180 problems. Prompt, imports and length are those of
`eval/Coding/leetcode/evaluate_leetcode.py` and `eval/utils/evaluation_leetcode.py`.
"""

from __future__ import annotations

from pathlib import Path

from em_inf.evaluation.records import Problem
from em_inf.evaluation.tasks.hub import column, rows
from em_inf.evaluation.tasks.task import Task, TaskError

SIZE = 180
SYSTEM = (
    "\nWhen tackling complex reasoning tasks, you have access to the following actions. "
    "Use them as needed to progress through your thought process.\n\n[ASSESS]\n\n"
    "[ADVANCE]\n\n[VERIFY]\n\n[SIMPLIFY]\n\n[SYNTHESIZE]\n\n[PIVOT]\n\n[OUTPUT]\n\n"
    "You should strictly follow the format below:\n\n[ACTION NAME]\n\n"
    "# Your action step 1\n\n# Your action step 2\n\n# Your action step 3\n\n...\n\n"
    "Next action: [NEXT ACTION NAME]\n"
)
_ENDING = (
    "\n\nWrite Python code to solve the problem. Present the code in \n```python\n"
    "Your code\n```\nat the end."
)
_SETUP = (
    "import math, re, sys, copy, datetime, itertools, collections, heapq, functools\n"
    "import hashlib, string, numpy\nimport numpy as np\nfrom typing import *\n"
    "from collections import *\nfrom functools import *"
)
_SENTENCE = (
    "LeetCode contest problems, right where every test passes. The authors' script of "
    "EM-INF for it cannot be run as published."
)


def load(path: Path | None, split: str | None) -> Task:
    """The task, from a local file.

    Raises:
        TaskError: no path, a split, or see `hub.rows`.
    """
    if split not in (None, "test"):
        raise TaskError(f"split: {split!r} is unknown; leetcode has test")
    if path is None:
        raise TaskError(
            "leetcode is on no hub under an id that the paper names; give a local copy: "
            "--path leetcode-test.json (EM_PT, eval/data/leetcode) or 20240121-Jul.jsonl "
            "(DeepSeek-Coder, Evaluation/LeetCode/data)"
        )
    found, source = rows("leetcode", None, path, SIZE)
    problems = []
    for index, row in enumerate(found):
        where = f"leetcode, problem {index} ({source})"
        problems.append(
            Problem(
                id=str(column(row, where, "task_id")),
                messages=(
                    {"role": "system", "content": SYSTEM},
                    {
                        "role": "user",
                        "content": str(column(row, where, "prompt_sft")) + _ENDING,
                    },
                ),
                answer=str(column(row, where, "test")),
                more={"setup": _SETUP, "cpu_seconds": 10},
            )
        )
    return Task(
        name="leetcode",
        problems=tuple(problems),
        grader="code",
        sampling={"max_tokens": 8192, "stop": ["<|eot_id|>"]},
        source=source,
        sentence=_SENTENCE,
    )
