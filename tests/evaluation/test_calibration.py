"""What becomes of a calibration answer whose figures did not come back."""

import pytest

from em_inf.evaluation.calibration import _tempered
from em_inf.evaluation.decoding import UnmatchedError
from em_inf.evaluation.requests import Reply


def test_answer_that_lost_its_entropies_is_a_sentence_and_no_traceback() -> None:
    reply = Reply(tokens=2, top=((-0.1, -2.4), (-0.2, -1.8)), entropies=())
    with pytest.raises(UnmatchedError, match="the server lost an answer's entropies"):
        _tempered(reply, 0.7)


def test_token_without_an_entropy_is_left_out() -> None:
    top = ((-0.1, -2.4), (-0.2, -1.8))
    reply = Reply(tokens=2, top=top, entropies=(0.3, None))
    assert _tempered(reply, 1.0).tokens == 1
