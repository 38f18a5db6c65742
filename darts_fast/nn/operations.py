# SPDX-License-Identifier: Apache-2.0
"""The candidate operations of the DARTS spaces as plain PyTorch modules.

Maps are [N, C, H, W]. At stride 2 an even height and width are halved; operations other than
`FactorizedReduce` round an odd size up. Attribute names, and with them the state_dict keys, are
those of the DARTS code base (Liu et al., ICLR 2019), so its checkpoints load. Pools carry no batch
norm here: the supernet's `MixedOp` adds one, a derived network does not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def drop_path(x: Tensor, prob: float) -> Tensor:
    """Zero whole images of x with probability `prob` and divide the others by 1 - prob.

    x is [N, C, H, W]; one Bernoulli draw per image, from torch's default generator (FractalNet,
    Larsson et al., ICLR 2017). Raises ValueError unless 0 <= prob < 1.
    """
    if not 0.0 <= prob < 1.0:
        raise ValueError(f"drop_path: prob must be at least 0 and below 1, got {prob}")
    if prob == 0.0:
        return x
    keep = 1.0 - prob
    return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep).div_(keep)


def strided_shape(x: Tensor, stride: int) -> tuple[int, int, int, int]:
    """Shape of x [N, C, H, W] after taking every stride-th row and column."""
    n, c, h, w = x.shape
    return n, c, (h + stride - 1) // stride, (w + stride - 1) // stride


class NormalisedOp(nn.Module):
    """An operation that ends in a batch norm: forward is norm(raw(x)).

    The sum of a node absorbs that norm (see `darts_fast.nn.node`), so that a subclass which
    changes what comes out must override `forward`. `raw` and `norm` are those of the Sequential
    `op` unless a subclass says otherwise.
    """

    op: nn.Sequential

    @property
    def norm(self) -> nn.Module:
        """The last batch norm."""
        return self.op[-1]

    def raw(self, x: Tensor) -> Tensor:
        """What the last batch norm is given."""
        for layer in list(self.op)[:-1]:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.raw(x))
        return out


class ReLUConvBN(NormalisedOp):
    """ReLU, convolution without bias, batch norm: [N, C_in, H, W] -> [N, C_out, H', W']."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride, padding, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )


def _separable(
    C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, dilation: int, affine: bool
) -> list[nn.Module]:
    """One block: ReLU, depthwise convolution, pointwise convolution, batch norm."""
    return [
        nn.ReLU(),
        nn.Conv2d(
            C_in, C_in, kernel_size, stride, padding, dilation=dilation, groups=C_in, bias=False
        ),
        nn.Conv2d(C_in, C_out, 1, bias=False),
        nn.BatchNorm2d(C_out, affine=affine),
    ]


class DilConv(NormalisedOp):
    """Dilated depthwise separable convolution: one block of ReLU, depthwise, pointwise, BN."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        dilation: int,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            *_separable(C_in, C_out, kernel_size, stride, padding, dilation, affine)
        )


class SepConv(NormalisedOp):
    """Depthwise separable convolution, applied twice; only the first block has the stride."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            *_separable(C_in, C_in, kernel_size, stride, padding, 1, affine),
            *_separable(C_in, C_out, kernel_size, 1, padding, 1, affine),
        )


def _check_skip(name: str, C_in: int, C_out: int, stride: int) -> None:
    if stride != 1:
        raise ValueError(
            f"{name}: stride must be 1 because the input is added to the output, got {stride}"
        )
    if C_in != C_out:
        raise ValueError(
            f"{name}: C_in and C_out must be equal because the input is added to the output, "
            f"got {C_in} and {C_out}"
        )


