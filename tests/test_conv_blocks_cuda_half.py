# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811  (the imported `backend`)
"""conv_blocks on CUDA with maps of 16 bits, emulated on the CPU (tests/simt).

As tests/test_mixed_cell_cuda_half.py: the truth is `reference` in float64 with both factors of
every matrix product rounded, and the gradient that is stored in front of an input's norm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from emulated import assert_same_bits_in_every_order, launches_of, shifted
from half_conv_blocks import arguments_of, halved, results, rounding
from simulated_cell import MARKS
from simulated_conv_blocks import backend
from test_conv_blocks import ALL, WITH_POINTWISE, Case, make_case
from test_mixed_cell_cuda_half import (
    AUTOCAST,
    HALVES,
    WIDTHS,
    autocast_dtype,
    relative,
    rounds_factors,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from darts_fast import _ops, reference

pytestmark = MARKS


CASES: dict[str, Case] = {
    "every window": make_case(branches=WITH_POINTWISE),
    "every window behind norms": make_case(branches=WITH_POINTWISE, norm="batch", affine=True),
    "stride 2": make_case(stride=2, size=(9, 6), norm="batch"),
    "stride 2, C=4, odd, batch 1": make_case(channels=4, size=(7, 5), batch=1, stride=2),
    "C=10, 7 groups": replace(
        make_case(branches=((3, 1), (5, 2), (0, 1)), channels=10, groups=7, size=(5, 3), batch=1),
        active=torch.arange(21).view(7, 3) % 4 != 1,
    ),
    "C=10, 7 groups behind norms": make_case(
        channels=10,
        groups=7,
        masked=True,
        norm="running",
        affine=True,
        branches=((3, 1), (5, 2), (0, 1)),
        size=(5, 3),
        batch=1,
    ),
    "C=36": make_case(channels=36, out_channels=36, branches=((3, 2), (0, 1)), norm="batch"),
    "70 to 20": make_case(
        channels=70, out_channels=20, branches=((3, 1),), inputs=1, size=(5, 7), norm="batch"
    ),
    "12 to 68": make_case(channels=12, out_channels=68, branches=((5, 1),), inputs=1, size=(5, 7)),
}


@HALVES
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(backend, name, dtype):
    case = halved(CASES[name], dtype)
    actual = results(case, _ops.conv_blocks)
    with rounding(dtype):
        wanted = results(case.to(torch.float64), reference.conv_blocks)
    half_ulp = torch.finfo(dtype).eps / 2
    images, _, height, width = wanted["output 0"].shape
    for key, exact in wanted.items():
        if exact.norm() == 0:
            assert actual[key].norm() == 0, key
            continue
        # Means over positions: roundings of single values average out.
        is_mean = key in ("mean", "var")
        allowed = half_ulp / ((images // case.groups * height * width) ** 0.5 if is_mean else 1)
        error = relative(actual[key], exact)
        assert error <= allowed, f"{key}: {error:.2e} of {allowed:.2e}"
    assert relative(actual["output 0"], wanted["output 0"]) > half_ulp / 50, "not rounded"


def whole(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(-1, 2, shape, generator=generator).double()


@HALVES
@pytest.mark.parametrize("kernel", [0, 3])
@pytest.mark.parametrize("channels", WIDTHS)
def test_whole_numbers_are_exact_at_any_width(backend, channels, kernel, dtype):
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = channels
    case = make_case(branches=((kernel, 1),), inputs=1)
    # A window sees two pixels, so that no sum is beyond what 16 bits hold.
    taps = torch.zeros(inputs, 1, 3, 3, dtype=torch.float64)
    taps[:, 0, 0, 1] = taps[:, 0, 1, 2] = 1
    case = replace(
        case,
        inputs=[whole(generator, 2, inputs, 5, 9)],
        depthwise=[taps if kernel else None],
        pointwise=[whole(generator, outputs, inputs, 1, 1)],
    ).to(torch.float32)
    low = replace(case, inputs=[x.detach().to(dtype).requires_grad_() for x in case.inputs])
    grad = whole(generator, 2, outputs, 5, 9)
    found = []
    for each in (case, low):
        (y,), _, _ = _ops.conv_blocks(*arguments_of(each))
        found.append([y, *torch.autograd.grad(y, each.leaves, grad.to(y.dtype))])
    for full, half in zip(*found, strict=True):
        assert full.abs().max() <= 256 or half.dtype == torch.float32
        assert torch.equal(half.float(), full)


@HALVES
def test_both_factors_of_products_are_rounded(backend, dtype):
    # As of mixed_cell: terms of opposite sign cancel to 0 where rounding takes `step` away.
    step = torch.finfo(dtype).eps / 4
    kept = 0.0 if rounds_factors(dtype) else step

    def run(depthwise: list[float], pointwise: list[float]) -> tuple[list[float], ...]:
        x = torch.ones(1, 2, 1, 1, dtype=dtype, requires_grad=True)
        taps = torch.zeros(2, 1, 3, 3)
        taps[:, 0, 1, 1] = torch.tensor(depthwise)
        matrix = torch.tensor([pointwise, pointwise]).view(2, 2, 1, 1).requires_grad_()
        (y,), mean, _ = _ops.conv_blocks(
            *([x], None, None, None, None, 0, 0.0, [0], [taps], [matrix], [1], 1, 1, None)
        )
        (grad,) = torch.autograd.grad(y, matrix, torch.ones_like(y))
        return y.flatten().tolist(), grad.flatten().tolist(), mean.flatten().tolist()

    ones = [1.0, 1.0]
    over = [1.0 + step, -1.0]
    assert run(over, ones)[0] == [kept, kept]
    assert run(ones, over)[0] == [kept, kept]
    assert run(over, ones)[1] == [1.0 + kept, -1.0, 1.0 + kept, -1.0]
    # Taps and sums are float32's: a difference that 16 bits hold beside 1 arrives; a statistic is
    # that of the sum, which is rounded behind it.
    assert run([1.0, 2 * step - 1.0], ones)[0] == [2 * step, 2 * step]
    assert run([1.0, 2 * step], ones)[2] == [1.0 + 2 * step] * 2
    assert run([1.0, 2 * step], ones)[0] == [1.0] * 2


@HALVES
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_same_bits_in_every_order(backend, norm, dtype):
    sizes = {"channels": 10, "out_channels": 12, "size": (8, 6), "groups": 2, "masked": True}
    affine = norm != "none"
    case = halved(make_case(branches=WITH_POINTWISE, **sizes, norm=norm, affine=affine), dtype)
    assert_same_bits_in_every_order(backend, lambda: results(case, _ops.conv_blocks))


@HALVES
def test_inputs_that_are_not_aligned(backend, dtype):
    case = halved(make_case(norm="batch", branches=((3, 1), (5, 2))), dtype)
    expected = results(case, _ops.conv_blocks)
    moved = replace(case, inputs=[shifted(x) for x in case.inputs])
    assert all(x.data_ptr() % 8 != 0 for x in moved.inputs)
    for name, value in results(moved, _ops.conv_blocks).items():
        assert relative(value, expected[name].double()) < torch.finfo(dtype).eps / 4, name


@HALVES
def test_what_overflows_is_infinite_and_nan_stays(backend, dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([1.0, -1.0, largest, float("inf"), float("nan"), 2.0**-24, 0.0, -0.0])
    x = x.to(dtype).view(1, 1, 1, -1)
    twice = 2 * torch.ones(1, 1, 1, 1)
    nothing = (None, None, None, None, 0, 0.0, [0], [torch.empty(0)])
    (y,), _, _ = _ops.conv_blocks([x], *nothing, [twice], [1], 1, 1, None)
    expected = (2 * x.float().relu()).to(dtype)
    assert expected[0, 0, 0, 2] == float("inf")
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


@HALVES
def test_autocast_stores_maps_in_its_dtype(backend, dtype):
    double = make_case(norm="batch", affine=True, channels=4, branches=((3, 1), (0, 1)))
    low = halved(double, dtype)
    single = replace(low, inputs=[x.detach().float().requires_grad_() for x in low.inputs])
    expected = results(low, _ops.conv_blocks)

    def autocast(*arguments: Any) -> Any:
        return _ops.conv_blocks.redispatch(AUTOCAST, *arguments)

    with autocast_dtype(dtype):
        found = results(low, autocast)
        outputs, mean, var = autocast(*arguments_of(single))
        wide, _, _ = autocast(*arguments_of(double))
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    assert {y.dtype for y in outputs} == {dtype}
    assert mean.dtype == var.dtype == torch.float32
    assert {y.dtype for y in wide} == {torch.float64}
    grads = torch.autograd.grad([y.sum() for y in outputs], single.leaves)
    assert {g.dtype for g in grads} == {torch.float32}


@HALVES
def test_fake_tensors_have_the_same_dtypes(backend, dtype):
    case = halved(make_case(norm="batch", affine=True, branches=((3, 1), (0, 1))), dtype)
    arguments = arguments_of(case)
    with torch.no_grad():
        outputs, mean, var = _ops.conv_blocks(*arguments)
        mask = [True] * 4 + [True, False, True, True]
        backward = ([torch.ones_like(y) for y in outputs], [True] * 2, *arguments, mask)
        real = _ops.conv_blocks_backward(*backward)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fakes = _ops.conv_blocks(*arguments), _ops.conv_blocks_backward(*backward)

    def described(values: Any) -> list[Any]:
        if isinstance(values, Tensor):
            return [(values.shape, values.dtype, values.stride())]
        return [entry for value in values for entry in described(value)]

    assert described(fakes) == described(((outputs, mean, var), real))


@HALVES
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_second_derivative(backend, norm, dtype):
    sizes = {"channels": 2, "out_channels": 3, "size": (3, 2), "batch": 3}
    case = halved(make_case(branches=((3, 1), (0, 1)), norm=norm, **sizes), dtype)

    def second(each: Case, call: Any) -> list[Tensor]:
        outputs, _, _ = call(*arguments_of(each))
        loss = sum(y.double().sin().sum() for y in outputs)
        leaves = [each.inputs[0], each.pointwise[0]]
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.double().square().sum() for g in first), leaves))

    actual = second(case, _ops.conv_blocks)
    expected = second(case.to(torch.float64), reference.conv_blocks)
    for value, exact in zip(actual, expected, strict=True):
        assert relative(value, exact) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("norm", "forward", "backward"), [("none", 2, 4), ("batch", 3, 6)])
def test_launches(backend, norm, forward, backward):
    case = halved(make_case(norm=norm, branches=ALL), torch.float16)
    assert launches_of(backend, lambda: _ops.conv_blocks(*arguments_of(case))) == forward
    out, _, _ = _ops.conv_blocks(*arguments_of(case))
    grads = [torch.ones_like(y) for y in out]
    assert launches_of(backend, lambda: torch.autograd.grad(out, case.leaves, grads)) == backward


def test_errors(backend):
    case = halved(make_case(branches=((3, 1),), inputs=1), torch.bfloat16)
    inputs, *head, depthwise, pointwise, a, b, c, d = arguments_of(case)
    message = "pointwise must be Float beside maps of BFloat16, got Half"
    with pytest.raises(TypeError, match=message):
        _ops.conv_blocks(inputs, *head, depthwise, [w.half() for w in pointwise], a, b, c, d)
    with pytest.raises(TypeError, match="every input must have the dtype of the maps"):
        _ops.conv_blocks([*inputs, inputs[0].half()], *head, depthwise, pointwise, a, b, c, d)
