# SPDX-License-Identifier: Apache-2.0
"""node_sum against the sum of BatchNorm modules: the last node of a DARTS cell, all its edges.

35 maps (5 edges of 7 operations, 5 of them identities), C = 16 at 32x32. The op is bound by memory:
read `gbytes_per_s` against the machine's copy rate, `gflops` only for completeness.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rivals import RIVALS, layout
from torch import Tensor, nn

from darts_fast.functional import node_sum

TERMS, EDGES, CHANNELS, SIZE = 35, 5, 16, 32
NORMS = ["none" if k % 7 == 2 else "batch" for k in range(TERMS)]


class Case:
    """One node: maps, weights, BatchNorm modules and the gradient that arrives."""

    def __init__(self, batch: int, rival: str) -> None:
        torch.manual_seed(0)
        shape = (batch, CHANNELS, SIZE, SIZE)
        self.maps = [
            torch.randn(shape).to(memory_format=layout(rival)).requires_grad_()
            for _ in range(TERMS)
        ]
        self.grad = torch.randn(shape).to(memory_format=layout(rival))
        self.weights = torch.rand(TERMS).softmax(0).requires_grad_()
        self.norms = [
            nn.Identity() if kind == "none" else nn.BatchNorm2d(CHANNELS, affine=False)
            for kind in NORMS
        ]
        self.fused = rival == "fused"

    def forward(self) -> Tensor:
        if self.fused:
            return node_sum(self.maps, self.weights, NORMS).node
        terms = zip(self.weights, self.norms, self.maps, strict=True)
        return sum(w * norm(y) for w, norm, y in terms)

    def forward_and_backward(self) -> tuple[Tensor, ...]:
        leaves = [*self.maps, self.weights]
        return torch.autograd.grad(self.forward(), leaves, self.grad)


def assert_equal_results(batch: int, rival: str) -> None:
    eager, other = Case(batch, "eager"), Case(batch, rival)
    torch.testing.assert_close(other.forward(), eager.forward(), rtol=1e-4, atol=1e-5)
    grads = zip(other.forward_and_backward(), eager.forward_and_backward(), strict=True)
    for actual, expected in grads:
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


# Operations and maps moved at the least, per element of a map and term.
FORWARD_FLOP, FORWARD_MAPS = 7, 2 * TERMS + 1
STEP_FLOP, STEP_MAPS = 16, 5 * TERMS + 3


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [16, 64])
def test_forward(measure: Callable[..., None], rival: str, batch: int) -> None:
    assert_equal_results(2, rival)
    case = Case(batch, rival)
    elements = case.grad.numel()
    with torch.no_grad():
        measure(
            case.forward,
            group=f"node_sum forward, train mode, batch {batch}",
            rival=rival,
            flop=FORWARD_FLOP * TERMS * elements,
            nbytes=FORWARD_MAPS * elements * 4,
        )


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [16, 64])
def test_forward_and_backward(measure: Callable[..., None], rival: str, batch: int) -> None:
    assert_equal_results(2, rival)
    case = Case(batch, rival)
    elements = case.grad.numel()
    measure(
        case.forward_and_backward,
        group=f"node_sum forward and backward, batch {batch}",
        rival=rival,
        flop=STEP_FLOP * TERMS * elements,
        nbytes=STEP_MAPS * elements * 4,
    )
