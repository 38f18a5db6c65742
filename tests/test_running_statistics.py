# SPDX-License-Identifier: Apache-2.0
"""update_running_statistics against the batch norms of torch, and its native op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from darts_fast import _ops
from darts_fast.functional import update_running_statistics

CHANNELS = 6


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)


def run(norms: list[nn.BatchNorm2d], maps: list[Tensor]) -> None:
    mean, var = (torch.stack(values) for values in zip(*map(moments, maps), strict=True))
    update_running_statistics(norms, mean, var, maps[0].numel() // CHANNELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momenta", [(0.1, 0.1, 0.1), (0.1, None, 0.25)])
def test_statistics_move_as_in_torch(dtype, momenta):
    norms, twins = (
        [nn.BatchNorm2d(CHANNELS, momentum=momentum).to(dtype) for momentum in momenta]
        for _ in range(2)
    )
    untracked = nn.BatchNorm2d(CHANNELS, track_running_stats=False)
    for _ in range(3):
        maps = [torch.randn(3, CHANNELS, 4, 4, dtype=dtype) * 2 + 5 for _ in range(4)]
        run([norms[0], untracked, *norms[1:]], maps)
        for twin, x in zip(twins, [maps[0], *maps[2:]], strict=True):
            twin(x)
    for norm, twin in zip(norms, twins, strict=True):
        torch.testing.assert_close(norm.state_dict(), twin.state_dict())
        assert norm.num_batches_tracked == 3


def test_statistics_of_another_precision_than_the_maps():
    # As under a network in float64 whose maps come in float32; nothing native for that.
    norm, twin = (nn.BatchNorm2d(CHANNELS).double() for _ in range(2))
    x = torch.randn(4, CHANNELS, 3, 3)
    run([norm], [x])
    twin(x.double())
    torch.testing.assert_close(norm.state_dict(), twin.state_dict(), rtol=1e-6, atol=1e-6)


def test_one_value_keeps_its_biased_variance():
    norm = nn.BatchNorm2d(CHANNELS)
    update_running_statistics([norm], torch.ones(1, CHANNELS), torch.ones(1, CHANNELS), 1)
    torch.testing.assert_close(norm.running_var, torch.ones(CHANNELS))
    torch.testing.assert_close(norm.running_mean, torch.full((CHANNELS,), 0.1))


def test_without_values_only_the_counter_moves():
    norm = nn.BatchNorm2d(CHANNELS)
    update_running_statistics([norm], torch.zeros(1, CHANNELS), torch.ones(1, CHANNELS), 0)
    assert norm.num_batches_tracked == 1
    assert torch.equal(norm.running_mean, torch.zeros(CHANNELS))
    assert torch.equal(norm.running_var, torch.ones(CHANNELS))


def test_no_norm_that_tracks():
    untracked = nn.BatchNorm2d(CHANNELS, track_running_stats=False)
    update_running_statistics([untracked], torch.zeros(1, CHANNELS), torch.ones(1, CHANNELS), 9)


def arguments(norms: int = 2, channels: int = CHANNELS) -> list[object]:
    return [
        [torch.zeros(channels) for _ in range(norms)],
        [torch.ones(channels) for _ in range(norms)],
        [torch.tensor(0), torch.empty(0)][:norms],
        torch.randn(norms, channels),
        torch.rand(norms, channels),
        [0.1] * norms,
        8,
    ]


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (5, [0.1], ValueError, "one entry per norm, got 2, 2, 2 and 1"),
        (3, torch.zeros(3, CHANNELS), ValueError, r"mean must have shape \[2, C\], got \[3, 6\]"),
        (4, torch.zeros(2, 5), ValueError, r"var must have shape \[2, 6\], got \[2, 5\]"),
        (0, [torch.zeros(CHANNELS), torch.zeros(4)], ValueError, "running_means must have shape"),
        (1, [torch.zeros(CHANNELS).double()] * 2, TypeError, "running_vars must have the dtype"),
        (0, [torch.zeros(2 * CHANNELS)[::2]] * 2, ValueError, "statistics must be contiguous"),
        (2, [torch.zeros(())] * 2, ValueError, "tracked must be int64 counters or empty"),
        (5, [0.1, float("nan")], ValueError, "needs the counter of its norm, got none for norm 1"),
    ],
)
def test_errors_of_the_op(place, value, error, message):
    given = arguments()
    given[place] = value
    with pytest.raises(error, match=f"move_running_statistics: .*{message}"):
        _ops.move_running_statistics(*given)
    # Nothing is moved by a call that fails.
    assert given[2][0] == 0


def test_opcheck():
    torch.library.opcheck(_ops.move_running_statistics, arguments())
