"""Random translations."""

from __future__ import annotations

import torch

from robustkit import streams
from robustkit.defenses.augment import shifted


def test_each_image_is_moved_whole_and_zeros_come_in() -> None:
    x = torch.arange(1.0, 2 * 6 * 5 + 1).view(1, 2, 6, 5).repeat(300, 1, 1, 1)
    found = shifted(x, streams.row_keys(0, "test", torch.arange(300)), 2)
    wide = torch.nn.functional.pad(x[0], (4, 4, 4, 4))
    moves = {wide[:, 4 - down : 10 - down, 4 - right : 9 - right]: (down, right) for down in range(-2, 3) for right in range(-2, 3)}
    made = [{move for candidate, move in moves.items() if torch.equal(image, candidate)} for image in found]
    assert all(len(fitting) == 1 for fitting in made)
    assert set.union(*made) == set(moves.values())


def test_the_draw_depends_on_the_key_only() -> None:
    x, keys = torch.rand(40, 1, 8, 8), streams.row_keys(0, "test", torch.arange(40))
    where = torch.tensor([7, 3, 31])
    assert torch.equal(shifted(x, keys, 1)[where], shifted(x[where], keys[where], 1))
