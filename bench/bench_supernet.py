# SPDX-License-Identifier: Apache-2.0
"""The whole DARTS supernet, C = 16, 8 cells, space s5, 32x32, batch 16: forward and training step.

Eager runs the originals' own sequence of modules (`use_backend("reference")`), in NCHW as they
ship and in channels_last.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rivals import RIVALS
from torch import Tensor, nn

from darts_fast.backend import use_backend
from darts_fast.nn import build_supernet

BATCH, CHANNELS, LAYERS, SIZE = 16, 16, 8, 32


class Case:
    """One supernet in the layout of its rival, and one batch."""

    def __init__(self, rival: str, batch: int = BATCH) -> None:
        torch.manual_seed(0)
        layout = torch.contiguous_format if rival == "eager" else torch.channels_last
        self.net = build_supernet("s5", channels=CHANNELS, num_classes=10, layers=LAYERS)
        self.net.to(memory_format=layout)
        self.images = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=layout)
        self.labels = torch.arange(batch) % 10
        self.backend = "fused" if rival == "fused" else "reference"

    def forward(self) -> Tensor:
        with use_backend(self.backend):
            return self.net(self.images)

    def step(self) -> list[Tensor]:
        leaves = [*self.net.parameters(), *self.net.arch_parameters()]
        loss = nn.functional.cross_entropy(self.forward(), self.labels)
        return list(torch.autograd.grad(loss, leaves))


def multiply_adds(net: nn.Module, images: Tensor) -> float:
    """Multiply-adds of all convolutions and linear layers in one forward."""
    total = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad(), use_backend("reference"):
        net(images)
    for hook in hooks:
        hook.remove()
    return total


def assert_equal_results(rival: str) -> None:
    eager, other = Case("eager", 4), Case(rival, 4)
    torch.testing.assert_close(other.forward(), eager.forward(), rtol=1e-3, atol=1e-3)
    alphas = len(eager.net.arch_parameters())
    grads = zip(other.step()[-alphas:], eager.step()[-alphas:], strict=True)
    for actual, expected in grads:
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("rival", RIVALS)
def test_forward(measure: Callable[..., None], rival: str) -> None:
    assert_equal_results(rival)
    case = Case(rival)
    flop = 2 * multiply_adds(case.net, case.images)
    with torch.no_grad():
        measure(
            case.forward,
            group=f"supernet forward, train mode, batch {BATCH}",
            rival=rival,
            flop=flop,
            rounds=5,
        )


@pytest.mark.parametrize("rival", RIVALS)
def test_training_step(measure: Callable[..., None], rival: str) -> None:
    assert_equal_results(rival)
    case = Case(rival)
    flop = 3 * 2 * multiply_adds(case.net, case.images)
    measure(
        case.step,
        group=f"supernet forward and backward, batch {BATCH}",
        rival=rival,
        flop=flop,
        rounds=5,
    )
