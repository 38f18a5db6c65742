# SPDX-License-Identifier: Apache-2.0
"""The supernet of NAS-Bench-201 with the names and signatures of the DARTS-PT code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from darts_fast import nn as fused
from darts_fast.compat._training import OwnOptimizer
from darts_fast.compat.nasbench201.genotypes import Structure
from darts_fast.compat.nasbench201.search_cells import NAS201SearchCell, edges_of
from darts_fast.nn.supernet import renamed_forward
from darts_fast.spaces import SPACES, Space

__all__ = ["TinyNetwork"]


def _space(search_space: Sequence[str], max_nodes: int) -> Space:
    """The space of these operations, the benchmark's own if they are its."""
    edges = tuple(edges_of(max_nodes))
    primitives = {"cell": (tuple(search_space),) * len(edges)}
    own = SPACES["nasbench201"]
    if (own.edges, own.primitives) == (edges, primitives):
        return own
    return Space("custom", ("cell",), primitives, edges, own.zero_rule, False)


class TinyNetwork(OwnOptimizer, fused.TinyNetwork):
    """The supernet, which owns the optimizer of its weights.

    Args: C, channels of the first of three stages; N, cells per stage; max_nodes of a cell;
    search_space, the names of the operations; args, with `learning_rate`, `momentum` and
    `weight_decay` of the optimizer; affine, track_running_stats of the batch norms in the cells.
    """

    def __init__(
        self,
        C: int,
        N: int,
        max_nodes: int,
        num_classes: int,
        criterion: nn.Module,
        search_space: Sequence[str],
        args: Any,
        affine: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        self.max_nodes = max_nodes
        self.op_names = list(search_space)
        super().__init__(
            *(C, N, num_classes, criterion),
            space=_space(search_space, max_nodes),
            affine=affine,
            track_running_stats=track_running_stats,
        )
        self.num_edge, self.num_op = self.space.num_edges, self.space.num_ops
        self._Layer = len(self.cells)
        self.edge2index = cast(NAS201SearchCell, self.cells[0]).edge2index
        self._args = args
        self.reset_optimizer(args.learning_rate, args.momentum, args.weight_decay)

    def _cell(self, C: int) -> NAS201SearchCell:
        return NAS201SearchCell(
            *(C, C, 1, self.max_nodes, self.op_names, self._affine, self._track_running_stats)
        )

    @renamed_forward
    def forward(
        self, inputs: Tensor, weights: Tensor | Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Images [N, 3, H, W] -> logits; weights [edges, ops] are used in place of its own."""
        tables = {"cell": weights} if isinstance(weights, Tensor) else weights
        return super().forward(inputs, tables)

    def get_theta(self) -> Tensor:
        """The weights of all edges, [edges, ops], on the CPU."""
        return self.edge_weights()["cell"].cpu()

    def get_message(self) -> str:
        """A line for the network and one for each cell."""
        lines = [
            f"{index:02d}/{len(self.cells):02d} :: {cell.extra_repr()}"
            for index, cell in enumerate(self.cells)
        ]
        return "\n ".join([self.extra_repr(), *lines])

    def extra_repr(self) -> str:
        return (
            f"{type(self).__name__}(C={self._C}, Max-Nodes={self.max_nodes}, N={self._layerN}, "
            f"L={self._Layer})"
        )

    def genotype(self) -> Structure:  # type: ignore[override]
        """The strongest operation of every edge."""
        strongest = self.edge_weights()["cell"].argmax(-1).tolist()
        nodes: list[list[tuple[str, int]]] = [[] for _ in range(1, self.max_nodes)]
        for (source, node), op in zip(self.space.edges, strongest, strict=True):
            nodes[node - 1].append((self.op_names[op], source))
        return Structure(nodes)

    def step(
        self,
        input: Tensor,
        target: Tensor,
        args: Any,
        shared: None = None,
        return_grad: bool = False,
    ) -> Any:
        """As `OwnOptimizer.step`; with return_grad also the clipped gradient as one vector."""
        logits, loss = super().step(input, target, args, shared)
        if not return_grad:
            return logits, loss
        gradients = [p.grad for p in self.get_weights() if p.grad is not None]
        return logits, loss, nn.utils.parameters_to_vector(gradients)

    def entropy_y_x(self, p_logit: Tensor) -> Tensor:
        """Mean entropy of the rows' softmax."""
        log_p = functional.log_softmax(p_logit, dim=1)
        return -(log_p.exp() * log_p).sum() / p_logit.shape[0]

    def printing(self, logging: Any) -> None:
        """Log the edge weights."""
        logging.info("\n%s", self.get_theta().detach())

    def save_arch_parameters(self) -> None:
        """Remember the alphas for `restore_arch_parameters`."""
        self._saved_arch_parameters = [a.detach().clone() for a in self.arch_parameters()]

    def restore_arch_parameters(self) -> None:
        """The alphas of the last `save_arch_parameters`."""
        self.set_arch_parameters(self._saved_arch_parameters)

    def new(self) -> TinyNetwork:
        """A freshly initialised network of the same class and configuration with these alphas and
        decisions.
        """
        other = type(self)(
            self._C,
            self._layerN,
            self.max_nodes,
            self._num_classes,
            self._criterion,
            self.op_names,
            self._args,
            self._affine,
            self._track_running_stats,
        )
        self._copy_architecture_to(other)
        return other
