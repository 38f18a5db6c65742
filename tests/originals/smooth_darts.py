# SPDX-License-Identifier: Apache-2.0
"""SmoothDARTS: the alphas become the weights themselves while they are perturbed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from originals import darts


class Network(darts.Network):
    softmaxed = False

    def _save_arch_parameters(self) -> None:
        self._saved_arch_parameters = [p.clone() for p in self._arch_parameters]

    def softmax_arch_parameters(self) -> None:
        self._save_arch_parameters()
        self.softmaxed = True
        for p in self._arch_parameters:
            p.data.copy_(functional.softmax(p, dim=-1))

    def restore_arch_parameters(self) -> None:
        for p, saved in zip(self._arch_parameters, self._saved_arch_parameters, strict=True):
            p.data.copy_(saved)
        del self._saved_arch_parameters
        self.softmaxed = False

    def perturb(self, epsilon: float) -> None:
        """SDARTS-RS: noise in a box, back on the simplex."""
        for p in self._arch_parameters:
            noisy = (p.data + torch.empty_like(p).uniform_(-epsilon, epsilon)).clamp(0.0, 1.0)
            p.data.copy_(noisy / noisy.sum(-1, keepdim=True))

    def table(self, reduction: bool) -> Tensor:
        if self.softmaxed:
            return self.alphas_reduce if reduction else self.alphas_normal
        return super().table(reduction)
