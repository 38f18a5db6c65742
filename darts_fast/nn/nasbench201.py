# SPDX-License-Identifier: Apache-2.0
"""The NAS-Bench-201 supernet and its operations (Dong and Yang, ICLR 2020, section 2).

Attribute names, and with them the state_dict keys, are those of the benchmark's code base. Unlike
in the DARTS spaces a pool has no batch norm and a convolution is ReLU, dense convolution, BN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from darts_fast.nn.mixed_op import check_weights, check_zero_rule, weighted_sum
from darts_fast.nn.operations import Identity, NormalisedOp, strided_shape
from darts_fast.nn.supernet import Supernet
from darts_fast.spaces import Space, get_space


class ReLUConvBN(NormalisedOp):
    """ReLU, dense convolution without bias ("same" padding), batch norm."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(C_out, affine=affine, track_running_stats=track_running_stats),
        )


class AvgPool(nn.Module):
    """3x3 average over the valid cells; a 1x1 `ReLUConvBN` first if the channels change."""

    def __init__(
        self, C_in: int, C_out: int, stride: int, affine: bool, track_running_stats: bool
    ) -> None:
        super().__init__()
        self.preprocess = (
            None if C_in == C_out else ReLUConvBN(C_in, C_out, 1, 1, affine, track_running_stats)
        )
        self.op = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x if self.preprocess is None else self.preprocess(x))
        return out


class Zero(nn.Module):
    """The operation `none`: the (strided) input times 0, or zeros if the channels change."""

    def __init__(self, C_in: int, C_out: int, stride: int) -> None:
        super().__init__()
        self.C_in = C_in
        self.C_out = C_out
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.C_in == self.C_out:
            return x[:, :, :: self.stride, :: self.stride].mul(0.0)
        n, _, h, w = strided_shape(x, self.stride)
        return x.new_zeros((n, self.C_out, h, w))

    def extra_repr(self) -> str:
        return f"C_in={self.C_in}, C_out={self.C_out}, stride={self.stride}"


class FactorizedReduce(NormalisedOp):
    """The skip connection where the size or the channels change.

    Stride 2: ReLU, two 1x1 convolutions of which the second sees the map shifted by one pixel
    (padded with 0, so an odd size is rounded up), BN. Stride 1: 1x1 convolution, BN.
    """

    def __init__(
        self, C_in: int, C_out: int, stride: int, affine: bool, track_running_stats: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.relu = nn.ReLU()
        if stride == 2:
            self.convs = nn.ModuleList(
                nn.Conv2d(C_in, channels, 1, stride=2, bias=False)
                for channels in (C_out // 2, C_out - C_out // 2)
            )
            self.pad = nn.ConstantPad2d((0, 1, 0, 1), 0.0)
        else:
            self.conv = nn.Conv2d(C_in, C_out, 1, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine, track_running_stats=track_running_stats)

    @property
    def norm(self) -> nn.Module:
        return self.bn

    def raw(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            y: Tensor = self.conv(x)
            return y
        x = self.relu(x)
        shifted = self.pad(x)[:, :, 1:, 1:]
        return torch.cat([self.convs[0](x), self.convs[1](shifted)], dim=1)


def _skip_connect(
    C_in: int, C_out: int, stride: int, affine: bool, track_running_stats: bool
) -> nn.Module:
    if stride == 1 and C_in == C_out:
        return Identity()
    return FactorizedReduce(C_in, C_out, stride, affine, track_running_stats)


Builder = Callable[[int, int, int, bool, bool], nn.Module]

# Name -> builder(C_in, C_out, stride, affine, track_running_stats); stride is 1 or 2.
OPS: dict[str, Builder] = {
    "none": lambda C_in, C_out, stride, affine, track: Zero(C_in, C_out, stride),
    "skip_connect": _skip_connect,
    "nor_conv_1x1": lambda C_in, C_out, stride, affine, track: ReLUConvBN(
        C_in, C_out, 1, stride, affine, track
    ),
    "nor_conv_3x3": lambda C_in, C_out, stride, affine, track: ReLUConvBN(
        C_in, C_out, 3, stride, affine, track
    ),
    "avg_pool_3x3": AvgPool,
}


class ResNetBasicblock(nn.Module):
    """The residual block between stages: halves the height and width, which must be even.

    The shortcut is a 2x2 average pool and a 1x1 convolution. Batch norms are affine.
    """

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(C_in, C_out, 3, 2)
        self.conv_b = ReLUConvBN(C_out, C_out, 3, 1)
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(C_in, C_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_b(self.conv_a(x)) + self.downsample(x)
        return out


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
        self._shape = (len(edges), len(primitives[0]))
        self._incoming: dict[int, list[tuple[int, int]]] = {}
        self.edges = nn.ModuleDict()
        for edge, ((source, node), names) in enumerate(zip(edges, primitives, strict=True)):
            self._incoming.setdefault(node, []).append((edge, source))
            self.edges[f"{node}<-{source}"] = nn.ModuleList(
                OPS[name](C, C, 1, affine, track_running_stats) for name in names
            )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [N, C, H, W], weights [6, ops] -> [N, C, H, W]."""
        check_weights("NAS201SearchCell", weights, self._shape)
        states = [x]
        for node in self._incoming:
            states.append(self._node(states, node, weights))
        return states[-1]

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
                self.cells.append(ResNetBasicblock(C, 2 * C))
                C *= 2
            for _ in range(N):
                self.cells.append(
                    NAS201SearchCell(
                        C,
                        space.edges,
                        space.primitives["cell"],
                        zero=self._zero,
                        affine=affine,
                        track_running_stats=track_running_stats,
                    )
                )
        self.lastact = nn.Sequential(nn.BatchNorm2d(C), nn.ReLU(inplace=True))
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C, num_classes)
        self._register_alphas({"cell": "_arch_parameters"})

    def _features(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x, weights["cell"]) if isinstance(cell, NAS201SearchCell) else cell(x)
        out: Tensor = self.lastact(x)
        return out

    def new(self) -> TinyNetwork:
        other = TinyNetwork(
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
