"""Labels of multi-token prediction and its loss, worked by hand."""

import numpy as np
import paddle
import pytest

from erniekit.losses.multi_token import count_ahead, labels_ahead, multi_token_loss

# Two samples in a row (tokens 1 2 3 4 | 5 6 7) and one place of padding; the 3 is masked.
LABELS = np.array([[2, -100, 4, -100, 6, 7, -100, -100]])
STARTS = np.array([[0, 0, 0, 0, 4, 4, 4, 7]], dtype=np.int32)


def test_labels_move_and_stay_in_their_sample():
    assert labels_ahead(LABELS, STARTS, 1).tolist() == [[-100, 4, -100, -100, 7, -100, -100, -100]]
    assert labels_ahead(LABELS, STARTS, 2).tolist() == [[4, -100, -100, -100, -100, -100, -100, -100]]
    assert (labels_ahead(LABELS, STARTS, 8) == -100).all()
    assert (labels_ahead(LABELS, STARTS, 20) == -100).all()


def test_labels_may_end_beyond_where_a_sample_ends():
    # pre-training: the last token of a row has a label, the first token of the next row
    labels = np.array([[2, 3, 4]])
    starts = np.zeros([1, 3], dtype=np.int32)
    assert labels_ahead(labels, starts, 1).tolist() == [[3, 4, -100]]


def test_positions_are_counted_over_all_micro_batches():
    assert count_ahead([(LABELS, STARTS), (LABELS[:, :4], STARTS[:, :4])], 2) == [3, 2]


def test_the_loss_is_the_mean_of_the_depths_means():
    sums = [paddle.to_tensor(6.0), paddle.to_tensor(5.0)]
    assert float(multi_token_loss(sums, [3, 2])) == pytest.approx((2.0 + 2.5) / 2)
    # the parts of two micro-batches add up to the whole
    parts = [multi_token_loss([2.0, 1.0], [3, 2]), multi_token_loss([4.0, 4.0], [3, 2])]
    assert sum(parts) == pytest.approx(2.25)
    assert float(multi_token_loss([paddle.to_tensor(6.0), paddle.to_tensor(0.0)], [3, 0])) == pytest.approx(1)
