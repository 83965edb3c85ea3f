"""What an evaluation is made of: problems, calls, answers, and what was asked of whom.

The parts of `evaluation` meet here and nowhere else. Standard library only. All
of it turns into JSON and back: `as_json` of an object gives what `from_json` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

Grade = Literal["right", "wrong", "not_extracted", "not_graded"]
"""`not_extracted`: the text holds no answer that the grader could find. `not_graded`: the
grader itself gave up (its time limit, or an error of its own). Neither is right, and both
are counted apart from `wrong`."""


@dataclass(frozen=True)
class Problem:
    """One question with what is needed to grade its answers.

    Attributes:
        id: unique in its data.
        messages: the conversation to send, each {"role": ..., "content": ...}.
        answer: what the grader compares with: a text, a number, or tests of code.
        more: further fields that a grader reads ("choices", "tolerance", "entry_point").
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    answer: Any
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a grader says of one text.

    Attributes:
        grade: see `Grade`.
        extracted: the answer that was found in the text, as the grader normalises it, so
            that two texts with the same answer have the same `extracted`: the votes of
            self-consistency are counted on it. None where none was found.
        reason: why it was not graded, or which test failed; "" where there is nothing to
            say.
    """

    grade: Grade
    extracted: str | None = None
    reason: str = ""


class Grader(Protocol):
    """Reads an answer out of a text, and compares it with the problem's."""

    name: str

    def extract(self, text: str, problem: Problem) -> str | None:
        """The normalised answer in the text; None where there is none. Cheap."""

    def grade(self, text: str, problem: Problem) -> Verdict:
        """The verdict on one text. May take seconds (code); safe to call in threads."""


