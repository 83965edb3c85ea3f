"""The one form of the figures: named columns, bytes, cutting, joining and counting."""

import numpy as np
import pytest
import torch

from em_inf.logits_processors.figures import (
    BYTES_PER_TOKEN,
    COLUMNS,
    Figures,
    mean_of_known,
)
from em_inf.logits_processors.reference import RowFigures

NAN = float("nan")


def of(*tokens: tuple[float, float, float, float]) -> Figures:
    """Figures of tokens given as their columns."""
    return Figures(np.array(tokens, np.float32).reshape(-1, len(COLUMNS)).T)


def test_columns_are_the_same_by_name_in_the_kernels_table_and_on_the_way() -> None:
    table = torch.arange(float(len(COLUMNS))).reshape(-1, 1)
    for place, name in enumerate(COLUMNS):
        assert getattr(RowFigures(table), name).tolist() == [place]
        assert getattr(Figures(table.numpy()), name).tolist() == [place]


def test_figures_survive_the_way_through_bytes_at_their_stated_size() -> None:
    figures = of((2.0, 1.5, 5, 1), (0.5, NAN, 0, 0.5), (1 / 3, 1e-38, 64, 1))
    data = figures.to_bytes()
    assert len(data) == 3 * BYTES_PER_TOKEN
    assert np.array_equal(Figures.from_bytes(data).table, figures.table, equal_nan=True)
    assert len(Figures.from_bytes(b"")) == 0
    with pytest.raises(ValueError, match="reshape"):
        Figures.from_bytes(data[:-4])


def test_cutting_drops_what_was_not_sent_and_marks_what_was_not_recorded() -> None:
    figures = of((1, 1, 1, 1), (2, 2, 2, 1))
    assert figures.cut(1).entropy_before.tolist() == [1]
    longer = figures.cut(4)
    assert longer.num_recorded == 2
    assert np.isnan(longer.table[:, 2:]).all()
    assert len(Figures.none().cut(3)) == 3


def test_tokens_count_as_minimized_by_either_method() -> None:
    figures = of((1, 1, 0, 1), (1, 0.5, 7, 1), (1, 0.5, 0, 0.7), (NAN,) * 4)
    assert (figures.num_minimized, figures.num_recorded) == (2, 3)
    assert figures.num_grad_steps == 7


def test_row_that_was_not_finite_is_recorded_and_has_no_entropy() -> None:
    figures = of((NAN, NAN, 0, 1), (1, 1, 0, 1))
    assert figures.num_recorded == 2
    assert mean_of_known(figures.entropy_before) == 1
    assert mean_of_known(of((NAN, NAN, 0, 1)).entropy_before) is None


def test_sums_and_means_are_taken_in_double_precision() -> None:
    many = Figures(np.full((len(COLUMNS), 3_000_001), 64.1, np.float32))
    assert mean_of_known(many.entropy_before) == pytest.approx(float(np.float32(64.1)))
    odd = Figures(np.full((len(COLUMNS), 2_000_001), 17, np.float32))
    assert odd.num_grad_steps == 17 * 2_000_001
