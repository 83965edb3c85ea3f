"""What EM-INF did for one request: the figures of its answers, gathered in order."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from em_inf.logits_processors.figures import Figures
from em_inf.logits_processors.settings import Settings


@dataclass(eq=False)
class Generation:
    """One prompt of a user's request, or one turn of its tool loop, and its choices.

    Attributes:
        keys: name the figures of each choice in the worker.
        num_tokens: of each choice, how many output tokens the client got.
        figures: of each choice; None until, or unless, they could be fetched.
    """

    keys: list[str]
    num_tokens: list[int] = field(init=False)
    figures: list[Figures | None] = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = [0] * len(self.keys)
        self.figures = [None] * len(self.keys)

    @property
    def all_figures(self) -> Figures | None:
        """Those of all choices behind each other; None where one has none."""
        known = [figures for figures in self.figures if figures is not None]
        return Figures.joined(known) if len(known) == len(self.figures) else None


class Report:
    """What EM-INF did for one user's request.

    Attributes:
        settings: the complete settings that it ran with.
        preset: their name, for the metrics.
        generations: in the order of their prompts, or of a tool loop's turns.
    """

    def __init__(self, settings: Settings, preset: str) -> None:
        self.settings = settings
        self.preset = preset
        self.generations: list[Generation] = []

    def new_generation(self, num_choices: int) -> Generation:
        """Add a prompt or turn, with as many choices as it samples (n)."""
        key = uuid.uuid4().hex
        generation = Generation([f"{key}-{index}" for index in range(num_choices)])
        self.generations.append(generation)
        return generation
