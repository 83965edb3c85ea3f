"""EM-INF and adaptive temperature on `[N, V]` logits in plain PyTorch.

Written to be read: the truth that every faster backend is tested against, and the
fallback on any device. Batched, without a loop over rows, without autograd and without
waiting for the device.

Source: arXiv 2505.15134, section 4 (EM-INF) and Algorithm 1 (adaptive temperature); the
optimiser is Adam with the constants of Kingma and Ba, fresh for every token, as in the
authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
MIN_TEMPERATURE = 0.01
TEMPERATURE_ITERATIONS = 24
TARGET_TOLERANCE = 1e-3
_BUFFERS = 7


@dataclass(frozen=True, slots=True)
class RowParams:
    """Settings of each chosen row, all `[N]` float32 on the device of the logits.

    Attributes:
        table: `[N, 6]`, the columns in the order of `COLUMNS`.
    """

    table: Tensor

    COLUMNS: ClassVar = (
        "adaptive",
        "n_grad_steps",
        "learning_rate",
        "threshold",
        "kl_weight",
        "target_ratio",
    )

    @classmethod
    def of(cls, **columns: Tensor) -> RowParams:
        """From a tensor `[N]` for each of `COLUMNS`."""
        return cls(torch.stack([columns[name] for name in cls.COLUMNS], dim=1))

    def __getitem__(self, index: slice) -> RowParams:
        return RowParams(self.table[index])

    @property
    def adaptive(self) -> Tensor:
        """1 where the method is adaptive temperature, 0 where it is EM-INF."""
        return self.table[:, 0]

    @property
    def n_grad_steps(self) -> Tensor:
        """The most Adam steps; 0 leaves a row alone under EM-INF."""
        return self.table[:, 1]

    @property
    def learning_rate(self) -> Tensor:
        """Of Adam, in logits a step."""
        return self.table[:, 2]

    @property
    def threshold(self) -> Tensor:
        """In nats; a row below it is left alone, and steps stop there."""
        return self.table[:, 3]

    @property
    def kl_weight(self) -> Tensor:
        """Of KL(p0 || p) in the loss."""
        return self.table[:, 4]

    @property
    def target_ratio(self) -> Tensor:
        """Entropy to reach over the first one, under adaptive temperature."""
        return self.table[:, 5]


@dataclass(frozen=True, slots=True)
class RowFigures:
    """What happened to each chosen row, all `[N]` float32 on the device of the logits.

    Entropies are in nats, of softmax(logits) before and after; NaN for a row that holds
    NaN or +inf, or no finite logit, all of which are left alone.

    Attributes:
        table: `[4, N]`: entropy before, entropy after, steps and temperature.
    """

    table: Tensor

    @classmethod
    def empty(cls, num_rows: int, device: torch.device) -> RowFigures:
        """Room for the statistics of `num_rows` rows."""
        return cls(torch.empty(4, num_rows, device=device))

    def __getitem__(self, index: slice) -> RowFigures:
        return RowFigures(self.table[:, index])

    @property
    def entropy_before(self) -> Tensor:
        """Of softmax(logits) as they came, in nats."""
        return self.table[0]

    @property
    def entropy_after(self) -> Tensor:
        """Of softmax(logits) as they went on, in nats."""
        return self.table[1]

    @property
    def grad_steps(self) -> Tensor:
        """Adam steps taken."""
        return self.table[2]

    @property
    def temperature(self) -> Tensor:
        """What the logits were divided by; 1 where they were not."""
        return self.table[3]


class Workspace:
    """Buffers for a chunk of rows, allocated once.

    Args:
        vocab_size: V, the widest row that will come.
        max_rows: the most rows that will come at a time.
        device: where the logits live.
        max_bytes: upper limit of the buffers' size; rows beyond it go in further chunks.
    """

    def __init__(
        self,
        vocab_size: int,
        max_rows: int,
        device: torch.device,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        row_bytes = _BUFFERS * 4 * vocab_size
        self.vocab_size = vocab_size
        self.chunk_rows = max(1, min(max_rows, max_bytes // row_bytes))
        self.buffer = torch.empty(_BUFFERS, self.chunk_rows, vocab_size, device=device)
        self.device = self.buffer.device

    def rows(self, num_rows: int, vocab_size: int) -> tuple[Tensor, ...]:
        """The buffers, cut to `[num_rows, vocab_size]`; contents are arbitrary."""
        return tuple(self.buffer[:, :num_rows, :vocab_size].unbind())


def minimize_rows_(
    logits: Tensor,
    rows: Tensor,
    params: RowParams,
    stats: RowFigures,
    workspace: Workspace,
    max_grad_steps: int,
    any_adaptive: bool,
) -> None:
    """Lower the entropy of the chosen rows in place, chunk by chunk.

    Arguments are as in `minimize.minimize_entropy_`, which checks them.
    """
    for start in range(0, rows.numel(), workspace.chunk_rows):
        part = slice(start, start + workspace.chunk_rows)
        index = rows[part]
        z, *scratch = workspace.rows(index.numel(), logits.shape[1])
        torch.index_select(logits, 0, index, out=z)
        some = params[part]
        out = stats[part]
        _gradient_(z, some, out, scratch, max_grad_steps)
        if any_adaptive:
            _adaptive_temperature_(z, some, out, scratch)
        touched = (out.grad_steps > 0) | (out.temperature != 1)
        original = scratch[0]
        torch.index_select(logits, 0, index, out=original)
        torch.where(touched[:, None], z, original, out=z)
        logits.index_copy_(0, index, z)


def _sum(values: Tensor) -> Tensor:
    """Sum of each row, `[N]`; on a CPU, in an order that does not depend on N.

    There torch splits a lone long row among its threads, but not two rows. On a GPU the
    order may depend on N, and the last bits of a row on how many run beside it.
    """
    if values.shape[0] == 1:
        return values.expand(2, -1).sum(dim=1)[:1]
    return values.sum(dim=1)


def _mean(p: Tensor, values: Tensor, product: Tensor) -> Tensor:
    """Mean of `values` under `p`, `[N]`; summed plainly: a matmul may round."""
    return _sum(torch.mul(p, values, out=product))


def _softmax_(z: Tensor, y: Tensor, p: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of `z` with its entropy; fills `y` = z - max(z) and `p` = softmax(z).

    y is kept above -1e4, where p is 0 anyway, so that 0 * -inf never arises.

    Returns:
        Entropy in nats and the mean of y under p, `[N]` each.
    """
    torch.sub(z, z.amax(dim=1, keepdim=True), out=y)
    y.clamp_(min=-1e4)
    torch.exp(y, out=p)
    total = _sum(p)
    p.div_(total[:, None])
    mean_y = _mean(p, y, product)
    return total.log() - mean_y, mean_y


