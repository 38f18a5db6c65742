# SPDX-License-Identifier: Apache-2.0
"""The NAS-Bench-201 supernet (Dong and Yang, ICLR 2020, section 2), names as in its code base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from darts_fast.nn.fused_cell import native_plan, run_cell, run_stem
from darts_fast.nn.mixed_op import check_weights, check_zero_rule, weighted_sum
from darts_fast.nn.nasbench201_operations import OPS, ReLUConvBN
from darts_fast.nn.plan import CellPlan, plan_cell
from darts_fast.nn.supernet import Supernet
from darts_fast.spaces import Space, get_space


class ResNetBasicblock(nn.Module):
    """A residual block; that between two stages halves the height and width, which must be even.

    The shortcut is at stride 2 a 2x2 average pool and a 1x1 convolution, else a `ReLUConvBN` if the
    channels change and the input itself if not. Raises ValueError for another stride.
    """

    def __init__(self, inplanes: int, planes: int, stride: int, affine: bool = True) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"ResNetBasicblock: stride must be 1 or 2, got {stride}")
        self.conv_a = ReLUConvBN(inplanes, planes, 3, stride, 1, 1, affine)
        self.conv_b = ReLUConvBN(planes, planes, 3, 1, 1, 1, affine)
        self.downsample: nn.Module | None = None
        if stride == 2:
            shrink = nn.Conv2d(inplanes, planes, 1, bias=False)
            self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), shrink)
        elif inplanes != planes:
            self.downsample = ReLUConvBN(inplanes, planes, 1, 1, 0, 1, affine)
        self.in_dim, self.out_dim, self.stride = inplanes, planes, stride
        self.num_conv = 2

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_b(self.conv_a(x))
        return out + (x if self.downsample is None else self.downsample(x))

    def extra_repr(self) -> str:
        return f"inC={self.in_dim}, outC={self.out_dim}, stride={self.stride}"


class NAS201SearchCell(nn.Module):
    """Four nodes; node i is the sum over all j < i of the mixed operation on edge i<-j.

    Node 0 is the input, node 3 the output. `edges["i<-j"]` lists the candidates of an edge; the
    rows of the weights are in the order of those keys: 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2.

    Args: C channels; edges (from, to) and primitives of the space; zero, see `mixed_op`.
    """

    def __init__(
        self,
        C: int,
        edges: Sequence[tuple[int, int]],
        primitives: Sequence[Sequence[str]],
        *,
        zero: str,
        affine: bool,
        track_running_stats: bool,
    ) -> None:
        super().__init__()
        self.zero = check_zero_rule("NAS201SearchCell", zero)
        self.primitives = tuple(tuple(names) for names in primitives)
        self._shape = (len(edges), len(primitives[0]))
        self._incoming: dict[int, list[tuple[int, int]]] = {}
        self.edges = nn.ModuleDict()
        for edge, ((source, node), names) in enumerate(zip(edges, primitives, strict=True)):
            self._incoming.setdefault(node, []).append((edge, source))
            self.edges[f"{node}<-{source}"] = nn.ModuleList(
                self._operation(name, C, source, affine, track_running_stats) for name in names
            )

    def _operation(
        self, name: str, C: int, source: int, affine: bool, track_running_stats: bool
    ) -> nn.Module:
        """A candidate of an edge from the node `source`."""
        return OPS[name](C, C, 1, affine, track_running_stats)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [N, C, H, W], weights [6, ops] -> [N, C, H, W]."""
        check_weights("NAS201SearchCell", weights, self._shape)
        plan = native_plan(self, self.edges, self._plan, x, weights)
        if plan is not None:
            return run_cell(plan, [x], weights, self.zero)
        states = [x]
        for node in self._incoming:
            states.append(self._node(states, node, weights))
        return states[-1]

    def _plan(self) -> CellPlan | None:
        edges = []
        for name, candidates in self.edges.items():
            node, source = name.split("<-")
            edges.append((int(source), int(node), list(candidates.children())))
        return plan_cell(edges, inputs=1, nodes=len(self._incoming), multiplier=1)

    def _node(self, states: list[Tensor], node: int, weights: Tensor) -> Tensor:
        """Sum of the edges into `node`, in the order of the states."""
        ops, inputs, rows = [], [], []
        for edge, source in self._incoming[node]:
            candidates = list(self.edges[f"{node}<-{source}"].children())
            ops += candidates
            inputs += [states[source]] * len(candidates)
            rows.append(weights[edge])
        return weighted_sum(ops, inputs, torch.cat(rows), self.zero)


class TinyNetwork(Supernet):
    """Stem, three stages of N search cells with residual reductions between, BN-ReLU, classifier.

    All cells share the alphas `_arch_parameters` (the original's name).

    Args:
        C: channels of the first stage; doubled at each of the two reductions.
        N: search cells per stage.
        num_classes: size of the output.
        criterion: the loss that `_loss` applies, default cross entropy.
        space: a name or a `Space` with the single cell type "cell" and operations of `OPS`.
        zero: what an edge weight of exactly 0 means (see `mixed_op`), default the space's rule.
        affine, track_running_stats: of the batch norms in the search cells.

    Raises ValueError for arguments out of range.
    """

    def __init__(
        self,
        C: int,
        N: int,
        num_classes: int,
        criterion: nn.Module | None = None,
        *,
        space: str | Space = "nasbench201",
        zero: str | None = None,
        affine: bool = False,
        track_running_stats: bool = True,
    ) -> None:
        for name, value in (("C", C), ("N", N), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"TinyNetwork: {name} must be at least 1, got {value}")
        space = get_space(space)
        if space.cell_types != ("cell",):
            raise ValueError(
                f"TinyNetwork: space must have the one cell type cell, "
                f"got {space.name!r} with {', '.join(space.cell_types)}"
            )
        super().__init__(space, criterion)
        self._zero = check_zero_rule("TinyNetwork", space.zero_rule if zero is None else zero)
        self._C = C
        self._layerN = N
        self._num_classes = num_classes
        self._affine = affine
        self._track_running_stats = track_running_stats
        self._halvings = 2

        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage > 0:
                self.cells.append(ResNetBasicblock(C, 2 * C, 2))
                C *= 2
            for _ in range(N):
                self.cells.append(self._cell(C))
        self.lastact = nn.Sequential(nn.BatchNorm2d(C), nn.ReLU(inplace=True))
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C, num_classes)
        self._register_alphas({"cell": "_arch_parameters"})

    def _cell(self, C: int) -> NAS201SearchCell:
        """A search cell of this network."""
        return NAS201SearchCell(
            C,
            self.space.edges,
            self.space.primitives["cell"],
            zero=self._zero,
            affine=self._affine,
            track_running_stats=self._track_running_stats,
        )

    def _features(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        x = run_stem(self.stem, x)
        for cell in self.cells:
            x = cell(x, weights["cell"]) if isinstance(cell, NAS201SearchCell) else cell(x)
        out: Tensor = self.lastact(x)
        return out

    def new(self) -> TinyNetwork:
        other = self._fresh(
            self._C,
            self._layerN,
            self._num_classes,
            self._criterion,
            space=self.space,
            zero=self._zero,
            affine=self._affine,
            track_running_stats=self._track_running_stats,
        )
        self._copy_architecture_to(other)
        return other

    def _fresh(self, *arguments: Any, **named: Any) -> TinyNetwork:
        """A network of this kind, of the arguments of `TinyNetwork`."""
        return TinyNetwork(*arguments, **named)
