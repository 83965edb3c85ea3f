import pytest
import torch

from em_inf.loadtests.bench_reference import AuthorsProcessor


@pytest.mark.parametrize(
    ("row", "steps", "expected"),
    [
        # The spec's golden vectors for five steps; its KL weight is 0.05, which moves
        # logits by less than the tolerance.
        (
            [3.0, 3.0, 0.0, -2.0, -20.0],
            5,
            [3.49035, 3.49035, -0.49074, -2.48847, -20.04672],
        ),
        ([6.0, 1.0, 0.0, -1.0, -3.0], 0, [6.0, 1.0, 0.0, -1.0, -3.0]),
    ],
)
def test_authors_processor_makes_the_golden_vectors(
    row: list[float], steps: int, expected: list[float]
) -> None:
    processor = AuthorsProcessor()
    with torch.no_grad():
        found = processor(torch.tensor([[1]]), torch.tensor([row]))
    assert processor.grad_steps == steps
    assert found[0].tolist() == pytest.approx(expected, abs=2e-2)


def test_steps_add_up_over_tokens() -> None:
    processor = AuthorsProcessor()
    for _ in range(3):
        processor(torch.tensor([[1]]), torch.tensor([[3.0, 3.0, 0.0, -2.0, -20.0]]))
    assert processor.grad_steps == 15
