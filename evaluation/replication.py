"""The rows of the paper's tables: which decoder, on which tasks, and the paper's numbers.

Numbers are from arXiv 2505.15134 v1, Table 3 and the SciCode table, one run each without
error bars; settings from the authors' scripts (`shivamag125/EM_PT` at 91cda30). The paper
does not say which settings made its tables: these are the scripts'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from em_inf.evaluation.tasks.task import TaskError

COLUMNS = ("math-500", "amc", "aime", "minerva", "olympiadbench", "leetcode", "ugphysics")
_TITLES = {
    "math-500": "MATH-500",
    "amc": "AMC",
    "aime": "AIME",
    "minerva": "Minerva",
    "olympiadbench": "Olymp.",
    "leetcode": "LeetC",
    "ugphysics": "UGPhys",
    "scicode": "main problems",
}
MODELS = {
    "qwen2.5-math-7b": "Qwen/Qwen2.5-Math-7B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen2.5-32b": "Qwen/Qwen2.5-32B-Instruct",
}

# Table 3, percent: the five mathematical tasks, LeetCode, UGPhysics; None where it has a
# dash.
_TABLE_3: dict[str, dict[str, tuple[float | None, ...]]] = {
    "qwen2.5-math-7b": {
        "base": (79.2, 48.2, 8.9, 43.4, 41.3, 0.6, 18.6),
        "greedy": (79.0, 53.0, 11.1, 42.6, 39.9, 1.1, 18.8),
        "refinement": (79.2, 48.2, 8.9, 43.4, 41.3, 1.7, 16.4),
        "self_consistency": (78.8, 53.0, 11.1, 43.4, 40.7, None, 19.6),
        "adaptive_temperature": (80.8, 55.4, 10.0, 41.5, 38.7, 2.2, 23.7),
        "em_inf": (80.2, 54.2, 14.4, 42.3, 40.8, 0.6, 23.1),
    },
    "qwen2.5-7b": {
        "base": (74.0, 41.0, 8.9, 41.2, 37.5, 47.2, 23.4),
        "greedy": (74.2, 44.6, 7.8, 40.4, 37.2, 46.1, 23.7),
        "refinement": (73.8, 37.3, 10.0, 41.5, 37.8, 50.0, 21.5),
        "self_consistency": (73.4, 43.4, 10.0, 33.5, 41.3, None, 23.4),
        "adaptive_temperature": (74.4, 50.6, 10.0, 41.9, 39.7, 49.4, 25.8),
        "em_inf": (73.8, 45.8, 11.1, 41.2, 38.2, 51.7, 26.9),
    },
    "llama-3.1-8b": {
        "base": (40.6, 18.1, 1.1, 22.4, 15.7, 10.6, 17.5),
        "greedy": (40.6, 16.9, 3.3, 21.0, 16.0, 12.8, 16.1),
        "refinement": (41.0, 19.3, 1.1, 22.4, 15.7, 11.7, 18.3),
        "self_consistency": (41.2, 20.5, 4.4, 20.2, 19.4, None, 20.2),
        "adaptive_temperature": (43.6, 25.3, 5.5, 24.3, 16.6, 17.2, 19.9),
        "em_inf": (43.0, 22.9, 3.3, 22.8, 16.4, 14.4, 20.4),
    },
}
# SciCode with background, percent: subproblems, main problems.
_SCICODE: dict[str, dict[str, tuple[float, float]]] = {
    "qwen2.5-7b": {
        "base": (11.5, 0.0),
        "greedy": (13.4, 3.0),
        "refinement": (12.1, 0.0),
        "adaptive_temperature": (13.2, 0.0),
        "em_inf": (16.7, 1.5),
    },
    "qwen2.5-32b": {
        "base": (25.4, 4.6),
        "greedy": (25.4, 4.6),
        "refinement": (24.7, 7.6),
        "adaptive_temperature": (28.8, 7.6),
        "em_inf": (27.1, 10.7),
    },
}

# The server would take what is not said from the model's generation_config.json.
_PLAIN = "top_p=1.0, top_k=0, repetition_penalty=1.0"
_QWEN = "top_p=0.8, top_k=20, repetition_penalty=1.05"
_OTHER = "top_p=1.0, top_k=50, repetition_penalty=1.0"
_EM_INF = "n_grad_steps=3, learning_rate=0.1, threshold=0.3, kl_weight=0.05"

_ALWAYS = (
    "The paper's number is one run without an error bar, read from arXiv v1; its "
    "settings were chosen on the same test data.",
)
_METHOD_CAVEATS = {
    "base": ("The paper's base row is sampling at temperature 0.1, not greedy.",),
    "greedy": (),
    "refinement": (
        "The authors put the earlier rounds, chat marks and all, before the question as "
        "one text; here each round is a conversation.",
        "On Qwen2.5-Math-7B-Instruct the paper's refinement repeats its base row exactly "
        "on five tasks.",
    ),
    "self_consistency": (
        "The authors send four requests with the same seed at temperature 0.1, whose "
        "answers are near-identical; here the seeds differ, so that a gap to the paper "
        "is expected. Temperature 0.7 is the usual choice.",
    ),
    "adaptive_temperature": (
        "The authors' bisection stops within 0.1 nats of its target and so leaves tokens "
        "below 0.1 nats at a temperature of about 0.5; here it is exact.",
        "The authors sample at temperature 1.0 after it, and at 0.1 after EM-INF: the "
        "paper's two rows are not at one temperature.",
    ),
    "em_inf": (
        "The authors clamp probabilities to at least 1e-9 after top-k and top-p, which "
        "brings every removed token back; that is not imitated.",
        "The authors run EM-INF before the repetition penalty, the server after it.",
        "Top-p, top-k and the repetition penalty are those that the authors' run kept "
        "from the model's generation config; their baselines ran without them.",
    ),
}
_TASK_CAVEATS = {
    "aime": ("One problem of AIME is 1.1 points, the standard error about 3.",),
    "amc": ("One problem of AMC is 1.2 points, the standard error about 5.5.",),
    "minerva": ("Graded by math-verify; the authors allow a relative error of 1e-4.",),
    "olympiadbench": ("The hub's copy has 674 problems, the authors' 675.",),
    "leetcode": (
        "180 problems: one is 0.6 points. The authors' script for EM-INF imports a "
        "module that their repository lacks, so it cannot be checked against it.",
    ),
    "ugphysics": (
        "372 problems: 186 in English and their 186 translations into Chinese, which are "
        "not independent. Graded by math-verify, not by the authors' rules.",
    ),
    "scicode": (
        "The paper asks step by step, each prompt with the model's own code of the steps "
        "before; here one prompt asks for all steps of a main problem.",
        "65 main problems: one is 1.5 points.",
    ),
}


@dataclass(frozen=True)
class Replication:
    """One row of the paper's tables.

    Attributes:
        name: "qwen2.5-7b/em_inf".
        model: on the Hugging Face hub.
        method: "em_inf", "greedy" and so on.
        decoders: for each task the decoder, as `decoders.parse` reads it.
        paper: for each task the percentage, and where it stands.
        average: mean of the five mathematical tasks, percent; None where the row has
            none of them.
        caveats: for each task, sentences for the report.
    """

    name: str
    model: str
    method: str
    decoders: Mapping[str, str]
    paper: Mapping[str, tuple[float, str]]
    average: float | None
    caveats: Mapping[str, tuple[str, ...]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of which the row has a number."""
        return tuple(self.paper)

    def decoder(self, task: str) -> str:
        """The decoder for a task, as `decoders.parse` reads it.

        Raises:
            TaskError: the row has no number of this task.
        """
        if task not in self.decoders:
            raise TaskError(
                f"replicate: {self.name} has no {task!r}; it has {', '.join(self.tasks)}"
            )
        return self.decoders[task]

    def command(self, task: str) -> str:
        """The command line that runs this row on a task.

        Raises:
            TaskError: the row has no number of this task.
        """
        self.decoder(task)
        return f"em-inf eval {task} --replicate {self.name}"


