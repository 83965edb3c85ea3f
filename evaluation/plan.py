"""What an evaluation is to do, and who is told how far it is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from em_inf.evaluation.decoding import Decoder
from em_inf.evaluation.errors import PlanError
from em_inf.evaluation.records import Problem, as_json

JOURNAL = "journal.jsonl"
"""Its name in the run's folder."""


class Progress(Protocol):
    """Is told how far a run is."""

    def begin(self, total: int, done: int) -> None:
        """So many answers are wanted, and so many are there from an earlier session."""

    def answered(self, decoder: str) -> None:
        """One more answer is there."""

    def say(self, sentence: str) -> None:
        """Something that the user should know."""


class Silent:
    """Progress of a run that nobody watches."""

    def begin(self, total: int, done: int) -> None:
        """Keep it to itself."""

    def answered(self, decoder: str) -> None:
        """Keep it to itself."""

    def say(self, sentence: str) -> None:
        """Keep it to itself."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An evaluation to be done.

    Attributes:
        task: name of the task or path of the data.
        problems: to be asked, in this order.
        grader: its name.
        decoders: in the order in which they are shown.
        baseline: name of the decoder that the others are compared with; one of them.
        url: of the server, without /v1.
        model: its name on the server; the server's first if "".
        folder: of the journal; made if it is not there.
        api_key: of the server; is not written anywhere.
        command: the command line that anyone can repeat the run with.
        sampling: fields of every request ("max_tokens"), under those of a decoder.
        seed: from which every request's seed is made.
        samples: answers of each decoder to each problem.
        concurrency: requests in flight at once.
        timeout: of one request, in seconds.
        retries: tries of a request after the first.
        calibration: problems on which `matched` looks for its temperature, at most.
        max_logprobs: top logprobs to ask for in that search.
        paper: by decoder, percent in the paper and where.
    """

    task: str
    problems: tuple[Problem, ...]
    grader: str
    decoders: tuple[Decoder, ...]
    baseline: str
    url: str
    folder: Path
    model: str = ""
    api_key: str = "none"
    command: str = ""
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"max_tokens": 512})
    seed: int = 0
    samples: int = 1
    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 8
    calibration: int = 64
    max_logprobs: int = 20
    paper: Mapping[str, tuple[float, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [decoder.name for decoder in self.decoders]
        if not self.problems:
            raise PlanError("there is no problem to ask")
        if len(set(names)) < len(names) or not names:
            raise PlanError(f"decoders: {', '.join(names) or 'none'}; each once, and one")
        if self.baseline not in names:
            raise PlanError(
                f"baseline: {self.baseline!r} is no decoder of this run; there are "
                + ", ".join(names)
            )
        for name in ("samples", "concurrency", "calibration", "max_logprobs"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name}: {getattr(self, name)} is not at least 1")
        if self.retries < 0:
            raise PlanError(f"retries: {self.retries} is not at least 0")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about the answers; two runs of one journal must agree in it."""
        problems = [as_json(problem) for problem in self.problems]
        return {
            "task": self.task,
            "grader": self.grader,
            "data": {"problems": len(problems), "sha256": _hash(problems)},
            "decoders": {
                decoder.name: [as_json(decoder.record())["request"], decoder.notes]
                for decoder in self.decoders
            },
            "baseline": self.baseline,
            "sampling": dict(self.sampling),
            "seed": self.seed,
            "samples": self.samples,
            "calibration": [self.calibration, self.max_logprobs],
            "model": self.model,
        }

    @property
    def default_folder(self) -> Path:
        """A folder that the same plan always gets, and no other one."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.task).name).strip("-.") or "run"
        return Path("em-inf-eval") / f"{name}-{_hash(self.identity)[:8]}"


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seed_of(run: int, problem: str, sample: int, part: int) -> int:
    """The seed of a request: equal for every decoder, so that they can be paired.

    Args:
        run: the run's seed.
        problem: id of the problem.
        sample: which of the answers to it, from 0.
        part: which request of that answer, from 0.

    Returns:
        31 bits, which every server takes.
    """
    return int(_hash([run, problem, sample, part])[:8], 16) >> 1
