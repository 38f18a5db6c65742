# SPDX-License-Identifier: Apache-2.0
"""conv_blocks of wide maps on CUDA devices: by PyTorch's own convolutions, shown on the CPU."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from closeness import assert_close
from pretended_device import There, pretended_device
from test_conv_blocks import ALL, WITH_POINTWISE, Case, make_case, op_arguments
from test_cuda_routing import Recorded

from darts_fast import _ops, reference
from darts_fast.backend import use_backend
from darts_fast.functional import _library

pytestmark = pytest.mark.filterwarnings("error")


def results(case: Case, by_library: bool) -> dict[str, torch.Tensor]:
    """Values and gradients."""
    op = _library.conv_blocks if by_library else reference.conv_blocks
    with mock.patch.object(_ops, "conv_blocks", op):
        return case.results("fused")


CASES = {
    "every window": make_case(branches=WITH_POINTWISE, channels=6, out_channels=10),
    "stride 2, odd sizes, batch 1": make_case(stride=2, size=(7, 5), batch=1, norm="batch"),
    "in groups": make_case(
        branches=WITH_POINTWISE, groups=3, norm="batch", affine=True, masked=True, channels=4
    ),
    "given statistics": make_case(groups=2, norm="running", affine=True, channels=4),
    "one position": make_case(size=(1, 1), batch=1, groups=7),
}
CASES["branches that no group computes"] = replace(
    CASES["in groups"], active=torch.tensor([[True, False, True, False, True, True]] * 3)
)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name):
    case = CASES[name]
    rounded = case.to(torch.float32)
    actual, eager = results(rounded, True), results(rounded, False)
    truth = results(rounded.to(torch.float64), False)
    for key, value in actual.items():
        assert_close(key, value, eager[key], truth[key], gradient=key.startswith("gradient"))
    outputs, _, _ = _library.conv_blocks(*op_arguments(rounded))
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in outputs)


def test_empty_batch():
    case = make_case(groups=3, norm="batch", affine=True, masked=True)
    empty = [x[:0].detach() for x in case.inputs]
    case = replace(case, inputs=empty, fixed=case.statistics())
    with torch.no_grad():
        for found, expected in zip(
            *(op(*op_arguments(case)) for op in (_library.conv_blocks, reference.conv_blocks)),
            strict=True,
        ):
            for value, exact in zip(found, expected, strict=True):
                assert value.dtype == exact.dtype
                assert torch.equal(value, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_of_16_bits(dtype):
    case = make_case(norm="batch", affine=True, channels=4, out_channels=4).to(torch.float32)
    inputs, *rest = op_arguments(case)
    low = [x.detach().to(dtype) for x in inputs]
    with torch.no_grad():
        outputs, mean, var = _library.conv_blocks(low, *rest)
        wide, *moments = _library.conv_blocks([x.float() for x in low], *rest)
    assert {y.dtype for y in outputs} == {dtype}
    assert mean.dtype == var.dtype == torch.float32
    for value, exact in zip([*outputs, mean, var], [*wide, *moments], strict=True):
        assert (value.float() - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("channels", [64, 65])
def test_wide_outputs_are_the_librarys(channels):
    case = make_case(branches=ALL[:2], channels=4, out_channels=channels, masked=True, groups=2)
    with use_backend("reference"):
        expected = case.run()
    there = replace(
        case,
        inputs=[There(x.detach()) for x in case.inputs],
        depthwise=[There(w.detach()) for w in case.depthwise],
        pointwise=[There(w.detach()) for w in case.pointwise],
    )
    with pretended_device() as device, Recorded() as mode:
        found = there.run()
    assert mode.native == ["conv_blocks"] * (channels == 64)
    assert device.fetched == 0
    for value, exact in zip(found.outputs, expected.outputs, strict=True):
        torch.testing.assert_close(value.values, exact)
    torch.testing.assert_close(found.mean.values, expected.mean)
    torch.testing.assert_close(found.var.values, expected.var)
