# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811  (the imported `backend`)
"""mixed_cell and relu_conv_norm on CUDA with maps of 16 bits, emulated on the CPU (tests/simt).

The truth is `reference` in float64 with one rounding where the kernels store a value, and of both
factors of every matrix product, so that what is left are values that float32 rounds the other way.
Autocast is that of CUDA, called by its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from cell_cases import DARTS, NASBENCH201, Case, by_role, make_case, op_arguments, whole_numbers
from checked_runs import architecture_of_process
from emulated import assert_same_bits_in_every_order
from simulated_cell import MARKS, SimulatedCell, backend
from torch import Tensor

from darts_fast import _ops, reference
from darts_fast.backend import use_bf16_maps
from darts_fast.reference import _layers, _mixed_cell

pytestmark = MARKS

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
RELU_CONV_NORM = torch.ops.darts_fast.relu_conv_norm.default
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as it is read back; its gradient passes unchanged."""
    return x + (x.detach().to(dtype).to(x.dtype) - x.detach())


def rounds_factors(dtype: torch.dtype) -> bool:
    """Whether products are those of tensor cores: sm_75 has none for bfloat16."""
    return dtype == torch.float16 or architecture_of_process() >= 80


class Product(torch.autograd.Function):
    """`_layers.pointwise` with every factor rounded, in the forward and in both gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        x, narrow = (v.to(dtype).to(v.dtype) for v in (x, weight))
        ctx.save_for_backward(x, narrow)
        ctx.dtype = dtype
        return torch.einsum("nchw,oc->nohw", x, narrow.flatten(1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad = grad.to(ctx.dtype).to(grad.dtype)
        grad_weight = torch.einsum("nohw,nchw->oc", grad, x).view(weight.shape)
        return torch.einsum("nohw,oc->nchw", grad, weight.flatten(1)), grad_weight, None


@contextmanager
def rounding(dtype: torch.dtype) -> Iterator[None]:
    """`reference` rounds what goes into a norm, behind its statistics, what an op reads, and the
    factors of matrix products.
    """
    normalise, apply, norm = _layers.normalise, _mixed_cell._apply, _mixed_cell._Norms.__call__

    def without_norm(norms: Any, y: Tensor, slot: int) -> Tensor:
        out = norm(norms, y, slot)
        return stored(out, dtype) if norms.kinds[slot] == reference.NORM_NONE else out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mixed_cell._Norms, "__call__", without_norm)
        patch.setattr(_layers, "normalise", lambda y, *rest: normalise(stored(y, dtype), *rest))
        patch.setattr(
            _mixed_cell, "_apply", lambda op, x, *rest: apply(op, stored(x, dtype), *rest)
        )
        if rounds_factors(dtype):
            patch.setattr(_layers, "pointwise", lambda x, weight: Product.apply(x, weight, dtype))
        yield


def halved(case: Case, dtype: torch.dtype) -> Case:
    """The case in float32 with states of this dtype."""
    single = case.to(torch.float32)
    return replace(single, states=[x.detach().to(dtype).requires_grad_() for x in single.states])


def gradients(output: Tensor, case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(99)
    grad = torch.randn(output.shape, dtype=torch.float64, generator=generator).bfloat16().half()
    named = case.named_leaves
    grads = torch.autograd.grad(
        *(output, list(named.values()), grad.to(output.dtype)), materialize_grads=True
    )
    return {f"gradient of {name}": g for name, g in zip(named, grads, strict=True)}


def arguments_of(case: Case) -> list[Any]:
    """Of the native op, with the states as they are."""
    single = replace(case, states=[x.detach().float() for x in case.states])
    _, *arguments = op_arguments(single)
    return [case.states, *arguments]


def native(case: Case) -> dict[str, Tensor]:
    output, _, mean, var = _ops.mixed_cell(*arguments_of(case), True)
    assert output.dtype == case.states[0].dtype
    assert mean.dtype == var.dtype == torch.float32
    grads = gradients(output, case)
    for (name, leaf), grad in zip(case.named_leaves.items(), grads.values(), strict=True):
        assert grad.dtype == leaf.dtype, name
    return {"output": output.detach(), "mean": mean, "var": var, **grads}


def truth(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    exact = case.to(torch.float64)
    with rounding(dtype):
        output, _, mean, var = reference.mixed_cell(*op_arguments(exact), False)
        grads = gradients(output, exact)
    return {"output": output.detach(), "mean": mean, "var": var, **grads}


def relative(value: Tensor, exact: Tensor) -> float:
    return ((value.double() - exact).norm() / exact.norm()).item()


CELLS: dict[str, dict[str, Any]] = {
    "darts": {"names": DARTS, "inputs": 2, "nodes": 3, "multiplier": 3, "channels": 16},
    "darts, stride 2, C=4": {"inputs": 2, "nodes": 2, "multiplier": 2, "stride": 2, "channels": 4},
    "C=10, groups": {"inputs": 2, "nodes": 2, "groups": 2, "masked": True, "channels": 10},
    "nasbench201": {"names": NASBENCH201, "nodes": 3, "channels": 16},
    "dense, C=36, batch 1": {"names": (*DARTS, "dense_3"), "channels": 36, "batch": 1},
    "reduction, C=68": {"names": ("sep_3", "skip"), "stride": 2, "channels": 68, "batch": 1},
}


@HALVES
@pytest.mark.parametrize("cell", CELLS)
def test_one_rounding_per_stored_value(backend, cell, dtype):
    case = halved(make_case(**{"size": (8, 6), "affine": True, **CELLS[cell]}), dtype)
    wanted = truth(case, dtype)
    exact, actual = by_role(wanted), by_role(native(case))
    half_ulp = torch.finfo(dtype).eps / 2
    images, _, height, width = wanted["output"].shape
    positions = images // case.groups * height * width
    for name, value in exact.items():
        if value.norm() == 0:
            assert actual[name].norm() == 0, name
            continue
        error = relative(actual[name], value)
        # A gradient meets a map's rounding once more, in what passes its norm by way of the
        # variance. Statistics are means over positions: roundings of single values average out.
        is_mean = name in ("mean", "var")
        allowed = half_ulp / (positions**0.5 if is_mean else 1)
        assert error <= allowed, f"{name}: {error:.2e} of {allowed:.2e}"
    assert relative(actual["output"], exact["output"]) > half_ulp / 50, "not rounded"


@HALVES
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 16])
def test_what_16_bits_hold_is_kept_exactly(backend, channels, stride, dtype):
    names = ["plain_max", "sep_3", "dil_3", "dil_5", "dense_1", "dense_3"]
    if stride == 1 or channels % 2 == 0:
        names.append("skip")
    sizes = {"channels": channels, "size": (8, 6), "stride": stride, "norm": "running"}
    case = whole_numbers(make_case(names, **sizes, inputs=2, groups=2, masked=True))
    low = replace(case, states=[x.detach().to(dtype).requires_grad_() for x in case.states])
    full, half = ({} for _ in range(2))
    for each, found in ((case, full), (low, half)):
        output = _ops.mixed_cell(*arguments_of(each), True)[0]
        grad = (torch.arange(output.numel()).view(output.shape) % 3 - 1.0).to(output.dtype)
        grads = torch.autograd.grad(output, each.leaves, grad, materialize_grads=True)
        found |= {"output": output, **dict(zip(each.named_leaves, grads, strict=True))}
    assert full["output"].abs().max() > 3
    for name, value in full.items():
        assert torch.equal(half[name], value.to(half[name].dtype)), name


# Of every number of pieces that a warp may have, of one chunk of 64 channels, and of more.
WIDTHS = [(1, 1), (5, 20), (16, 33), (20, 60), (70, 130), (64, 64)]


@HALVES
@pytest.mark.parametrize(("inputs", "outputs"), WIDTHS)
def test_products_of_whole_numbers_are_exact_at_any_width(backend, inputs, outputs, dtype):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator).float()

    x, weight = draw(3, inputs, 7, 9), draw(outputs, inputs, 1, 1)
    grad = draw(3, outputs, 7, 9)
    found = []
    for given in (x, x.to(dtype)):
        leaves = [given.requires_grad_(), weight.clone().requires_grad_()]
        if given.dtype == torch.float32:
            output = torch.nn.functional.conv2d(given.relu(), leaves[1])
        else:
            zero = torch.zeros(outputs)
            statistics = (None, None, zero, zero + 1, 2, 0.0)
            with backend.registered("relu_conv_norm", "relu_conv_norm_backward"):
                output = RELU_CONV_NORM(given, leaves[1:], *statistics, 1, 1)[0]
        found.append([output, *torch.autograd.grad(output, leaves, grad.to(output.dtype))])
    for wide, narrow in zip(*found, strict=True):
        assert wide.abs().max() <= 256 or narrow.dtype == torch.float32
        assert torch.equal(narrow.float(), wide)


@HALVES
def test_both_factors_of_products_are_rounded(backend, dtype):
    # One separable block of two channels, whose window sees one pixel of 1. Terms of opposite sign
    # cancel to 0 where rounding takes `step` away, and to `step` where no factor is rounded.
    step = torch.finfo(dtype).eps / 4
    kept = 0.0 if rounds_factors(dtype) else step

    def run(
        depthwise: list[float], pointwise: list[float], gamma: list[float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and for a gradient of 1 the gradients of the state and the matrix."""
        x = torch.ones(1, 2, 1, 1, dtype=dtype, requires_grad=True)
        taps = torch.zeros(2, 1, 3, 3)
        taps[:, 0, 1, 1] = torch.tensor(depthwise)
        matrix = torch.tensor([pointwise, pointwise]).view(2, 2, 1, 1).requires_grad_()
        zero = torch.zeros(2)
        output = _ops.mixed_cell(
            *([x], torch.ones(1, 1), [taps, matrix], [torch.tensor(gamma)], [], [zero], [zero + 1]),
            *([0, 1, 4, 3, 1], [2], [0.0], 1, 1, 1, 1, 0, None, 0, True),
        )[0]
        grads = torch.autograd.grad(output, [x, matrix], torch.ones_like(output))
        return (output.detach().flatten(), *(grad.flatten() for grad in grads))

    ones = [1.0, 1.0]
    over = [1.0 + step, -1.0]
    assert run(over, ones, ones)[0].tolist() == [kept, kept]
    assert run(ones, over, ones)[0].tolist() == [kept, kept]
    assert run(ones, ones, over)[1].tolist() == [kept, kept]
    assert run(ones, ones, over)[2].tolist() == [1.0 + kept, 1.0 + kept, -1.0, -1.0]
    assert run(over, ones, ones)[2].tolist() == [1.0 + kept, -1.0, 1.0 + kept, -1.0]
    # Taps, scales and sums are float32's: a difference that 16 bits hold beside 1 arrives.
    assert run([1.0, 2 * step - 1.0], ones, ones)[0].tolist() == [2 * step, 2 * step]


