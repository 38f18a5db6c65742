# SPDX-License-Identifier: Apache-2.0
"""The operations of NAS-Bench-201 (Dong and Yang, ICLR 2020, section 2) as plain PyTorch modules.

Attribute names, and with them the state_dict keys, are those of the benchmark's code base. Unlike
in the DARTS spaces a pool has no batch norm and a convolution is ReLU, dense convolution, BN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from darts_fast.nn.operations import Identity, NormalisedOp, strided_shape

Size = int | tuple[int, int]


class ReLUConvBN(NormalisedOp):
    """ReLU, dense convolution without bias, batch norm."""

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
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(C_out, affine=affine, track_running_stats=track_running_stats),
        )


class Pooling(nn.Module):
    """3x3 pool over the valid cells; a 1x1 `ReLUConvBN` first if the channels change.

    Args: mode, "avg" or "max". Raises ValueError for another.
    """

    def __init__(
        self,
        C_in: int,
        C_out: int,
        stride: int,
        mode: str,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        if mode not in ("avg", "max"):
            raise ValueError(f"Pooling: mode must be avg or max, got {mode!r}")
        self.preprocess = (
            None
            if C_in == C_out
            else ReLUConvBN(C_in, C_out, 1, 1, 0, 1, affine, track_running_stats)
        )
        self.op = (
            nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
            if mode == "avg"
            else nn.MaxPool2d(3, stride, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x if self.preprocess is None else self.preprocess(x))
        return out


class Zero(nn.Module):
    """The operation `none`: the (strided) input times 0, or zeros if the channels change."""

    is_zero = True

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
    (padded with 0, so an odd size is rounded up), BN. Stride 1: 1x1 convolution, BN. Raises
    ValueError for another stride.
    """

    def __init__(
        self, C_in: int, C_out: int, stride: int, affine: bool, track_running_stats: bool
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"FactorizedReduce: stride must be 1 or 2, got {stride}")
        self.C_in = C_in
        self.C_out = C_out
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

    def extra_repr(self) -> str:
        return f"C_in={self.C_in}, C_out={self.C_out}, stride={self.stride}"


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
        C_in, C_out, 1, stride, 0, 1, affine, track
    ),
    "nor_conv_3x3": lambda C_in, C_out, stride, affine, track: ReLUConvBN(
        C_in, C_out, 3, stride, 1, 1, affine, track
    ),
    "avg_pool_3x3": lambda C_in, C_out, stride, affine, track: Pooling(
        C_in, C_out, stride, "avg", affine, track
    ),
}
