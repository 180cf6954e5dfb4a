"""The training images nearest to one."""

from __future__ import annotations

import numpy as np

from training.neighbours import nearest


def test_the_image_itself_is_left_out_and_the_next_come_in_order() -> None:
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(50, 6)).astype(np.float32)
    found = nearest(bank[7], bank, 3, leave_out=(7,))
    assert 7 not in {its.row for its in found}
    assert [its.similarity for its in found] == sorted(
        (its.similarity for its in found), reverse=True
    )
    assert nearest(bank[7], bank, 1)[0].row == 7


def test_a_bank_smaller_than_what_is_asked_for_gives_all() -> None:
    bank = np.eye(3, dtype=np.float32)
    assert len(nearest(bank[0], bank, 5, leave_out=(0,))) == 2