@HALVES
def test_same_bits_in_every_order(backend, dtype):
    case = halved(make_case((*DARTS, "dense_3"), inputs=2, nodes=2, channels=10), dtype)
    assert_same_bits_in_every_order(backend, lambda: native(case))


@HALVES
def test_what_overflows_is_infinite_and_nan_stays(backend, dtype):
    # A dense convolution of one channel and weight 1 gives the ReLU of the state.
    largest = torch.finfo(dtype).max
    x = torch.tensor([1.0, -1.0, largest, float("inf"), float("nan"), 2.0**-24, 0.0, -0.0])
    x = x.to(dtype).view(1, 1, 1, -1)
    ones = torch.ones(1, 1, 1, 1)
    output = _ops.mixed_cell(
        *([x], 2 * torch.ones(1, 1), [ones], [], [], [torch.zeros(1)], [torch.ones(1)]),
        *([0, 1, 6, 1, 1], [2], [0.0], 1, 1, 1, 1, 0, None, 0, False),
    )[0]
    expected = (2 * x.float().relu()).to(dtype)
    assert expected[0, 0, 0, 2] == float("inf")
    assert torch.equal(output.isnan(), expected.isnan())
    assert torch.equal(output.nan_to_num(), expected.nan_to_num())


@contextmanager
def autocast_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_dtype("cuda", before)


