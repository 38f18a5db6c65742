# SPDX-License-Identifier: Apache-2.0
"""Alphas that stand for the edge weights themselves while they are perturbed (SmoothDARTS, Chen and
Hsieh, ICML 2020, section 3).
"""

from __future__ import annotations

from torch import Tensor

from darts_fast.compat.darts_pt.model_search import Network


class Softmaxed(Network):
    """Between `softmax_arch_parameters` and `restore_arch_parameters` the alphas are the weights of
    the edges, decided rows included, and no softmax is applied to them.
    """

    softmaxed = False

    def softmax_arch_parameters(self) -> None:
        """Put the edge weights in place of the alphas, which are kept."""
        self._saved_arch_parameters = [alpha.detach().clone() for alpha in self.arch_parameters()]
        self.set_arch_parameters(self.edge_weights().values())
        self.softmaxed = True

    def restore_arch_parameters(self) -> None:
        """The alphas of before, bitwise."""
        self.set_arch_parameters(self._saved_arch_parameters)
        del self._saved_arch_parameters
        self.softmaxed = False

    def get_softmax(self) -> dict[str, Tensor]:
        if not self.softmaxed:
            return super().get_softmax()
        return dict(zip(self.space.cell_types, self.arch_parameters(), strict=True))
