# SPDX-License-Identifier: Apache-2.0
"""One s5 edge, all seven candidates: `functional.mixed_op` against the modules of `MixedOp`.

Batch 64, at the three sizes of a DARTS network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from rivals import RIVALS, layout
from torch import Tensor
from work import count_work

from darts_fast.backend import use_backend
from darts_fast.functional import Candidate, Norm, mixed_op
from darts_fast.nn import MixedOp
from darts_fast.nn.plan import describe
from darts_fast.spaces import get_space

PRIMITIVES = get_space("s5").primitives["normal"][0]


class Case:
    """One edge as modules and as candidates, its weights, and the gradient that arrives."""

    def __init__(self, rival: str, channels: int, size: int, batch: int) -> None:
        torch.manual_seed(0)
        shape = (batch, channels, size, size)
        self.edge = MixedOp(channels, 1, PRIMITIVES).to(memory_format=layout(rival))
        self.x = torch.randn(shape).to(memory_format=layout(rival)).requires_grad_()
        self.grad = torch.randn(shape).to(memory_format=layout(rival))
        self.weights = torch.rand(len(PRIMITIVES)).softmax(0).requires_grad_()
        self.fused = rival == "fused"

    def forward(self) -> Tensor:
        if self.fused:
            return mixed_op(self.x, self.weights, self.candidates).output
        with use_backend("reference"):
            return self.edge(self.x, self.weights)

    def step(self) -> tuple[Tensor, ...]:
        leaves = [self.x, self.weights, *self.edge.parameters()]
        return torch.autograd.grad(self.forward(), leaves, self.grad)

    @functools.cached_property
    def candidates(self) -> list[Candidate]:
        found = []
        for op in self.edge._ops:
            parts = describe(op)
            assert parts is not None
            weights = tuple(conv.weight for conv in parts.convolutions)
            norms = tuple(Norm(eps=norm.eps) for norm in parts.norms)
            found.append(Candidate(parts.kind, weights, norms, max(parts.dilation, 1)))
        return found


def assert_equal_results(rival: str, channels: int, size: int) -> None:
    eager, other = Case("eager", channels, size, 4), Case(rival, channels, size, 4)
    torch.testing.assert_close(other.forward(), eager.forward(), rtol=1e-4, atol=1e-4)
    for actual, expected in zip(other.step(), eager.step(), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
@pytest.mark.parametrize(("channels", "size"), [(16, 32), (32, 16), (64, 8)])
@pytest.mark.parametrize("what", ["forward", "step"])
def test_edge(
    measure: Callable[..., None], rival: str, what: str, channels: int, size: int, batch: int
) -> None:
    assert_equal_results(rival, channels, size)
    case = Case(rival, channels, size, batch)
    work = count_work(case.edge, case.x[:1], case.weights).times(batch)
    step = what == "step"
    with torch.set_grad_enabled(step):
        measure(
            case.step if step else case.forward,
            group=f"edge {what}, C = {channels}, {size}x{size}, batch {batch}",
            rival=rival,
            flop=work.step_flop if step else work.forward_flop,
            done=work.step_done if step else work.forward_flop,
            nbytes=work.step_bytes if step else work.forward_bytes,
            headline=step,
        )