@HALVES
def test_autocast_stores_maps_in_its_dtype(backend, dtype):
    single = make_case((*DARTS, "dense_3"), channels=4).to(torch.float32)
    low = halved(single, dtype)
    expected = native(low)
    with autocast_dtype(dtype), use_bf16_maps():
        for case in (single, low):
            output, saved, mean, _ = _ops.mixed_cell.redispatch(AUTOCAST, *arguments_of(case), True)
            assert (output.dtype, saved.dtype, mean.dtype) == (dtype, dtype, torch.float32)
            assert torch.equal(output, expected["output"])
            grads = gradients(output, case)
            for (name, leaf), grad in zip(case.named_leaves.items(), grads.values(), strict=True):
                assert grad.dtype == leaf.dtype, name
                assert torch.equal(
                    grad.to(leaf.dtype), expected[f"gradient of {name}"].to(leaf.dtype)
                )
        double = single.to(torch.float64)
        output = _ops.mixed_cell.redispatch(AUTOCAST, *op_arguments(double), True)[0]
    assert output.dtype == torch.float64


def conv_arguments(kernel: int, stride: int) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return draw(3, 12, 8, 6), [draw(20, 12, kernel, kernel) / 3], draw(20), draw(20)


@HALVES
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2)])
def test_relu_conv_norm(backend, kernel, stride, dtype):
    with backend.registered("relu_conv_norm", "relu_conv_norm_backward"):
        compare_relu_conv_norm(kernel, stride, dtype)


