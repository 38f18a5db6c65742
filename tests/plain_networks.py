# SPDX-License-Identifier: Apache-2.0
"""Supernets with the names and signatures of the originals, on the plain modules of
tests/originals.
"""

from __future__ import annotations

from argparse import Namespace
from collections import namedtuple
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from originals import darts, darts_pt, pc_darts
from torch import Tensor, nn

Genotype = namedtuple("Genotype", "normal normal_concat reduce reduce_concat")


def strongest(table: Tensor, names: Sequence[str]) -> list[tuple[str, int]]:
    """For each node the two edges with the strongest operation that is not none."""
    allowed = [k for k, name in enumerate(names) if name != "none"]
    cell, first, states = [], 0, 2
    while first < len(table):
        rows = table[first : first + states, allowed]
        for edge in rows.amax(1).argsort(descending=True)[:2].tolist():
            cell.append((names[allowed[int(rows[edge].argmax())]], edge))
        first, states = first + states, states + 1
    return cell


def genotype_of(net: Any, tables: Sequence[Tensor]) -> Genotype:
    normal, reduce = (strongest(table.detach(), net._names) for table in tables)
    concat = range(2, 2 + net._steps)
    return Genotype(normal, concat, reduce, concat)


class Network(darts.Network):
    def genotype(self) -> Genotype:
        return genotype_of(self, [self.table(False), self.table(True)])


class PartialNetwork(pc_darts.Network):
    def genotype(self) -> Genotype:
        tables = []
        for reduction, betas in ((False, self.betas_normal), (True, self.betas_reduce)):
            sizes = [2, 3, 4, 5][: self._steps]
            edges = torch.cat([part.softmax(0) for part in betas.split(sizes)])
            tables.append(self.table(reduction) * edges[:, None])
        return genotype_of(self, tables)


class Trained(nn.Module):
    """A network that owns the optimizer of its weights."""

    _criterion: nn.Module

    def reset_optimizer(self, lr: float, momentum: float, weight_decay: float) -> None:
        settings = {"momentum": momentum, "weight_decay": weight_decay}
        self.optimizer = torch.optim.SGD(self.parameters(), lr, **settings)

    def _loss(self, input: Tensor, target: Tensor, return_logits: bool = False) -> Any:
        logits = self(input)
        loss = self._criterion(logits, target)
        return (loss, logits) if return_logits else loss

    def step(self, input: Tensor, target: Tensor, args: Namespace, shared: Any = None) -> Any:
        loss, logits = self._loss(input, target, return_logits=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), args.grad_clip)
        self.optimizer.step()
        return logits, loss

    def set_arch_parameters(self, values: Iterable[Tensor]) -> None:
        for alpha, value in zip(self.arch_parameters(), values, strict=True):
            alpha.data.copy_(value)


class DartsNetworkProj(Trained, darts_pt.DartsNetworkProj):
    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: nn.Module,
        primitives: dict[str, list[list[str]]],
        args: Namespace,
        *sizes: int,
    ) -> None:
        names = primitives["primitives_normal"][0]
        super().__init__(C, num_classes, layers, criterion, *sizes, names=names)
        self.reset_optimizer(args.learning_rate, args.momentum, args.weight_decay)

    def genotype(self) -> Genotype:
        return genotype_of(self, [self.get_projected_weights(k) for k in ("normal", "reduce")])


class SDartsNetworkProj(DartsNetworkProj, darts_pt.SDartsNetwork):
    pass
