# SPDX-License-Identifier: Apache-2.0
"""The operations, ``OPS[name](C_in, C_out, stride, affine, track_running_stats)``, and the spaces
of their names. Those of the benchmark have native forms; the others run as modules.
"""

from __future__ import annotations

from torch import Tensor, nn

from darts_fast.nn import nasbench201_operations as native
from darts_fast.nn.nasbench201 import ResNetBasicblock
from darts_fast.nn.nasbench201_operations import (
    Builder,
    FactorizedReduce,
    Identity,
    ReLUConvBN,
    Size,
    Zero,
)
from darts_fast.nn.nasbench201_operations import Pooling as POOLING  # noqa: N814
from darts_fast.nn.operations import Noise as NoiseOp
from darts_fast.nn.operations import NormalisedOp
from darts_fast.spaces import NASBENCH201_PRIMITIVES

__all__ = [
    "CONNECT_NAS_BENCHMARK",
    "DARTS_SPACE",
    "NAS_BENCH_201",
    "NAS_BENCH_201_S2",
    "NAS_BENCH_201_S4",
    "NAS_BENCH_201_S10",
    "NAS_BENCH_201_SIMPLE",
    "OPS",
    "POOLING",
    "DualSepConv",
    "FactorizedReduce",
    "Identity",
    "NoiseOp",
    "ReLUConvBN",
    "ReLUConvBNSkip",
    "ResNetBasicblock",
    "SearchSpaceNames",
    "SepConv",
    "Zero",
]


class ReLUConvBNSkip(ReLUConvBN):
    """`ReLUConvBN` plus its input, which must have the size of its output."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class SepConv(NormalisedOp):
    """ReLU, depthwise and pointwise convolution, batch norm."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
        affine: bool,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        sizes = (kernel_size, stride, padding, dilation)
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_in, *sizes, groups=C_in, bias=False),
            nn.Conv2d(C_in, C_out, 1, bias=False),
            nn.BatchNorm2d(C_out, affine=affine, track_running_stats=track_running_stats),
        )


class DualSepConv(NormalisedOp):
    """Two `SepConv`s, of which the first has the stride."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
        affine: bool,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        rest = (padding, dilation, affine, track_running_stats)
        self.op_a = SepConv(C_in, C_in, kernel_size, stride, *rest)
        self.op_b = SepConv(C_in, C_out, kernel_size, 1, *rest)

    @property
    def norm(self) -> nn.Module:
        return self.op_b.norm

    def raw(self, x: Tensor) -> Tensor:
        return self.op_b.raw(self.op_a(x))


def _convolution(
    kind: type[ReLUConvBN] | type[SepConv] | type[DualSepConv], size: int, dilation: int
) -> Builder:
    """An operation whose output is as large as its input divided by the stride."""

    def build(C_in: int, C_out: int, stride: int, affine: bool, track: bool) -> nn.Module:
        padding = dilation * (size // 2)
        return kind(C_in, C_out, size, stride, padding, dilation, affine, track)

    return build


OPS: dict[str, Builder] = {
    **native.OPS,
    "noise": lambda C_in, C_out, stride, affine, track: NoiseOp(stride),
    "max_pool_3x3": lambda C_in, C_out, stride, affine, track: POOLING(
        C_in, C_out, stride, "max", affine, track
    ),
    "nor_conv_7x7": _convolution(ReLUConvBN, 7, 1),
    "dua_sepc_3x3": _convolution(DualSepConv, 3, 1),
    "dua_sepc_5x5": _convolution(DualSepConv, 5, 1),
    "dil_sepc_3x3": _convolution(SepConv, 3, 2),
    "dil_sepc_5x5": _convolution(SepConv, 5, 2),
}

NAS_BENCH_201 = list(NASBENCH201_PRIMITIVES)
CONNECT_NAS_BENCHMARK = ["none", "skip_connect", "nor_conv_3x3"]
NAS_BENCH_201_SIMPLE = NAS_BENCH_201[1:]
NAS_BENCH_201_S2 = ["skip_connect", "nor_conv_3x3"]
NAS_BENCH_201_S4 = ["noise", "nor_conv_3x3"]
NAS_BENCH_201_S10 = ["none", "nor_conv_3x3"]
_SEPARABLE = ["dua_sepc_3x3", "dua_sepc_5x5", "dil_sepc_3x3", "dil_sepc_5x5"]
DARTS_SPACE = ["none", "skip_connect", *_SEPARABLE, "avg_pool_3x3", "max_pool_3x3"]

SearchSpaceNames = {
    "connect-nas": CONNECT_NAS_BENCHMARK,
    "nas-bench-201": NAS_BENCH_201,
    "nas-bench-201-simple": NAS_BENCH_201_SIMPLE,
    "nas-bench-201-s2": NAS_BENCH_201_S2,
    "nas-bench-201-s4": NAS_BENCH_201_S4,
    "nas-bench-201-s10": NAS_BENCH_201_S10,
    "darts": DARTS_SPACE,
}
