"""A search for settings with Optuna: seeded, paired over questions, and resumable.

Needs only a way to ask; see `Ask`. What it finds is the best of many on the questions it
saw, so it is flattered by chance: only questions of the other split can judge it.
"""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from optuna.pruners import WilcoxonPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from em_inf.evaluation.records import Problem
from em_inf.logits_processors.settings import (
    MAX_GRAD_STEPS,
    Settings,
    check_preset_name,
    merged,
)

Objective = Literal["accuracy", "accuracy_per_token"]
PRUNE_P = 0.1
"""A trial ends early once Wilcoxon's p that it is worse than the best one falls below."""
_STARTUP_TRIALS = 8
"""Drawn at random, before TPE has something to go by."""


@dataclass(frozen=True)
class Scored:
    """What a decoder did with one question, mean over its answers to it.

    Attributes:
        right: share of right answers.
        tokens: output tokens of an answer.
    """

    right: float
    tokens: float

    def value(self, objective: Objective) -> float:
        """What is to be large.

        accuracy: the share of right answers. accuracy_per_token: right answers for each
        1,000 output tokens of this question; its mean over questions pays for short
        answers as much as for right ones.
        """
        if objective == "accuracy":
            return self.right
        return 1000 * self.right / max(self.tokens, 1.0)


class Ask(Protocol):
    """Asks questions in a decoder's way, and grades the answers."""

    def __call__(self, decoder: str, problems: Sequence[Problem]) -> Mapping[str, Scored]:
        """What it did with each problem, by id.

        Args:
            decoder: as `decoders.parse` reads it.
            problems: to be asked; asked before, they need not be asked again.
        """


@dataclass(frozen=True)
class Space:
    """Where to look.

    Attributes:
        temperature: lowest and highest.
        max_grad_steps: the most gradient steps.
    """

    temperature: tuple[float, float] = (0.1, 1.0)
    max_grad_steps: int = 16

    @property
    def fixed(self) -> tuple[str, ...]:
        """Always tried, on all questions: greedy, off, and both methods' defaults."""
        high = self.temperature[1]
        return (
            "greedy",
            f"temperature({high:g})",
            f"adaptive_temperature(temperature={high:g})",
            f"em_inf(temperature={high:g})",
        )

    def suggest(self, trial: Trial) -> str:
        """A decoder of the space."""
        temperature = trial.suggest_float("temperature", *self.temperature)
        method = trial.suggest_categorical("method", ["gradient", "adaptive_temperature"])
        threshold = trial.suggest_float("threshold", 0.0, 1.0)
        if method == "adaptive_temperature":
            settings = {"target_ratio": trial.suggest_float("target_ratio", 0.1, 1.0)}
            name = "adaptive_temperature"
        else:
            settings = {
                "n_grad_steps": trial.suggest_int("n_grad_steps", 1, self.max_grad_steps),
                "learning_rate": trial.suggest_float(
                    "learning_rate", 0.02, 0.5, log=True
                ),
                "kl_weight": trial.suggest_float("kl_weight", 1e-4, 1.0, log=True),
            }
            name = "em_inf"
        given = {"temperature": temperature, **settings, "threshold": threshold}
        return f"{name}({', '.join(f'{key}={of:.3g}' for key, of in given.items())})"


@dataclass(frozen=True)
class Tried:
    """One trial.

    Attributes:
        number: in the order in which they were made.
        decoder: its text.
        fixed: whether it is one of those that are always tried.
        value: mean of the objective over the questions that were asked.
        questions: how many they were.
        pruned: whether it ended early, as probably worse than the best.
    """

    number: int
    decoder: str
    fixed: bool
    value: float
    questions: int
    pruned: bool


