# SPDX-License-Identifier: Apache-2.0
"""The analyses of DARTS-PT: is the weight of an operation its worth, and why not?

``compare_strength``: architecture weights beside what removals cost (figure 2).
``skip_weight``, ``skip_points``, ``skip_gap``: why skip connections gain weight (section 4.1,
proposition 1 and figure 3). ``select_copies``: what selections find on snapshots of a search
(figure 4).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor, nn

from darts_fast.nn import Supernet
from darts_fast.selection.engine.restore import keyed_draws, untouched
from darts_fast.selection.magnitude import magnitude_weights
from darts_fast.selection.progressive import ProgressiveSelection
from darts_fast.selection.scores import removal_scores
from darts_fast.selection.strength import strengths
from darts_fast.selection.tables import Batch, Score, score_tables
from darts_fast.spaces import Genotype

__all__ = [
    "EdgeStrengths",
    "SkipPoint",
    "agreement",
    "compare_strength",
    "select_copies",
    "skip_gap",
    "skip_points",
    "skip_weight",
]

SKIP = "skip_connect"


@dataclass(frozen=True)
class EdgeStrengths:
    """One edge: three opinions about its operations, each ``[ops]``.

    Attributes:
        cell_type, edge, ops: which edge, and the names of its operations.
        weights: softmax of alpha.
        loss: rise of the loss on removal, nats.
        accuracy: accuracy lost on removal, percentage points.
        taylor: first-order strength.
    """

    cell_type: str
    edge: int
    ops: tuple[str, ...]
    weights: list[float]
    loss: list[float]
    accuracy: list[float]
    taylor: list[float]


def compare_strength(
    net: Supernet,
    batches: Sequence[Batch],
    *,
    seed: int = 0,
    between: Callable[[], None] | None = None,
) -> list[EdgeStrengths]:
    """Architecture weights beside strengths, for every edge of every cell type.

    Takes one pass over the batches for every operation, and one with backward for all.

    Args:
        net: a supernet; edges that are decided have nothing to compare.
        batches: ``(images, labels)``.
        seed: of the noise operations.
        between: called after every forward pass.
    """
    taylor = strengths(net, batches, seed=seed, between=between).tables
    rows = []
    for name, weights in net.edge_weights().items():
        scores = removal_scores(net, batches, cell_type=name, seed=seed, between=between)
        for edge, ops in enumerate(net.space.primitives[name]):
            rows.append(
                EdgeStrengths(
                    cell_type=name,
                    edge=edge,
                    ops=tuple(ops),
                    weights=weights[edge].tolist(),
                    loss=(scores.loss[edge] - scores.base.loss).tolist(),
                    accuracy=(scores.base.accuracy - scores.accuracy[edge]).tolist(),
                    taylor=taylor[name][edge].tolist(),
                )
            )
    return rows


def agreement(rows: Sequence[EdgeStrengths], first: str, second: str) -> dict[str, float]:
    """How two columns of `EdgeStrengths` agree about the operations of an edge, mean over edges.

    Returns:
        ``spearman`` and ``kendall``: rank correlations over the edges where both columns vary (NaN
        where there is none); ``top``: share of edges with the same best operation.
    """
    spearman, kendall, top = [], [], []
    for row in rows:
        x, y = getattr(row, first), getattr(row, second)
        top.append(x.index(max(x)) == y.index(max(y)))
        if len(set(x)) > 1 and len(set(y)) > 1:
            spearman.append(float(stats.spearmanr(x, y).statistic))
            kendall.append(float(stats.kendalltau(x, y).statistic))
    return {"spearman": _mean(spearman), "kendall": _mean(kendall), "top": _mean(top)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def skip_weight(skip_error: Tensor, op_error: Tensor) -> float:
    """The weight of the skip connection that an optimal mixture of skip and one operation has.

    With ``theta`` the softmax weight of the skip connection, the mixture's error is
    ``theta * skip_error + (1 - theta) * op_error``; its mean square is least at
    ``theta = (v_op - c) / (v_op + v_skip - 2 c)``, where v are the mean squares of the errors and c
    is their mean product. The better the skip connection's input already is, the more weight it
    gets (DARTS-PT, Proposition 1, which states the case c = 0).

    Args:
        skip_error: deviation of the operation's input from the map all edges estimate, any shape.
        op_error: deviation of the operation's output, same shape.

    Raises:
        ValueError: the shapes differ, or the two errors are equal, so that every weight is optimal.
    """
    if skip_error.shape != op_error.shape:
        raise ValueError(
            "skip_weight: the errors must have the same shape, "
            f"got {list(skip_error.shape)} and {list(op_error.shape)}"
        )
    x, o = skip_error.double(), op_error.double()
    spread = float((o - x).square().mean())
    if not spread > 0 or not math.isfinite(spread):
        raise ValueError(f"skip_weight: the errors must differ and be finite, got {spread}")
    return float((o * (o - x)).mean()) / spread


@dataclass(frozen=True)
class SkipPoint:
    """Proposition 1 on one edge of one cell.

    Attributes:
        cell, edge: which.
        op: the operation that the skip connection is compared with.
        skip_error, op_error, product: mean squares of the two errors, and their mean product.
        predicted: the optimal share of the skip connection, `skip_weight`.
        actual: its share of the two operations' architecture weights.
    """

    cell: int
    edge: int
    op: str
    skip_error: float
    op_error: float
    product: float
    predicted: float
    actual: float


def skip_points(net: Supernet, images: Tensor, *, op: str | None = None) -> list[SkipPoint]:
    """Proposition 1 measured on the feature maps of a network.

    The proposition takes both operations to have the same scale and all edges of a node to
    estimate the same map. So every operation's output is standardised per channel over the batch,
    and the shared map is taken to be the mean over all operations of all edges of the node,
    weighted by the architecture weights.

    Args:
        net: a supernet, read with batch statistics; reduction cells are left out.
        images: ``[N, 3, H, W]``, one batch.
        op: the operation to compare with; default: on every edge the convolution of largest weight.

    Raises:
        ValueError: the space has no skip connection, or no such operation.
    """
    space = net.space
    cell_type = space.cell_types[0]
    known = {name for names in space.primitives[cell_type] for name in names}
    for wanted in (SKIP, *([] if op is None else [op])):
        if wanted not in known:
            raise ValueError(
                f"skip_points: the operation must be one of space {space.name}, got {wanted!r}"
            )
    weights = magnitude_weights(net)[cell_type].cpu()
    parameter = next(net.parameters())
    images = images.to(parameter.device, parameter.dtype)
    points: list[SkipPoint] = []
    with untouched(net, "batch", keep_rng=True), keyed_draws(net, 0, 0), torch.no_grad():
        for cell, edges in _operation_outputs(net, images):
            for node in space.node_edges.values():
                shared = sum(
                    w * y
                    for edge in node
                    for w, y in zip(weights[edge].tolist(), edges[edge], strict=True)
                ) / len(node)
                for edge in node:
                    names = space.primitives[cell_type][edge]
                    other = op or _strongest_convolution(names, weights[edge])
                    if SKIP not in names or other is None or other not in names:
                        continue
                    skip, conv = names.index(SKIP), names.index(other)
                    x, o = edges[edge][skip] - shared, edges[edge][conv] - shared
                    if torch.equal(x, o):
                        continue
                    pair = weights[edge, skip] + weights[edge, conv]
                    points.append(
                        SkipPoint(
                            cell=cell,
                            edge=edge,
                            op=other,
                            skip_error=float(x.double().square().mean()),
                            op_error=float(o.double().square().mean()),
                            product=float((x.double() * o.double()).mean()),
                            predicted=skip_weight(x, o),
                            actual=float(weights[edge, skip] / pair),
                        )
                    )
    return points


def skip_gap(net: Supernet) -> float:
    """Mean over the edges of the first cell type of the skip connection's architecture weight less
    that of the strongest convolution; NaN where no edge has both.
    """
    cell_type = net.space.cell_types[0]
    gaps = []
    rows = zip(net.space.primitives[cell_type], magnitude_weights(net)[cell_type], strict=True)
    for names, row in rows:
        other = _strongest_convolution(names, row)
        if SKIP in names and other is not None:
            gaps.append(float(row[names.index(SKIP)] - row[names.index(other)]))
    return _mean(gaps)


def _strongest_convolution(names: Sequence[str], row: Tensor) -> str | None:
    """The operation with "conv" in its name that has the largest weight."""
    found = [(float(w), name) for name, w in zip(names, row, strict=True) if "conv" in name]
    return max(found)[1] if found else None


def _operation_outputs(net: Supernet, images: Tensor) -> Iterator[tuple[int, list[list[Tensor]]]]:
    """For every cell of the first cell type its number and, by edge, the standardised outputs of
    all operations.
    """
    calls: list[tuple[nn.Module, tuple[Tensor, ...]]] = []
    cells = [m for m in net.modules() if type(m).__name__ in ("Cell", "NAS201SearchCell")]
    hooks = [
        cell.register_forward_pre_hook(lambda module, inputs: calls.append((module, inputs)))
        for cell in cells
        if not getattr(cell, "reduction", False)
    ]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    for cell, inputs in calls:
        yield cells.index(cell), _edge_outputs(net, cell, inputs)


def _edge_outputs(net: Supernet, cell: nn.Module, inputs: tuple[Tensor, ...]) -> list[list[Tensor]]:
    if hasattr(cell, "preprocess0"):
        states = [cell.preprocess0(inputs[0]), cell.preprocess1(inputs[1])]  # type: ignore[operator]
        candidates = [list(edge._ops) for edge in cell._ops]  # type: ignore[union-attr]
        weights = inputs[2]
    else:
        states, weights = [inputs[0]], inputs[1]
        candidates = [list(edge) for edge in cell.edges.values()]  # type: ignore[operator]
    outputs: list[list[Tensor]] = []
    for node in net.space.node_edges.values():
        total: Tensor | None = None
        for edge in node:
            x = states[net.space.edges[edge][0]]
            raw = [op(x) for op in candidates[edge]]
            mixed = sum(w * y for w, y in zip(weights[edge], raw, strict=True))
            total = mixed if total is None else total + mixed
            outputs.append([_standardised(y) for y in raw])
        assert isinstance(total, torch.Tensor)
        states.append(total)
    return outputs


def _standardised(y: Tensor) -> Tensor:
    """Mean 0 and variance 1 in every channel; a constant channel becomes 0."""
    centred = y - y.mean((0, 2, 3), keepdim=True)
    return centred / centred.square().mean((0, 2, 3), keepdim=True).add(1e-5).sqrt()


def select_copies(
    net: Supernet,
    batches: Sequence[Batch],
    methods: Mapping[str, Callable[[Supernet], ProgressiveSelection]],
    *,
    seed: int = 0,
) -> dict[str, tuple[Genotype | str, Score]]:
    """What each method selects from a copy of the network, and how good the supernet is with only
    that left.

    Args:
        net: a supernet; it is left as it was.
        batches: ``(images, labels)`` to score the discretised supernets on, batch statistics.
        methods: by name, what makes the selection for a copy.
        seed: of the noise operations.
    """
    found = {}
    for name, make in methods.items():
        twin = copy.deepcopy(net)
        make(twin).run()
        found[name] = (twin.genotype(), score_tables(twin, batches, [{}], seed=seed).score(0))
    return found