@dataclass(frozen=True)
class Call:
    """One HTTP request that was answered: a line of the journal.

    Attributes:
        decoder: name of the decoder that asked.
        problem: id of the problem.
        sample: which of the decoder's answers to this problem, from 0.
        part: which request of that answer, from 0: a vote of self-consistency, a round
            of refinement.
        seed: that was sent.
        text: the answer.
        finish_reason: "stop" or "length", as the server says.
        prompt_tokens: tokens of the prompt.
        tokens: output tokens, as `usage` counts them; also the forward passes that
            sampled a token.
        tokens_minimized: output tokens whose logits were changed.
        grad_steps: Adam steps in all; None under adaptive temperature.
        entropy_before: mean over the tokens, nats, before the method and temperature;
            None where the server measured nothing.
        entropy_after: the same after the method, before temperature.
        seconds: from the request to the end of its answer, seen from the client, the
            last try only.
        tries: 1, and one for each time it was refused or broken off before.
    """

    decoder: str
    problem: str
    sample: int
    part: int
    seed: int
    text: str
    finish_reason: str | None
    prompt_tokens: int
    tokens: int
    tokens_minimized: int
    grad_steps: int | None
    entropy_before: float | None
    entropy_after: float | None
    seconds: float
    tries: int = 1

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What makes a call unique in a run."""
        return self.decoder, self.problem, self.sample, self.part


@dataclass(frozen=True)
class Answer:
    """One graded answer of one decoder to one problem, with every call it took.

    Attributes:
        decoder: its name.
        problem: id of the problem.
        sample: which of the decoder's answers to this problem, from 0.
        text: the final answer's text: the last round's, or one that holds the majority.
        verdict: of that text.
        calls: in order of their part; their costs add up.
    """

    decoder: str
    problem: str
    sample: int
    text: str
    verdict: Verdict
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class DecoderRecord:
    """One decoder of a run, as it ran.

    Attributes:
        name: unique in the run, "em_inf(n_grad_steps=15)" for example.
        kind: of the entry that made it ("greedy", "em_inf", "self_consistency", ...).
        request: fields of each request that the decoder set, `em_inf` among them, the
            found temperature of an entropy-matched decoder too.
        calls_per_answer: requests that one answer takes.
        seconds: wall time in which this decoder's problems were asked, sum over the
            sessions of a resumed run; for answers per minute.
        paper: percent in the paper's table, and where ("Table 3, EM-INF, MATH-500"), in
            a replication.
        notes: sentences that the report shows with the decoder.
    """

    name: str
    kind: str
    request: Mapping[str, Any]
    calls_per_answer: int = 1
    seconds: float = 0.0
    paper: tuple[float, str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TracedToken:
    """A token of an answer that was asked for again with its trace.

    Attributes:
        text: of this token alone; "" for an end token.
        entropy_before: nats, before the method and temperature; None where it was lost.
        entropy_after: nats, after the method, before temperature; None likewise.
    """

    text: str
    entropy_before: float | None
    entropy_after: float | None


@dataclass(frozen=True)
class TracedAnswer:
    """The tokens behind one answer, from a request that repeats its last call.

    Attributes:
        decoder, problem, sample: whose answer it is.
        tokens: in order.
        same_text: whether the repeated request gave the text that was graded. A server
            whose batches change its arithmetic may answer differently.
    """

    decoder: str
    problem: str
    sample: int
    tokens: tuple[TracedToken, ...]
    same_text: bool


@dataclass(frozen=True)
class Run:
    """A whole evaluation, ready to be reported.

    Attributes:
        task: name of the task or path of the data.
        grader: its name.
        command: the command line that anyone can repeat it with.
        url: of the server, without credentials.
        model: its name on the server.
        server: what `GET /v1/em_inf` says (versions, runner, backend); {} for a server
            without EM-INF.
        versions: of our package, Python and the libraries that grade and compare.
        seed: from which every request's seed was made.
        samples: answers of each decoder to each problem.
        concurrency: requests in flight at once.
        started, ended: ISO 8601, UTC.
        baseline: name of the decoder that the others are compared with.
        decoders: in the order in which they are shown.
        problems: in the order of the data.
        answers: one for each decoder, problem and sample; a run that was stopped early
            has fewer.
    """

    task: str
    grader: str
    command: str
    url: str
    model: str
    server: Mapping[str, Any]
    versions: Mapping[str, str]
    seed: int
    samples: int
    concurrency: int
    started: str
    ended: str
    baseline: str
    decoders: tuple[DecoderRecord, ...]
    problems: tuple[Problem, ...]
    answers: tuple[Answer, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    traces: tuple[TracedAnswer, ...] = ()


def as_json(record: Any) -> dict[str, Any]:
    """A record of this file as JSON's types."""
    return asdict(record)


def call_from_json(value: Mapping[str, Any]) -> Call:
    """A journal's line.

    Raises:
        TypeError: a field is missing, or unknown.
    """
    return Call(**value)


def problem_from_json(value: Mapping[str, Any]) -> Problem:
    """A problem as a journal or a report holds it."""
    return Problem(**{**value, "messages": tuple(value["messages"])})


def decoder_from_json(value: Mapping[str, Any]) -> DecoderRecord:
    """A decoder as a journal or a report holds it."""
    paper: Sequence[Any] | None = value.get("paper")
    return DecoderRecord(
        **{
            **value,
            "paper": None if paper is None else (float(paper[0]), str(paper[1])),
            "notes": tuple(value.get("notes", ())),
        }
    )


def answer_from_json(value: Mapping[str, Any]) -> Answer:
    """An answer as a report holds it."""
    return Answer(
        **{
            **value,
            "verdict": Verdict(**value["verdict"]),
            "calls": tuple(map(call_from_json, value["calls"])),
        }
    )


def run_from_json(value: Mapping[str, Any]) -> Run:
    """A run as a report holds it."""
    traces = (
        TracedAnswer(
            **{**trace, "tokens": tuple(TracedToken(**of) for of in trace["tokens"])}
        )
        for trace in value["traces"]
    )
    return Run(
        **{
            **value,
            "decoders": tuple(map(decoder_from_json, value["decoders"])),
            "problems": tuple(map(problem_from_json, value["problems"])),
            "answers": tuple(map(answer_from_json, value["answers"])),
            "traces": tuple(traces),
        }
    )
