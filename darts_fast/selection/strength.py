# SPDX-License-Identifier: Apache-2.0
"""Operation strength: what an operation contributes to the loss, to first order, of all operations
at once (after OStr-DARTS, Yang et al. 2024, arXiv 2409.14433).

Put a gate g = 1 on the contribution ``z = w op(x)`` of one operation, summed over all cells that
share its weight. Then ``dL/dg = <dL/dz, z> = w dL/dw``: one backward pass to the edge weights gives
every gate's gradient. The paper's text was not available; the variants are the usual estimates of
pruning, and their names say what they are:

``taylor``: mean over batches of ``|w dL/dw|``; ``taylor2``: mean of its square (Molchanov et al.,
ICLR 2017); ``signed``: mean of ``-w dL/dw``, the first-order change of the loss on removal;
``exact``: the change of the loss on removal itself.

At a stationary point of the architecture weights ``dL/dw`` is the same for all operations of an
edge, because ``dL/dalpha_o = w_o (g_o - sum_k w_k g_k)`` vanishes; the mean signed strength is then
a multiple of w and ranks as magnitude does. `strengths` warns where the variant ``signed`` has come
to that; the other variants take the absolute value of each batch first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from darts_fast.nn import Supernet, frozen
from darts_fast.selection.config import VARIANTS
from darts_fast.selection.engine.restore import keyed_draws, untouched
from darts_fast.selection.tables import Batch, Table, score_tables

__all__ = [
    "STATIONARY",
    "StationaryPointWarning",
    "Strengths",
    "gate_gradients",
    "ranked_shares",
    "removal_estimates",
    "stationarity",
    "strengths",
]

STATIONARY = 0.05


class StationaryPointWarning(UserWarning):
    """The signed strengths are multiples of the architecture weights."""


@dataclass(frozen=True)
class Strengths:
    """Strengths of all operations.

    Attributes:
        variant: see the module.
        tables: by cell type ``[edges, ops]`` float64, larger is stronger; 0 for weights of 0.
        weights: the edge weights they were taken at, same shapes.
        images: images seen.
    """

    variant: str
    tables: dict[str, Tensor]
    weights: dict[str, Tensor]
    images: int


def gate_gradients(
    net: Supernet,
    batches: Sequence[Batch],
    *,
    weights: Mapping[str, Tensor] | None = None,
    seed: int | None = 0,
    between: Callable[[], None] | None = None,
) -> dict[str, Tensor]:
    """``w dL/dw`` of the mean loss of every batch, one forward and one backward pass for each.

    Batch norms use batch statistics, as in the scoring of removals; only gradients of the edge
    weights are computed, and nothing of the network changes.

    Args:
        net: a supernet.
        batches: ``(images, labels)``.
        weights: edge weights by cell type to take the gradient at, default the network's own.
        seed: of noise operations, see `score_tables`.
        between: called after every batch.

    Returns:
        By cell type ``[batches, edges, ops]`` float64.

    Raises:
        ValueError: no batches.
    """
    if len(batches) == 0:
        raise ValueError("strength: batches must not be empty, got 0 batches")
    own = weights or net.edge_weights()
    tables = {name: own[name].detach().clone().requires_grad_() for name in net.space.cell_types}
    found: dict[str, list[Tensor]] = {name: [] for name in tables}
    parameter = next(net.parameters())
    for number, (images, labels) in enumerate(batches):
        images = images.to(parameter.device, parameter.dtype)
        with _quiet(net, seed, number):
            loss = functional.cross_entropy(net(images, weights=tables), labels.to(images.device))
            gradients = torch.autograd.grad(
                loss, list(tables.values()), allow_unused=True, materialize_grads=True
            )
        for (name, table), gradient in zip(tables.items(), gradients, strict=True):
            found[name].append((table * gradient).detach().double().cpu())
        if between is not None:
            between()
    return {name: torch.stack(rows) for name, rows in found.items()}


@contextmanager
def _quiet(net: Supernet, seed: int | None, batch: int) -> Iterator[None]:
    """Forwards inside leave no trace on the network, and no gradient of its weights is computed."""
    with (
        frozen(list(net.parameters())),
        untouched(net, "batch", keep_rng=seed is not None),
        keyed_draws(net, seed, batch),
    ):
        yield


def strengths(
    net: Supernet,
    batches: Sequence[Batch],
    *,
    variant: str = "taylor",
    weights: Mapping[str, Tensor] | None = None,
    seed: int | None = 0,
    between: Callable[[], None] | None = None,
) -> Strengths:
    """The strength of every operation; see the module for the variants.

    Args: as for `gate_gradients`; variant ``"exact"`` takes one pass over the batches for every
    operation, and calls `between` after every forward.

    Raises:
        ValueError: an unknown variant, or no batches.

    Warns:
        StationaryPointWarning: variant ``"signed"``, and on most edges `stationarity` is below
            5 percent.
    """
    if variant not in VARIANTS:
        raise ValueError(f"strength: variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    own = weights or net.edge_weights()
    used = {name: own[name].detach() for name in net.space.cell_types}
    images = sum(len(labels) for _, labels in batches)
    if variant == "exact":
        return Strengths(variant, _exact(net, batches, used, seed, between), used, images)
    gates = gate_gradients(net, batches, weights=weights, seed=seed, between=between)
    if variant == "signed":
        _warn_if_stationary(gates, used)
    reduce = {
        "taylor": lambda rows: rows.abs().mean(0),
        "taylor2": lambda rows: rows.square().mean(0),
        "signed": lambda rows: -rows.mean(0),
    }[variant]
    tables = {name: reduce(rows) for name, rows in gates.items()}
    return Strengths(variant, tables, used, images)


def _exact(
    net: Supernet,
    batches: Sequence[Batch],
    weights: Mapping[str, Tensor],
    seed: int | None,
    between: Callable[[], None] | None,
) -> dict[str, Tensor]:
    """The rise of the loss on the removal of every operation, one pass for each."""
    tables: list[Table] = [weights]
    for name, own in weights.items():
        for place in range(own.numel()):
            table = own.clone()
            table.view(-1)[place] = 0
            tables.append({**weights, name: table})
    loss = score_tables(net, batches, tables, seed=seed, between=between).loss
    rises = (loss[1:] - loss[0]).split([own.numel() for own in weights.values()])
    pairs = zip(weights.items(), rises, strict=True)
    return {name: rise.view(own.shape) for (name, own), rise in pairs}


def stationarity(gates: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """Per edge with a choice, over all cell types: ``sum w |g - sum w g| / sum w |g|``, with g the
    mean ``dL/dw``. The numerator is the size of ``dL/dalpha``.

    0 means that signed strength is a multiple of the weights.

    Args:
        gates: ``w dL/dw`` by cell type, ``[batches, edges, ops]``.
        weights: ``[edges, ops]``.
    """
    found = []
    for name, rows in gates.items():
        for gate, w in zip(rows.mean(0), weights[name].double().cpu(), strict=True):
            if (w > 0).sum() > 1:
                found.append((gate - w * gate.sum()).abs().sum() / gate.abs().sum())
    return torch.stack(found).nan_to_num(0.0) if found else torch.zeros(0, dtype=torch.float64)


def _warn_if_stationary(gates: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    found = stationarity(gates, weights)
    if len(found) and float(found.median()) < STATIONARY:
        warnings.warn(
            "strength: the architecture weights are near a stationary point, where dL/dw is the "
            "same for all operations of an edge, so variant signed ranks them as their weights do; "
            "take variant taylor or exact",
            StationaryPointWarning,
            stacklevel=3,
        )


def removal_estimates(
    net: Supernet, batches: Sequence[Batch], *, seed: int | None = 0
) -> dict[str, Tensor]:
    """First-order estimate of the rise of the loss on every removal, by cell type
    ``[edges, ops]``: ``-w dL/dw``, one forward and backward pass per batch.
    """
    gates = gate_gradients(net, batches, seed=seed)
    return {name: -rows.mean(0) for name, rows in gates.items()}


def ranked_shares(estimates: Sequence[float], *, largest: bool) -> list[float]:
    """Shares of an error rate that fall with the rank of an estimate as 1, 1/2, 1/3, ..., in sum 1.

    largest: whether rank 1 is the largest estimate.
    """
    ranks = torch.tensor(list(estimates)).argsort(descending=largest, stable=True).argsort()
    shares = 1.0 / (ranks.double() + 1)
    normalised: list[float] = (shares / shares.sum()).tolist()
    return normalised