def split(
    problems: Iterable[Problem], seed: int, share: float = 0.5
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Questions to tune on, and questions to report on; no question is in both.

    Drawn by the seed and the question's text, so the order of the data and its ids do
    not matter, and equal questions fall on the same side. Each side keeps the order.

    Args:
        problems: all of them.
        seed: of the draw.
        share: of questions to tune on, about.
    """
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in problems:
        text = json.dumps([seed, *map(dict, problem.messages)], sort_keys=True)
        drawn = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12
        sides[drawn >= share].append(problem)
    return tuple(sides[0]), tuple(sides[1])


def search(
    ask: Ask,
    problems: Sequence[Problem],
    *,
    folder: Path,
    trials: int,
    space: Space | None = None,
    objective: Objective = "accuracy",
    seed: int = 0,
    block: int = 32,
    tell: Callable[[Tried], None] = lambda _: None,
) -> tuple[Tried, ...]:
    """Try decoders until there are enough, those of an earlier session among them.

    The questions are asked in blocks, in an order that the seed shuffles and all trials
    share; after each block WilcoxonPruner compares the trial with the best one, question
    by question. A search that was killed and is started again makes the trials that it
    would have made.

    Args:
        ask: in a decoder's way.
        problems: to tune on.
        folder: of the storage, `trials.log`; made if it is not there.
        trials: besides the fixed ones.
        space: where to look.
        objective: what is to be large.
        seed: of the sampler and of the questions' order.
        block: questions at a time.
        tell: is told of each trial as it ends.

    Returns:
        All trials, the fixed ones first.

    Raises:
        ValueError: the folder holds another search.
    """
    space = space or Space()
    ordered = list(problems)
    random.Random(seed).shuffle(ordered)  # noqa: S311 - an order, no secret.
    identity = {
        "objective": objective,
        "seed": seed,
        "block": block,
        "temperature": list(space.temperature),
        "max_grad_steps": space.max_grad_steps,
        "problems": hashlib.sha256(repr(ordered).encode()).hexdigest(),
    }
    stored = _stored(folder, identity)
    study = _study(stored, block)
    for decoder in space.fixed[len(study.trials) :]:
        values = _values(ask(decoder, ordered), ordered, objective)
        study.add_trial(
            create_trial(
                value=sum(values) / len(values),
                intermediate_values=dict(enumerate(values)),
                user_attrs={"decoder": decoder, "fixed": True},
            )
        )
        stored.add_trial(study.trials[-1])
        tell(_tried(study.trials[-1]))
    while len(study.trials) < len(space.fixed) + trials:
        study.sampler = _sampler(seed, len(study.trials))
        _run_trial(study, ask, ordered, space, objective, block)
        stored.add_trial(study.trials[-1])
        tell(_tried(study.trials[-1]))
    return tuple(map(_tried, study.trials))


def winner(tried: Sequence[Tried], space: Space | None = None) -> Tried:
    """The best trial that a preset can hold: all but greedy and off.

    Only whole trials count; of equals, the first.
    """
    plain = (space or Space()).fixed[:2]
    able = [of for of in tried if not of.pruned and of.decoder not in plain]
    return max(able, key=lambda of: (of.value, -of.number))


def preset(settings: Mapping[str, Any], name: str) -> str:
    """The text of a file for `em-inf serve --em-inf-presets`.

    Args:
        settings: of EM-INF, as a request has them.
        name: of the preset.

    Raises:
        SettingsError: no server would take it.
    """
    where = f"preset {name!r}"
    check_preset_name(name, where)
    merged(Settings(), settings, where, MAX_GRAD_STEPS)
    return json.dumps({name: dict(settings)}, indent=2) + "\n"


def _stored(folder: Path, identity: Mapping[str, Any]) -> Study:
    """The finished trials on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stored = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "trials.log"))),
        study_name="em-inf tune",
        direction="maximize",
        load_if_exists=True,
    )
    known = stored.user_attrs.get("identity")
    if known is None:
        stored.set_user_attr("identity", dict(identity))
    elif known != identity:
        other = [name for name in identity if known.get(name) != identity[name]]
        raise ValueError(
            f"{folder} holds a search with another {', '.join(other)}; give another "
            "--output, or the same options"
        )
    return stored


def _study(stored: Study, block: int) -> Study:
    """The same in memory: a disk would be asked once for each question of a trial."""
    with warnings.catch_warnings():
        # Our lock pins the version; the test of the search holds its behaviour.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = WilcoxonPruner(p_threshold=PRUNE_P, n_startup_steps=block)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    study.add_trials(stored.trials)
    return study


def _sampler(seed: int, done: int) -> TPESampler:
    """One that goes on the same way however often the search was interrupted."""
    drawn = hashlib.sha256(f"{seed} {done}".encode()).digest()
    return TPESampler(
        n_startup_trials=_STARTUP_TRIALS, seed=int.from_bytes(drawn[:4], "big")
    )


def _run_trial(
    study: Study,
    ask: Ask,
    problems: Sequence[Problem],
    space: Space,
    objective: Objective,
    block: int,
) -> None:
    trial = study.ask()
    decoder = space.suggest(trial)
    trial.set_user_attr("decoder", decoder)
    values: list[float] = []
    for start in range(0, len(problems), block):
        part = problems[start : start + block]
        for value in _values(ask(decoder, part), part, objective):
            trial.report(value, len(values))
            values.append(value)
        if len(values) < len(problems) and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, sum(values) / len(values))


def _values(
    scored: Mapping[str, Scored], problems: Sequence[Problem], objective: Objective
) -> list[float]:
    return [scored[problem.id].value(objective) for problem in problems]


def _tried(trial: FrozenTrial) -> Tried:
    values = list(trial.intermediate_values.values())
    return Tried(
        number=trial.number,
        decoder=trial.user_attrs["decoder"],
        fixed=bool(trial.user_attrs.get("fixed")),
        value=sum(values) / len(values),
        questions=len(values),
        pruned=trial.state == TrialState.PRUNED,
    )
