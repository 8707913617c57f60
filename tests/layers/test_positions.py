"""Learned position grids brought to another size."""

from __future__ import annotations

import torch
from torch.nn import functional

from ovsl.layers import interpolate_positions


def test_the_offset_follows_the_factor_not_the_size() -> None:
    positions = torch.randn(17, 8, generator=torch.Generator().manual_seed(0))
    found = interpolate_positions(positions, (5, 3), "offset")
    assert found.shape == (16, 8)
    torch.testing.assert_close(found[:1], positions[:1])
    maps = positions[1:].T.reshape(1, 8, 4, 4)
    by_factor = functional.interpolate(maps, scale_factor=(5.1 / 4, 3.1 / 4), mode="bicubic")
    torch.testing.assert_close(found[1:], by_factor.flatten(2)[0].T)
    assert not torch.allclose(found, interpolate_positions(positions, (5, 3)), atol=1e-3)


def test_as_many_cells_as_were_learned_stay_as_they_are_under_the_offset_alone() -> None:
    positions = torch.randn(17, 8, generator=torch.Generator().manual_seed(0))
    for mode in ("bicubic", "offset"):
        assert interpolate_positions(positions, (4, 4), mode) is positions
    assert interpolate_positions(positions, (2, 8), "offset") is positions
    assert not torch.equal(interpolate_positions(positions, (2, 8)), positions)
