# SPDX-License-Identifier: Apache-2.0
"""conv_blocks against modules: the first blocks of the four convolutions of one s5 edge.

sep 3x3, sep 5x5, dil 3x3 and dil 5x5 of one state, batch 16, at the three sizes of a DARTS network.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rivals import RIVALS, layout
from torch import Tensor, nn

from darts_fast.functional import conv_blocks

BATCH = 16
KERNELS = ((3, 1), (5, 1), (3, 2), (5, 2))  # size, dilation


class Case:
    """One state, four branches as modules and as weights, the gradients that arrive."""

    def __init__(self, channels: int, size: int, rival: str) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(BATCH, channels, size, size).to(memory_format=layout(rival))
        self.x.requires_grad_()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(
                    *(channels, channels, kernel),
                    padding=dilation * (kernel - 1) // 2,
                    dilation=dilation,
                    groups=channels,
                    bias=False,
                ),
                nn.Conv2d(channels, channels, 1, bias=False),
            )
            for kernel, dilation in KERNELS
        ).to(memory_format=layout(rival))
        # Drawn before the layout, which would change the order of the draws.
        self.grads = [torch.randn(self.x.shape).to(memory_format=layout(rival)) for _ in KERNELS]
        self.fused = rival == "fused"

    def forward(self) -> list[Tensor]:
        if not self.fused:
            return [branch(self.x) for branch in self.branches]
        return conv_blocks(
            [self.x],
            [branch[1].weight for branch in self.branches],
            [branch[2].weight for branch in self.branches],
            sources=[0] * len(KERNELS),
            dilations=[dilation for _, dilation in KERNELS],
        ).outputs

    def forward_and_backward(self) -> tuple[Tensor, ...]:
        leaves = [self.x, *self.branches.parameters()]
        return torch.autograd.grad(self.forward(), leaves, self.grads)


def assert_equal_results(channels: int, size: int, rival: str) -> None:
    eager, other = Case(channels, size, "eager"), Case(channels, size, rival)
    grads = zip(other.forward_and_backward(), eager.forward_and_backward(), strict=True)
    for actual, expected in grads:
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize(("channels", "size"), [(16, 32), (32, 16), (64, 8)])
def test_forward_and_backward(
    measure: Callable[..., None], rival: str, channels: int, size: int
) -> None:
    assert_equal_results(channels, size, rival)
    case = Case(channels, size, rival)
    taps = sum(kernel**2 for kernel, _ in KERNELS)
    multiply_adds = BATCH * size**2 * channels * (taps + len(KERNELS) * channels)
    measure(
        case.forward_and_backward,
        group=f"conv_blocks forward and backward, C = {channels}, {size}x{size}, batch {BATCH}",
        rival=rival,
        flop=3 * 2 * multiply_adds,
        rounds=15,
    )