def rows() -> tuple[Replication, ...]:
    """Every row, in the paper's order."""
    return tuple(_ROWS.values())


def row(name: str) -> Replication:
    """The row of that name.

    Raises:
        TaskError: no such row; says which there are.
    """
    if name not in _ROWS:
        raise TaskError(f"replicate: {name!r} is unknown; allowed: {', '.join(_ROWS)}")
    return _ROWS[name]


def _decoder(model: str, method: str, task: str) -> str:
    base = f"temperature(0.1, {_PLAIN})"
    if method == "em_inf":
        instruct = model in ("qwen2.5-7b", "qwen2.5-32b")
        return f"em_inf(temperature=0.1, {_EM_INF}, {_QWEN if instruct else _OTHER})"
    if method == "adaptive_temperature":
        after = 0.1 if task == "scicode" else 1.0
        return (
            f"adaptive_temperature(temperature={after}, target_ratio=0.85, "
            f"threshold=1e-05, {_PLAIN})"
        )
    return {
        "base": base,
        "greedy": "greedy(repetition_penalty=1.0)",
        "refinement": f"refinement(n={2 if task == 'scicode' else 3}, of={base})",
        "self_consistency": f"self_consistency(n=4, of={base})",
    }[method]


def _row(model: str, method: str) -> Replication:
    label = f"{MODELS[model].split('/')[1]}, {method}"
    percents = _TABLE_3.get(model, {}).get(method, ())
    paper = {
        task: (percent, f"Table 3, {label}, {_TITLES[task]}")
        for task, percent in zip(COLUMNS, percents, strict=bool(percents))
        if percent is not None
    }
    if method in _SCICODE.get(model, {}):
        subproblems, main = _SCICODE[model][method]
        where = f"SciCode table, {label}, main problems ({subproblems} of subproblems)"
        paper["scicode"] = (main, where)
    mathematics = [paper[task][0] for task in COLUMNS[:5] if task in paper]
    own = _METHOD_CAVEATS[method]
    if method == "em_inf" and model in ("qwen2.5-math-7b", "llama-3.1-8b"):
        own += (
            "Top-k 50 is transformers' default; what else this model's generation config "
            "holds could not be read.",
        )
    return Replication(
        name=f"{model}/{method}",
        model=MODELS[model],
        method=method,
        decoders={task: _decoder(model, method, task) for task in paper},
        paper=paper,
        average=round(sum(mathematics) / 5, 1) if mathematics else None,
        caveats={task: _ALWAYS + own + _TASK_CAVEATS.get(task, ()) for task in paper},
    )


_ROWS = {
    f"{model}/{method}": _row(model, method)
    for model in MODELS
    for method in _METHOD_CAVEATS
    if method in _TABLE_3.get(model, {}) or method in _SCICODE.get(model, {})
}