def compare_relu_conv_norm(kernel: int, stride: int, dtype: torch.dtype) -> None:
    x, weights, gamma, beta = conv_arguments(kernel, stride)
    x = x.to(dtype)
    found: list[list[Tensor]] = []
    for wide in (torch.float64, torch.float32):
        parameters = [p.to(wide).requires_grad_() for p in (*weights, gamma, beta)]
        given = x.to(wide if wide == torch.float64 else dtype).requires_grad_()
        arguments = (given, parameters[:1], *parameters[1:], None, None, 1, 1e-5, stride, 1)
        if wide == torch.float64:
            with rounding(dtype):
                output, _, mean, var = reference.relu_conv_norm(*arguments)
        else:
            output, raw, mean, var = RELU_CONV_NORM(*arguments)
            assert (output.dtype, raw.dtype, mean.dtype) == (dtype, dtype, torch.float32)
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).bfloat16().half()
        grad = grad.view(output.shape).to(output.dtype)
        leaves = [given, *parameters]
        grads = torch.autograd.grad(output, leaves, grad)
        assert [g.dtype for g in grads] == [leaf.dtype for leaf in leaves]
        found.append([mean, var, output.detach(), *grads])
    for actual, exact in zip(*reversed(found), strict=True):
        assert relative(actual, exact) <= torch.finfo(dtype).eps / 2
    with autocast_dtype(dtype):
        out = RELU_CONV_NORM.redispatch(
            AUTOCAST,
            x.float(),
            [w.float() for w in weights],
            gamma.float(),
            beta.float(),
            *(None, None, 1, 1e-5, stride, 1),
        )[0]
    assert torch.equal(out, found[1][2])


@HALVES
def test_second_derivative(backend, dtype):
    case = halved(make_case(("sep_3", "avg_pool", "dense_1"), channels=2, size=(4, 3)), dtype)

    def second(each: Case, call: Callable[..., Any], *rest: object) -> list[Tensor]:
        output = call(*arguments_of(each), *rest)[0]
        leaves = [each.weights, each.states[0]]
        first = torch.autograd.grad(output.double().square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.double().square().sum() for g in first), leaves))

    single = replace(case, states=[x.detach().float().requires_grad_() for x in case.states])
    actual = second(case, _ops.mixed_cell, True)
    expected = second(single, reference.mixed_cell, False)
    for value, exact in zip(actual, expected, strict=True):
        assert relative(value, exact.double()) < 20 * torch.finfo(dtype).eps


def test_errors(backend):
    case = halved(make_case(NASBENCH201), torch.bfloat16)
    states, weights, *rest = arguments_of(case)
    with pytest.raises(TypeError, match="weights must be Float beside maps of BFloat16, got Half"):
        _ops.mixed_cell(states, weights.half(), *rest, False)
    *arguments, _ = arguments_of(case)
    message = "a precision below the full one needs float32 states, got BFloat16"
    with pytest.raises(NotImplementedError, match=message):
        _ops.mixed_cell(*arguments, reference.PRECISION_MAPS, False)
