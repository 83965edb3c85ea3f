"""Both methods written a second time, slowly, to hold `logits_processors` against.

EM-INF as the authors' code does it: autograd on the padded entropy plus forward KL, and
torch's Adam, one row at a time, in the dtype of the row. Adaptive temperature as a plain
bisection in float64. Nothing here is shared with the code under test.

Source: arXiv 2505.15134, section 4 and Algorithm 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ENTROPY_PAD = 1e-12
LOWEST_TEMPERATURE = 0.01


@dataclass(frozen=True)
class Descent:
    """What EM-INF did to one row.

    Attributes:
        logits: [V], the row afterwards.
        steps: Adam steps taken.
        entropies: nats, before the first step and after each.
    """

    logits: Tensor
    steps: int
    entropies: list[float]


def em_inf(
    row: Tensor,
    n_grad_steps: int,
    learning_rate: float,
    threshold: float,
    kl_weight: float,
) -> Descent:
    """Run the authors' loop on one row; masked entries take no part and stay masked.

    Args:
        row: [V] float32 or float64, may hold -inf.
        n_grad_steps: at most so many steps.
        learning_rate: Adam's.
        threshold: nats; a step is taken only where the entropy is not below it.
        kl_weight: weight of KL(p0 || p).
    """
    allowed = row > -torch.inf
    z = row[allowed].clone().requires_grad_(True)
    first = torch.softmax(z, dim=0).detach()
    adam = torch.optim.Adam([z], lr=learning_rate)
    entropies = []
    steps = 0
    while True:
        p = torch.softmax(z, dim=0)
        entropy = -(p * torch.log(p + ENTROPY_PAD)).sum()
        entropies.append(entropy.item())
        if entropy < threshold or steps == n_grad_steps:
            break
        log_p = torch.log_softmax(z, dim=0)
        kl = torch.nn.functional.kl_div(log_p, first, reduction="sum")
        adam.zero_grad()
        (entropy + kl_weight * kl).backward()
        adam.step()
        steps += 1
    logits = row.clone()
    logits[allowed] = z.detach()
    return Descent(logits, steps, entropies)


def entropy_of(rows: Tensor) -> Tensor:
    """Entropy of softmax over the last dimension, in nats and float64."""
    log_p = torch.log_softmax(rows.double(), dim=-1)
    return -(log_p.exp() * log_p.clamp(min=-1e300)).sum(dim=-1)


def softmax_of(rows: Tensor) -> Tensor:
    """Softmax over the last dimension in float64."""
    return torch.softmax(rows.double(), dim=-1)


def temperature_for(row: Tensor, entropy: float) -> float:
    """The temperature in [0.01, 1] at which softmax(row / temperature) has `entropy`.

    Args:
        row: [V], may hold -inf.
        entropy: nats; the end of the range that comes nearest where it is out of reach.
    """
    z = row.double()
    low, high = LOWEST_TEMPERATURE, 1.0
    if float(entropy_of(z / low)) >= entropy:
        return low
    if float(entropy_of(z)) <= entropy:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        if float(entropy_of(z / middle)) > entropy:
            high = middle
        else:
            low = middle
    return low
