"""UGPhysics, the semiconductor subset: 186 problems in English and the same in Chinese.

Prompt, length and stop words are those of the authors' scripts (`shivamag125/EM_PT` at
91cda30: `eval/UGPhysics/codes/utils.py`, `generate_open.py`).
"""

from __future__ import annotations

from pathlib import Path

from em_inf.evaluation.graders.announced import boxed
from em_inf.evaluation.records import Problem
from em_inf.evaluation.tasks.hub import Dataset, Row, column, rows
from em_inf.evaluation.tasks.task import Task, TaskError

DATASET = Dataset("UGPhysics/ugphysics", "SemiconductorPhysics", ("en", "zh"), 372)
_STOP = [
    "<|eot_id|>", "</s>", "Question:", "Question", "USER:", "USER", "ASSISTANT:",
    "ASSISTANT", "Instruction:", "Instruction", "Response:", "Response",
]  # fmt: skip
_TYPES = {
    "IN": ("a range inteval", "区间"),
    "TF": ("either True or False", "是或否"),
    "EX": ("an expression", "表达式"),
    "EQ": ("an equation", "方程"),
    "MC": ("one option of a multiple choice question", "多项选择题的一个选项"),
    "NV": ("a numerical value without units", "数值"),
    "TUP": (
        "multiple numbers, seperated by comma, such as (x, y, z)",
        "由逗号隔开的若干元素的元组，比如 (x, y, z)",
    ),
}
_SENTENCE = (
    "UGPhysics, semiconductor physics, English and Chinese. The authors judge by rules "
    "of their own with a relative precision; here math-verify compares the boxed answers."
)


def prompt(row: Row, where: str) -> str:
    """What the authors put before a problem, its misspellings included.

    Raises:
        TaskError: a column is missing, or an answer's type unknown.
    """
    chinese = column(row, where, "language") == "ZH"
    several = bool(column(row, where, "is_multiple_answer"))
    subject = column(row, where, "subject")
    written = str(column(row, where, "answer_type"))
    parts = written.split(",") if several else [written]
    kinds = [_kind(one, chinese, where) for one in parts]
    return (
        _chinese(subject, kinds, several)
        if chinese
        else _english(subject, kinds, several)
    )


def _kind(written: str, chinese: bool, where: str) -> str:
    for name, texts in _TYPES.items():
        if name in written:
            return texts[chinese]
    raise TaskError(
        f"{where}: answer_type {written!r} is unknown; allowed: {', '.join(_TYPES)}"
    )


def _english(subject: str, kinds: list[str], several: bool) -> str:
    if not several:
        kind = f"The answer of The problem should be {kinds[0]}. "
    elif len(set(kinds)) == 1:
        kind = f"The problem has multiple answers, each of them should be {kinds[0]}. "
    else:
        kind = (
            "The problem has multiple answers, with the answers in order being "
            f"{', '.join(kinds)}. "
        )
    answer = "multiple answers connected with commas" if several else "answer"
    return (
        f"The following is an open-ended problem from {subject} of the "
        f"undergraduate-level Physics. {kind}Please calculate the answer according to "
        "the given requirements and the information provided. Please use LaTeX format to "
        "represent the variables and formulas used in the solution process and results. "
        f'Please end your solution with "So the final answer is \\boxed{{{answer}}}'
        '(unit)." and give the result explicitly, note that the unit of the answers '
        "should not be included in \\boxed{}."
    )


def _chinese(subject: str, kinds: list[str], several: bool) -> str:
    if not several:
        kind = f"，答案类型为{kinds[0]}"
    elif len(set(kinds)) == 1:
        kind = f"，题目有多个答案，答案类型均为{kinds[0]}"
    else:
        kind = f"，题目有多个答案，答案类型分别为{'、'.join(kinds)}"
    answer = "用英文逗号连接的多个答案" if several else "答案"
    return (
        f"以下是大学物理的{subject}科目中的解答题{kind}。请根据题目的要求和所提供的信息计算得出"
        "答案。解答过程和结果中使用的变量和公式请使用LaTeX格式表示。请在最后以“所以最终答案是"
        f"\\boxed{{{answer}}}(单位)。”显式给出结果。注意答案的单位不要放在\\boxed{{}}中。"
    )


def load(path: Path | None, split: str | None) -> Task:
    """The task; `en` or `zh` alone where one is asked for.

    Raises:
        TaskError: an unknown split, or see `hub.rows`.
    """
    if split not in (None, "en", "zh", "en+zh"):
        raise TaskError(f"split: {split!r} is unknown; ugphysics has en, zh and en+zh")
    dataset = DATASET
    if split in ("en", "zh"):
        dataset = Dataset(DATASET.id, DATASET.config, (split,), DATASET.size // 2)
    found, source = rows("ugphysics", dataset, path, dataset.size)
    problems = tuple(
        _problem(row, f"ugphysics, problem {index} ({source})")
        for index, row in enumerate(found)
    )
    return Task(
        name="ugphysics",
        problems=problems,
        grader="math",
        sampling={"max_tokens": 4096, "stop": _STOP},
        source=source,
        sentence=_SENTENCE,
    )


def _problem(row: Row, where: str) -> Problem:
    answers = str(column(row, where, "answers", "answer"))
    language = str(column(row, where, "language")).lower()
    question = f"{prompt(row, where)}\n\n{column(row, where, 'problem')}"
    return Problem(
        id=f"{language}-{column(row, where, 'index')}",
        messages=(
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": question},
        ),
        answer=boxed(answers) or answers,
        more={"announced": True, "unit": str(row.get("unit") or "")},
    )
