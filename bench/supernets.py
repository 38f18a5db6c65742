# SPDX-License-Identifier: Apache-2.0
"""The supernets that are timed, one per rival, and the proof that all rivals compute the same.

Eager runs the originals' own sequence of modules (`use_backend("reference")`), in NCHW as they
ship and in channels_last.
"""

from __future__ import annotations

import functools

import torch
from rivals import backend, layout
from torch import Tensor, nn
from work import Work, count_work

from darts_fast.backend import use_backend
from darts_fast.nn import build_supernet, frozen

CHANNELS, SIZE, CLASSES = 16, 32, 10
LAYERS = {"s5": 8, "nasbench201": 5}  # of the latter per stage


class SupernetCase:
    """One supernet in the layout of its rival, and one batch.

    Args: projected, whether every other edge is fixed to one operation, each in turn.
    """

    def __init__(
        self, rival: str, batch: int, space: str = "s5", *, projected: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.net = build_supernet(
            space, channels=CHANNELS, num_classes=CLASSES, layers=LAYERS[space]
        )
        if projected:
            for cell_type in self.net.space.cell_types:
                for i, edge in enumerate(range(0, self.net.space.num_edges, 2)):
                    self.net.projection.project_op(cell_type, edge, i % self.net.space.num_ops)
        self.net.to(memory_format=layout(rival))
        self.images = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=layout(rival))
        self.labels = torch.arange(batch) % CLASSES
        self._backend = backend(rival)
        # Once, as an optimizer has them: the walk over thousands of modules is no part of a step.
        self._alphas = self.net.arch_parameters()
        self._weights = list(self.net.parameters())

    def forward(self) -> Tensor:
        with use_backend(self._backend):
            return self.net(self.images)

    def step(self) -> list[Tensor]:
        """The gradients of all weights and alphas."""
        return self._gradients([*self._weights, *self._alphas])

    def alpha_step(self) -> list[Tensor]:
        """The gradients of the alphas alone, as the architecture step of the search takes them."""
        with frozen(self._weights):
            return self._gradients(self._alphas)

    def work(self) -> Work:
        return count_work(self.net, self.images[:1]).times(len(self.images))

    def _gradients(self, leaves: list[nn.Parameter]) -> list[Tensor]:
        # Of a projected network some weights take no part.
        loss = nn.functional.cross_entropy(self.forward(), self.labels)
        return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


@functools.cache
def assert_equal_results(
    rival: str, space: str = "s5", *, projected: bool = False, capability: str | None = None
) -> None:
    """The rival's logits in both modes and its gradients are those of eager, on a small batch.

    Once per process; `capability` names the kernels in use, where a benchmark changes them.
    """
    eager, other = (SupernetCase(name, 4, space, projected=projected) for name in ("eager", rival))
    torch.testing.assert_close(other.forward(), eager.forward(), rtol=1e-3, atol=1e-3)
    for gradients in (SupernetCase.step, SupernetCase.alpha_step):
        for actual, expected in zip(gradients(other), gradients(eager), strict=True):
            # As vectors: a ReLU that flips on the last bit changes single entries by more.
            assert (actual - expected).norm() <= 0.05 * expected.norm()
    with torch.no_grad():
        for case in (eager, other):
            case.net.eval()
        torch.testing.assert_close(other.forward(), eager.forward(), rtol=1e-3, atol=1e-3)
