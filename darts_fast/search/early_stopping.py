# SPDX-License-Identifier: Apache-2.0
"""Early stopping of a search: it goes back to an epoch before the collapse, and ends there or goes
on with stronger regularisation.

The supernet itself goes back, so that every selection works on the network of that epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from darts_fast.search.alpha_hessian import alpha_product, largest_eigenvalue
from darts_fast.search.joint import share_loss
from darts_fast.search.loop import Loop
from darts_fast.search.stopping_rules import EigenvalueRule, SkipRule, normal_skips
from darts_fast.selection.engine.restore import untouched

__all__ = ["ADAPTED_WEIGHT_DECAY", "EarlyStopping", "dominant_eigenvalue"]

ADAPTED_WEIGHT_DECAY = 0.0243  # the largest of RobustDARTS's grid
FACTOR = 3.0
ITERATIONS = 30


def dominant_eigenvalue(loop: Loop, *, tolerance: float = 1e-3) -> float:
    """The largest eigenvalue of the Hessian of the loss of one validation batch by the architecture
    weights, with their weight decay on the diagonal, in train mode (RobustDARTS).

    The batch comes from a stream of its own, and a copy of the network in float64 is measured, so
    that the search goes on as if nothing had been. At most 30 products, two gradients each.
    """
    batch, net = loop.draw_valid(), copy.deepcopy(loop.net).double()
    images = batch.images.double()
    alphas = net.arch_parameters()
    for weight in net.parameters():
        weight.requires_grad_(False)

    def gradient() -> list[Tensor]:
        # Random operations draw the same at every call.
        with untouched(net, "batch", keep_rng=True):
            loss, _ = share_loss(net, images, batch.labels, loop.world)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, alphas, allow_unused=True, materialize_grads=True)
            else:  # the share of this process is empty
                found = tuple(torch.zeros_like(alpha) for alpha in alphas)
        loop.world.sum(found)
        return list(found)

    product = alpha_product(alphas, gradient, weight_decay=loop.config.arch_weight_decay)
    size = sum(alpha.numel() for alpha in alphas)
    return largest_eigenvalue(product, size, tolerance=tolerance, iterations=ITERATIONS)


class EarlyStopping:
    """Watches a search at the end of its epochs.

    Args:
        eigenvalue: the rule on the largest eigenvalue of the alpha-Hessian.
        skips: the rule on skip connections.
        adapt: where the eigenvalue rule says to stop, go back and go on with three times the weight
            decay, up to 0.0243; with that weight decay it stops (RobustDARTS-ADA).

    Raises:
        ValueError: no rule, or ``adapt`` without the eigenvalue rule.
    """

    def __init__(
        self,
        *,
        eigenvalue: EigenvalueRule | None = None,
        skips: SkipRule | None = None,
        adapt: bool = False,
    ) -> None:
        if eigenvalue is None and skips is None:
            raise ValueError("early stopping: needs a rule, got none")
        if adapt and eigenvalue is None:
            raise ValueError("early stopping: adapt needs the eigenvalue rule, got none")
        self.eigenvalue = eigenvalue
        self.skips = skips
        self.adapt = adapt
        self._snapshots: dict[int, dict[str, Any]] = {}

    def end_epoch(self, loop: Loop) -> None:
        """An epoch of the search is done."""
        epoch = loop.epoch
        if self._needed(epoch, epoch):
            self._snapshots[epoch] = loop.snapshot()
        target = self._by_skips(loop)
        if target is not None:
            self._back(loop, target)
            loop.stop()
            return
        target = self._by_eigenvalue(loop)
        if target is None:
            self._snapshots = {
                when: kept for when, kept in self._snapshots.items() if self._needed(when, epoch)
            }
            return
        decay = float(loop.optimizer.param_groups[0]["weight_decay"])
        self._back(loop, target)
        if not self.adapt or decay >= ADAPTED_WEIGHT_DECAY:
            loop.stop()
            return
        raised = min(FACTOR * decay, ADAPTED_WEIGHT_DECAY)
        for group in loop.optimizer.param_groups:
            group["weight_decay"] = raised
        loop.log(f"early stopping: weight decay {decay:g} becomes {raised:g}")

    def state_dict(self) -> dict[str, Any]:
        """The eigenvalues so far and the epochs to go back to; loads with ``weights_only=True``."""
        rule = self.eigenvalue
        return {
            "eigenvalue": None if rule is None else rule.state_dict(),
            "snapshots": dict(self._snapshots),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        if self.eigenvalue is not None:
            self.eigenvalue.load_state_dict(state["eigenvalue"])
        self._snapshots = dict(state["snapshots"])

    def _by_skips(self, loop: Loop) -> int | None:
        if self.skips is None:
            return None
        genotype = loop.net.genotype()
        target = self.skips.update(loop.epoch, genotype)
        if target is not None:
            loop.log(
                f"early stopping: {normal_skips(genotype)} skip connections in the normal cell"
            )
        return target

    def _by_eigenvalue(self, loop: Loop) -> int | None:
        rule = self.eigenvalue
        if rule is None or not rule.wants(loop.epoch):
            return None
        value = dominant_eigenvalue(loop)
        loop.log(f"eigenvalue {value:e}")
        loop.record({"event": "eigenvalue", "epoch": loop.epoch, "value": value})
        return rule.update(loop.epoch, value)

    def _back(self, loop: Loop, target: int) -> None:
        """To the end of that epoch; what came after it is forgotten."""
        loop.log(f"early stopping: back from epoch {loop.epoch} to epoch {target}")
        loop.record({"event": "early_stopping", "epoch": loop.epoch, "back_to": target})
        if target != loop.epoch:
            loop.restore(self._snapshots[target])
        if self.eigenvalue is not None:
            self.eigenvalue.forget_after(target)
        self._snapshots = {when: kept for when, kept in self._snapshots.items() if when <= target}

    def _needed(self, when: int, epoch: int) -> bool:
        """Whether the rules may go back to an epoch when the one after `epoch` has ended."""
        if when == epoch and self.skips is not None:
            return True
        rule = self.eigenvalue
        return rule is not None and rule.wants(when) and when > epoch - rule.span
