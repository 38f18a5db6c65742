# SPDX-License-Identifier: Apache-2.0
"""The supernet of DARTS-PT with the names and signatures of its code (``sota/cnn``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from darts_fast import nn as fused
from darts_fast.compat._training import OwnOptimizer
from darts_fast.compat.darts_pt.spaces import Primitives, space_of

__all__ = ["Cell", "MixedOp", "Network"]


class MixedOp(fused.MixedOp):
    """The candidates of one edge; those with weight 0 are not computed."""

    def __init__(self, C: int, stride: int, PRIMITIVES: Sequence[str]) -> None:  # noqa: N803
        super().__init__(C, stride, PRIMITIVES, zero="skip")


class Cell(fused.Cell):
    """A search cell: forward(s0, s1, weights, drop_prob=0.).

    The original takes its candidates from an attribute that it plants on every `nn.Module`; here
    they are the argument `primitives`.
    """

    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        *,
        primitives: Sequence[Sequence[str]],
    ) -> None:
        super().__init__(
            *(steps, multiplier, C_prev_prev, C_prev, C, reduction, reduction_prev),
            primitives=primitives,
            zero="skip",
        )

    def _edge(self, C: int, stride: int, primitives: Sequence[str]) -> MixedOp:
        return MixedOp(C, stride, primitives)


class Network(OwnOptimizer, fused.Network):
    """The supernet, which owns the optimizer of its weights.

    Args: as in `darts_fast.nn.Network`; primitives, a value of `spaces_dict`; args, with
    `learning_rate`, `momentum` and `weight_decay` of the optimizer.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: nn.Module,
        primitives: Primitives,
        args: Any,
        steps: int = 4,
        multiplier: int = 4,
        stem_multiplier: int = 3,
        drop_path_prob: float = 0,
    ) -> None:
        super().__init__(
            *(C, num_classes, layers, criterion, steps, multiplier, stem_multiplier),
            space=space_of(primitives),
            zero="skip",
            drop_path_prob=drop_path_prob,
        )
        self.PRIMITIVES = self.op_names = primitives
        self.num_edges, self.num_ops = self.space.num_edges, self.space.num_ops
        self._args = args
        self.reset_optimizer(args.learning_rate, args.momentum, args.weight_decay)

    def _cell(self, *arguments: Any, **named: Any) -> Cell:
        return Cell(*arguments, primitives=named["primitives"])

    def get_softmax(self) -> dict[str, Tensor]:
        """The weights of all edges before any projection, {"normal", "reduce"}: [14, ops]."""
        return {name: super(Network, self)._relaxed(name) for name in self.space.cell_types}

    def _relaxed(self, cell_type: str) -> Tensor:
        return self.get_softmax()[cell_type]

    def printing(self, logging: Any, option: str = "all") -> None:
        """Log the edge weights of "all" cell types, of "normal" or of "reduce"."""
        weights = self.edge_weights()
        for name in weights if option == "all" else [option]:
            logging.info("\n%s", weights[name].detach())

    def clip(self) -> None:
        """Make every row of the alphas a distribution: clamp to [0, 1], divide by the sum.

        A row without anything left puts all on what was largest (SmoothDARTS, Chen and Hsieh, ICML
        2020, section 3.2).
        """
        with torch.no_grad():
            for alpha in self.arch_parameters():
                largest = alpha.argmax(-1, keepdim=True)
                alpha.clamp_(0, 1)
                empty = alpha.sum(-1, keepdim=True) == 0
                alpha.scatter_add_(-1, largest, empty.to(alpha))
                alpha.div_(alpha.sum(-1, keepdim=True))

    def _fresh(self, *arguments: Any, **named: Any) -> Network:
        C, num_classes, layers, criterion, *sizes = arguments
        sizes.append(named["drop_path_prob"])
        return type(self)(C, num_classes, layers, criterion, self.op_names, self._args, *sizes)
