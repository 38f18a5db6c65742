# SPDX-License-Identifier: Apache-2.0
"""The candidate operations against formulas over their state_dict, and their special rules."""

from __future__ import annotations

import itertools

import plain_darts
import pytest
import torch
from torch import nn

from darts_fast.nn.operations import (
    OPS,
    DilConvSkip,
    FactorizedReduce,
    Noise,
    SepConvSkip,
    Zero,
    drop_path,
)

DETERMINISTIC = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_7x1_1x7",
)
SKIP_VARIANTS = ("sep_conv_3x3_skip", "sep_conv_5x5_skip", "dil_conv_3x3_skip", "dil_conv_5x5_skip")
CASES = [
    *itertools.product(DETERMINISTIC, (1, 2)),
    *itertools.product(SKIP_VARIANTS, (1,)),
]


def build(name: str, stride: int, affine: bool) -> nn.Module:
    torch.manual_seed(0)
    op = OPS[name](6, stride, affine).double()
    for parameter in op.parameters():
        if parameter.ndim == 1:  # the affine terms of batch norms, so that they matter
            nn.init.normal_(parameter)
    return op


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_names() -> None:
    assert {*OPS} == {*DETERMINISTIC, *SKIP_VARIANTS, "noise"}


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("name", "stride"), CASES)
def test_equals_formula(name: str, stride: int, affine: bool) -> None:
    op = build(name, stride, affine)
    x = images(3, 6, 8, 10)
    before = x.clone()
    expected = plain_darts.operation(op.state_dict(), "", name, x, stride)
    assert expected.shape == (3, 6, 8 // stride, 10 // stride)
    torch.testing.assert_close(op(x), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(x, before), "an operation must not write to its input"
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(op(last), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("name", "stride"), CASES)
def test_state_dict_keys(name: str, stride: int, affine: bool) -> None:
    convolutions, norms = {
        "sep": (["op.1", "op.2", "op.5", "op.6"], ["op.3", "op.7"]),
        "dil": (["op.1", "op.2"], ["op.3"]),
        "con": (["1", "2"], ["3"]),
        "ski": (["conv_1", "conv_2"], ["bn"]) if stride == 2 else ([], []),
    }.get(name[:3], ([], []))
    fields = ["running_mean", "running_var", "num_batches_tracked"]
    fields += ["weight", "bias"] if affine else []
    expected = {f"{key}.weight" for key in convolutions}
    expected |= {f"{key}.{field}" for key in norms for field in fields}
    assert {*build(name, stride, affine).state_dict()} == expected


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_odd_sizes(name: str) -> None:
    op = build(name, 2, False)
    x = images(2, 6, 7, 9)
    if name == "skip_connect":
        with pytest.raises(ValueError, match=r"FactorizedReduce: .* must be even, got \(7, 9\)"):
            op(x)
    else:
        assert op(x).shape == (2, 6, 4, 5)


@pytest.mark.parametrize("name", SKIP_VARIANTS)
def test_skip_variants_refuse_a_stride(name: str) -> None:
    with pytest.raises(ValueError, match=r"ConvSkip: stride must be 1 .*, got 2"):
        OPS[name](6, 2, False)


def test_skip_variants_refuse_a_change_of_channels() -> None:
    with pytest.raises(ValueError, match=r"SepConvSkip: C_in and C_out must be equal .* 4 and 6"):
        SepConvSkip(4, 6, 3, 1, 1)
    with pytest.raises(ValueError, match=r"DilConvSkip: C_in and C_out must be equal .* 4 and 6"):
        DilConvSkip(4, 6, 3, 1, 2, 2)


def test_factorized_reduce_refuses_an_odd_number_of_channels() -> None:
    with pytest.raises(ValueError, match="C_out must be even, got 5"):
        FactorizedReduce(4, 5)


@pytest.mark.parametrize("stride", [1, 2])
def test_none_multiplies(stride: int) -> None:
    x = images(2, 6, 4, 4)
    x[0, 0, 0, 0] = float("inf")
    out = Zero(stride)(x)
    assert out[0, 0, 0, 0].isnan()
    assert out.nan_to_num().count_nonzero() == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_noise_is_fresh_and_seeded_by_the_default_generator(stride: int, training: bool) -> None:
    op = Noise(stride).train(training)
    x = images(2, 6, 7, 8).requires_grad_()
    torch.manual_seed(3)
    first, second = op(x), op(x)
    assert first.shape == x[:, :, ::stride, ::stride].shape
    assert first.dtype == x.dtype
    assert not first.requires_grad
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    with torch.no_grad():
        assert torch.equal(op(torch.zeros_like(x)), first)
        assert torch.equal(op(x.contiguous(memory_format=torch.channels_last)), second)


def test_noise_is_standard_normal() -> None:
    torch.manual_seed(0)
    sample = Noise(1)(torch.empty(64, 8, 16, 16))
    # 131,072 draws: standard errors 0.003 and 0.002.
    assert abs(sample.mean().item()) < 0.015
    assert abs(sample.std().item() - 1.0) < 0.01


def test_drop_path_zeroes_images_and_rescales_the_others() -> None:
    torch.manual_seed(0)
    x = images(4000, 2, 1, 1)
    out = drop_path(x, 0.25)
    factors = (out / x).view(4000, 2)
    assert torch.equal(factors[:, 0] == 0, factors[:, 1] == 0)
    kept = factors[factors != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 4 / 3))
    assert abs((factors[:, 0] == 0).double().mean().item() - 0.25) < 0.035  # five standard errors
    torch.manual_seed(0)
    assert torch.equal(drop_path(x, 0.25), out)
    assert drop_path(x, 0.0) is x


@pytest.mark.parametrize("prob", [-0.1, 1.0, float("nan")])
def test_drop_path_refuses(prob: float) -> None:
    with pytest.raises(ValueError, match="drop_path: prob must be at least 0 and below 1, got"):
        drop_path(images(2, 2, 2, 2), prob)
