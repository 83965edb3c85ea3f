"""`Figures`: what EM-INF did to each output token of one answer.

The one form of them from the worker to the response: float32 columns by name, in an order
that only this file knows; bytes on the way between processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("entropy_before", "entropy_after", "grad_steps", "temperature")
"""Entropies in nats; Adam steps taken; what the logits were divided by, 1 where not."""

BYTES_PER_TOKEN = 4 * len(COLUMNS)
_GRAD_STEPS = COLUMNS.index("grad_steps")


@dataclass(frozen=True, eq=False, slots=True)
class Figures:
    """Figures of each output token of one answer, or of several behind each other.

    A token that was never recorded holds NaN in every column. One whose logits were not
    finite holds NaN for its entropies only.

    Attributes:
        table: `[columns, tokens]` float32, the columns in the order of `COLUMNS`.
    """

    table: NDArray[np.float32]

    @classmethod
    def none(cls) -> Figures:
        """Those of an answer without a token."""
        return cls(np.empty((len(COLUMNS), 0), np.float32))

    @classmethod
    def from_bytes(cls, data: bytes) -> Figures:
        """Read what `to_bytes` wrote; raises ValueError where it is of another length."""
        return cls(np.frombuffer(data, np.float32).reshape(len(COLUMNS), -1))

    def to_bytes(self) -> bytes:
        """Column behind column, in this machine's byte order."""
        return self.table.tobytes()

    @classmethod
    def joined(cls, parts: Iterable[Figures]) -> Figures:
        """The tokens of several answers, in order."""
        tables = [part.table for part in parts]
        return cls(np.concatenate(tables, axis=1)) if tables else cls.none()

    def cut(self, num_tokens: int) -> Figures:
        """The first `num_tokens`; those beyond what was recorded hold NaN."""
        missing = num_tokens - len(self)
        if missing <= 0:
            return Figures(self.table[:, :num_tokens])
        padding = ((0, 0), (0, missing))
        return Figures(np.pad(self.table, padding, constant_values=np.nan))

    def __len__(self) -> int:
        return int(self.table.shape[1])

    @property
    def entropy_before(self) -> NDArray[np.float32]:
        """`[tokens]`, in nats."""
        return self.table[0]

    @property
    def entropy_after(self) -> NDArray[np.float32]:
        """`[tokens]`, in nats, before temperature."""
        return self.table[1]

    @property
    def grad_steps(self) -> NDArray[np.float32]:
        """`[tokens]`, whole numbers."""
        return self.table[2]

    @property
    def temperature(self) -> NDArray[np.float32]:
        """`[tokens]`, 1 where the logits were not divided."""
        return self.table[3]

    @property
    def num_recorded(self) -> int:
        """How many of the tokens the worker recorded."""
        return len(self) - int(np.count_nonzero(np.isnan(self.grad_steps)))

    @property
    def num_minimized(self) -> int:
        """How many of the tokens had their logits changed."""
        return int(np.count_nonzero((self.grad_steps > 0) | (self.temperature < 1)))

    @property
    def num_grad_steps(self) -> int:
        """Adam steps over all tokens."""
        return int(np.nansum(self.grad_steps, dtype=np.float64))


def mean_of_known(values: NDArray[np.float32]) -> float | None:
    """The mean of what is not NaN, in double precision; None where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=np.float64)) if known.size else None


def last_recorded(rows: NDArray[np.float32]) -> int:
    """How many of `[tokens, columns]` there are up to the last that was recorded."""
    recorded = np.flatnonzero(~np.isnan(rows[:, _GRAD_STEPS]))
    return int(recorded[-1]) + 1 if recorded.size else 0