def _gradient_(
    z: Tensor,
    params: RowParams,
    out: RowFigures,
    scratch: list[Tensor],
    max_grad_steps: int,
) -> None:
    """EM-INF: Adam steps on H(p) + kl_weight * KL(p0 || p), each row by its own settings.

    The gradient needs no autograd: dH/dz_i = -p_i (log p_i + H), and log p_i + H is
    z_i minus its mean under p; dKL(p0 || p)/dz_i = p_i - p0_i.
    """
    y, p, p0, m, v, product = scratch
    steps_wanted = params.n_grad_steps * (1 - params.adaptive)
    running = steps_wanted > 0
    out.grad_steps.zero_()
    out.temperature.fill_(1)
    m.zero_()
    v.zero_()
    for step in range(max_grad_steps + 1):
        entropy, mean_y = _softmax_(z, y, p, product)
        if step == 0:
            p0.copy_(p)
            out.entropy_before.copy_(entropy)
            out.entropy_after.copy_(entropy)
        out.entropy_after.copy_(torch.where(running, entropy, out.entropy_after))
        # A comparison with NaN is false: such a row never runs.
        running = running & (entropy >= params.threshold) & (steps_wanted > step)
        running = running & entropy.isfinite()
        if step == max_grad_steps or (z.device.type == "cpu" and not running.any()):
            break
        gradient = y.sub_(mean_y[:, None]).mul_(p).neg_()
        pull = p.sub_(p0).mul_(params.kl_weight[:, None])
        gradient.add_(pull)
        m.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
        v.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        rate = torch.where(running, params.learning_rate, 0.0)
        rate = rate / (1 - BETA1 ** (step + 1))
        denominator = torch.div(v, 1 - BETA2 ** (step + 1), out=p).sqrt_().add_(EPSILON)
        z.sub_(torch.div(m, denominator, out=p).mul_(rate[:, None]))
        out.grad_steps.add_(running)


def _adaptive_temperature_(
    z: Tensor, params: RowParams, out: RowFigures, scratch: list[Tensor]
) -> None:
    """Divide each row by the temperature that brings its entropy down to the target.

    The target is max(target_ratio * H0, threshold).

    Newton's method on log(temperature), kept inside a bracket that halves where Newton
    leaves it; the number of rounds is fixed. Rows with H0 <= threshold keep temperature
    1. Where ties at the top hold the entropy above the target, the temperature ends at
    `MIN_TEMPERATURE`.
    """
    y, p, scaled, product, *_ = scratch
    torch.sub(z, z.amax(dim=1, keepdim=True), out=y)
    y.clamp_(min=-1e4)
    before = out.entropy_before
    target = torch.maximum(params.target_ratio * before, params.threshold)
    chosen = (params.adaptive > 0) & (before > params.threshold) & (target < before)
    low = torch.full_like(before, math.log(MIN_TEMPERATURE))
    high = torch.zeros_like(before)
    log_t = torch.zeros_like(before)
    best = torch.zeros_like(before)
    reached = torch.zeros_like(chosen)
    entropy = before
    for _ in range(TEMPERATURE_ITERATIONS):
        torch.mul(y, torch.exp(-log_t)[:, None], out=scaled)
        torch.exp(scaled, out=p)
        total = _sum(p)
        p.div_(total[:, None])
        mean = _mean(p, scaled, product)
        entropy = total.log() - mean
        # dH/dlog(T) is the variance of the scaled logits.
        slope = _mean(p, scaled.sub_(mean[:, None]).square_(), product)
        good = (entropy <= target) & (entropy >= target * (1 - TARGET_TOLERANCE))
        best = torch.where(good & ~reached, log_t, best)
        reached = reached | good
        above = entropy > target
        high = torch.where(above, torch.minimum(high, log_t), high)
        low = torch.where(above, low, torch.maximum(low, log_t))
        aim = target * (1 - TARGET_TOLERANCE / 2)
        newton = log_t + (aim - entropy) / slope
        inside = (newton > low) & (newton < high)
        log_t = torch.where(inside, newton, (low + high) / 2)
        if z.device.type == "cpu" and bool((reached | ~chosen).all()):
            break
    log_t = torch.where(reached, best, low)
    temperature = torch.where(chosen, log_t.exp(), 1.0)
    z.div_(temperature[:, None])
    after, _ = _softmax_(z, y, p, product)
    # Logits near float32's limit overflow; such a row is left alone.
    chosen = chosen & after.isfinite()
    out.temperature.copy_(torch.where(chosen, temperature, 1.0))
    out.entropy_after.copy_(torch.where(chosen, after, out.entropy_after))
