# SPDX-License-Identifier: Apache-2.0
"""The supernet of the DARTS spaces (Liu et al., ICLR 2019, section 3.1): darts, s1 to s5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from darts_fast.nn.cell import Cell
from darts_fast.nn.fused_cell import run_stem
from darts_fast.nn.mixed_op import check_zero_rule
from darts_fast.nn.supernet import Supernet
from darts_fast.spaces import Genotype, Space, get_space


class Network(Supernet):
    """Stem, `layers` search cells (reductions at 1/3 and 2/3 of the depth), pooling, classifier.

    All normal cells share the alphas `alphas_normal`, all reduction cells `alphas_reduce`.

    Args:
        C: channels of the first cells' states; doubled at each reduction.
        num_classes, layers: sizes of the output and number of cells.
        criterion: the loss that `_loss` applies, default cross entropy.
        steps, multiplier: nodes of a cell, and how many of them its output concatenates. Fewer
            steps than the space has nodes use the space's first edges.
        stem_multiplier: the stem has stem_multiplier * C channels.
        space: a name or a `Space` with cell types normal and reduce.
        zero: what an edge weight of exactly 0 means (see `mixed_op`), default the space's rule.
        drop_path_prob: drop-path on the output of every edge in training; also an attribute.

    Raises ValueError for arguments out of range.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: nn.Module | None = None,
        steps: int = 4,
        multiplier: int = 4,
        stem_multiplier: int = 3,
        *,
        space: str | Space = "darts",
        zero: str | None = None,
        drop_path_prob: float = 0.0,
    ) -> None:
        for name, value in (("C", C), ("num_classes", num_classes), ("layers", layers)):
            if value < 1:
                raise ValueError(f"Network: {name} must be at least 1, got {value}")
        if not 0.0 <= drop_path_prob < 1.0:
            raise ValueError(
                f"Network: drop_path_prob must be at least 0 and below 1, got {drop_path_prob}"
            )
        space = _first_nodes(get_space(space), steps)
        super().__init__(space, criterion)
        self._zero = check_zero_rule("Network", space.zero_rule if zero is None else zero)
        self._C = C
        self._num_classes = num_classes
        self._layers = layers
        self._steps = steps
        self._multiplier = multiplier
        self._stem_multiplier = stem_multiplier
        self.drop_path_prob = drop_path_prob

        C_curr = stem_multiplier * C
        self._build_stem(C_curr)
        C_prev_prev, C_prev, C_curr = C_curr, C_curr, C
        reductions = {layers // 3, 2 * layers // 3}
        self._halvings = len(reductions)
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in reductions
            if reduction:
                C_curr *= 2
            self.cells.append(
                self._cell(
                    steps,
                    multiplier,
                    C_prev_prev,
                    C_prev,
                    C_curr,
                    reduction,
                    i - 1 in reductions,
                    primitives=space.primitives["reduce" if reduction else "normal"],
                    zero=self._zero,
                )
            )
            C_prev_prev, C_prev = C_prev, multiplier * C_curr
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)
        self._initialize_alphas()

    def _initialize_alphas(self) -> None:
        self._register_alphas({"normal": "alphas_normal", "reduce": "alphas_reduce"})

    def _build_stem(self, channels: int) -> None:
        """What comes before the cells and gives them maps of so many channels."""
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def _cell(self, *arguments: Any, **named: Any) -> Cell:
        """A cell of this network, of the arguments of `Cell`."""
        return Cell(*arguments, **named)

    @property
    def _arch_parameters(self) -> list[nn.Parameter]:
        return self.arch_parameters()

    def _features(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        s0 = run_stem(self.stem, x)
        s1 = s0
        for cell in self.cells:
            table = weights["reduce" if cell.reduction else "normal"]
            s0, s1 = s1, cell(s0, s1, table, self.drop_path_prob)
        return s1

    def genotype_of(self, weights: Mapping[str, Tensor]) -> Genotype:
        """The architecture that edge weights stand for (`Space.genotype`)."""
        genotype = super().genotype_of(weights)
        assert isinstance(genotype, Genotype)
        concat = range(2 + self._steps - self._multiplier, 2 + self._steps)
        return genotype._replace(normal_concat=concat, reduce_concat=concat)

    def new(self) -> Network:
        other = self._fresh(
            self._C,
            self._num_classes,
            self._layers,
            self._criterion,
            self._steps,
            self._multiplier,
            self._stem_multiplier,
            space=self.space,
            zero=self._zero,
            drop_path_prob=self.drop_path_prob,
        )
        self._copy_architecture_to(other)
        return other

    def _fresh(self, *arguments: Any, **named: Any) -> Network:
        """A network of this kind, of the arguments of `Network`."""
        return Network(*arguments, **named)


def _first_nodes(space: Space, steps: int) -> Space:
    """The space with only its first `steps` nodes."""
    if space.cell_types != ("normal", "reduce"):
        raise ValueError(
            f"Network: space must have the cell types normal and reduce, "
            f"got {space.name!r} with {', '.join(space.cell_types)}"
        )
    nodes = sorted(space.node_edges)
    if not 1 <= steps <= len(nodes):
        raise ValueError(
            f"Network: steps must be 1 to {len(nodes)} in space {space.name!r}, got {steps}"
        )
    count = sum(len(space.node_edges[node]) for node in nodes[:steps])
    return replace(
        space,
        edges=space.edges[:count],
        primitives={name: table[:count] for name, table in space.primitives.items()},
    )