class DilConvSkip(DilConv):
    """`DilConv` plus its input. Raises ValueError at a stride or a change of channels."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        dilation: int,
        affine: bool = True,
    ) -> None:
        _check_skip("DilConvSkip", C_in, C_out, stride)
        super().__init__(C_in, C_out, kernel_size, stride, padding, dilation, affine)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class SepConvSkip(SepConv):
    """`SepConv` plus its input. Raises ValueError at a stride or a change of channels."""

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        affine: bool = True,
    ) -> None:
        _check_skip("SepConvSkip", C_in, C_out, stride)
        super().__init__(C_in, C_out, kernel_size, stride, padding, affine)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class Identity(nn.Module):
    """Returns its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Zero(nn.Module):
    """The operation `none`: the (strided) input times 0, so NaN and inf become NaN, not 0."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class FactorizedReduce(NormalisedOp):
    """The skip connection at stride 2: two 1x1 convolutions, the second shifted by one pixel.

    [N, C_in, H, W] -> [N, C_out, H/2, W/2]. Raises ValueError for an odd C_out, H or W.
    """

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        super().__init__()
        if C_out % 2:
            raise ValueError(f"FactorizedReduce: C_out must be even, got {C_out}")
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    @property
    def norm(self) -> nn.Module:
        return self.bn

    def raw(self, x: Tensor) -> Tensor:
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise ValueError(
                f"FactorizedReduce: height and width must be even, got {tuple(x.shape[-2:])}"
            )
        x = self.relu(x)
        return torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1)


class Noise(nn.Module):
    """Fresh N(mean, std^2) noise of the (strided) input's shape, dtype and device (space S4).

    Every forward draws from torch's default generator, in training and in evaluation; the values
    of the input are not used and get no gradient. The draw does not depend on the memory format.
    """

    def __init__(self, stride: int, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.stride = stride
        self.mean = mean
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x.new_empty(strided_shape(x, self.stride)).normal_(self.mean, self.std)

    def extra_repr(self) -> str:
        return f"stride={self.stride}, mean={self.mean}, std={self.std}"


def _conv_7x1_1x7(C: int, stride: int, affine: bool) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C, C, (1, 7), stride=(1, stride), padding=(0, 3), bias=False),
        nn.Conv2d(C, C, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False),
        nn.BatchNorm2d(C, affine=affine),
    )


def _skip_connect(C: int, stride: int, affine: bool) -> nn.Module:
    return Identity() if stride == 1 else FactorizedReduce(C, C, affine)


Builder = Callable[[int, int, bool], nn.Module]

# name -> builder(C, stride, affine); stride is 1 or 2, the number of channels is kept.
OPS: dict[str, Builder] = {
    "none": lambda C, stride, affine: Zero(stride),
    "noise": lambda C, stride, affine: Noise(stride),
    "avg_pool_3x3": lambda C, stride, affine: nn.AvgPool2d(
        3, stride, padding=1, count_include_pad=False
    ),
    "max_pool_3x3": lambda C, stride, affine: nn.MaxPool2d(3, stride, padding=1),
    "skip_connect": _skip_connect,
    "sep_conv_3x3": lambda C, stride, affine: SepConv(C, C, 3, stride, 1, affine),
    "sep_conv_5x5": lambda C, stride, affine: SepConv(C, C, 5, stride, 2, affine),
    "sep_conv_7x7": lambda C, stride, affine: SepConv(C, C, 7, stride, 3, affine),
    "dil_conv_3x3": lambda C, stride, affine: DilConv(C, C, 3, stride, 2, 2, affine),
    "dil_conv_5x5": lambda C, stride, affine: DilConv(C, C, 5, stride, 4, 2, affine),
    "conv_7x1_1x7": _conv_7x1_1x7,
    "sep_conv_3x3_skip": lambda C, stride, affine: SepConvSkip(C, C, 3, stride, 1, affine),
    "sep_conv_5x5_skip": lambda C, stride, affine: SepConvSkip(C, C, 5, stride, 2, affine),
    "dil_conv_3x3_skip": lambda C, stride, affine: DilConvSkip(C, C, 3, stride, 2, 2, affine),
    "dil_conv_5x5_skip": lambda C, stride, affine: DilConvSkip(C, C, 5, stride, 4, 2, affine),
}
