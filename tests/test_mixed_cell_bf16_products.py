# SPDX-License-Identifier: Apache-2.0
"""Pointwise products of bfloat16 pairs: the instruction of AVX512-BF16 against converted maps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from capabilities import running_on
from cell_cases import DARTS, NASBENCH201, Case, by_role, make_case, op_arguments, whole_numbers
from torch import Tensor

import darts_fast
from darts_fast import _ops
from darts_fast.backend import use_bf16_maps
from darts_fast.reference import PRECISION_FULL, PRECISION_MAPS, PRECISION_PRODUCTS

PRODUCTS, CONVERTED = "cpu[AVX512BF16]", "cpu[AVX512]"

pytestmark = pytest.mark.skipif(
    "AVX512BF16" not in darts_fast.available_cpu_capabilities(),
    reason="AVX512BF16 is not in this build or not on this CPU",
)


def both(case: Case, grad: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Results of the op at the precision of autocast, of multiplied and of converted values."""
    found = []
    for name in (PRODUCTS, CONVERTED):
        with running_on(name):
            *arguments, _ = op_arguments(case)
            output, _, mean, var = _ops.mixed_cell(*arguments, PRECISION_PRODUCTS, True)
            named = case.named_leaves
            upstream = torch.linspace(-1, 1, output.numel()).view(output.shape)
            grads = torch.autograd.grad(
                *(output, list(named.values()), upstream if grad is None else grad),
                allow_unused=True,
                materialize_grads=True,
            )
        gradients = {f"gradient of {n}": g for n, g in zip(named, grads, strict=True)}
        found.append({"output": output.detach(), "mean": mean, "var": var, **gradients})
    return found


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 3, 7, 10, 16, 17, 31, 33, 36, 64])
def test_what_bfloat16_holds_is_multiplied_exactly(channels: int, stride: int) -> None:
    # No depthwise output of 25 products of 1, 0 and -1 has more than the 8 bits of bfloat16.
    names = ("one_3", "one_5", "dil_3", "dil_5")
    case = make_case(names, channels=channels, size=(9, 7), stride=stride, norm="running")
    case = whole_numbers(case)
    shape = case.run().output.shape
    grad = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(2)).float()
    multiplied, converted = both(case, grad)
    assert converted["output"].abs().max() > 3
    for name, value in converted.items():
        assert torch.equal(multiplied[name], value), name


@pytest.mark.parametrize("cell", ["edge", "cell", "reduction", "nasbench201"])
@pytest.mark.parametrize("channels", [6, 16, 20])
def test_rounded_factors_are_as_near_as_rounded_maps(cell: str, channels: int) -> None:
    whole = {"inputs": 2, "nodes": 2, "multiplier": 2, "affine": True}
    sizes = {"channels": channels, "size": (12, 12), "batch": 4}
    case = {
        "edge": make_case(DARTS, affine=True, groups=2, masked=True, **sizes),
        "cell": make_case(DARTS, **whole, **sizes),
        "reduction": make_case(DARTS, **whole, stride=2, **sizes),
        "nasbench201": make_case(NASBENCH201, nodes=3, **sizes),
    }[cell]
    multiplied, converted = map(by_role, both(case.to(torch.float32)))
    for name, value in converted.items():
        error = ((multiplied[name] - value).norm() / value.norm()).item()
        if cell == "nasbench201":  # its convolutions are dense
            assert error == 0.0, name
            continue
        assert error < (8e-2 if name.startswith("gradient") else 6e-3), f"{name}: {error:.2e}"
        assert error > 1e-6, f"{name} is that of float32 factors: {error:.2e}"


@pytest.mark.parametrize("channels", [3, 5, 17])
def test_an_odd_channel_takes_nothing_from_the_next_pixel(channels: int) -> None:
    case = make_case(("one_3",), channels=channels, size=(5, 40), norm="running").to(torch.float32)
    state = case.states[0].detach().clone()
    state[:, 0, :, 20] = float("inf")
    multiplied, converted = both(replace(case, states=[state.requires_grad_()]))
    finite = converted["output"].isfinite()
    assert 0 < finite.sum() < finite.numel()
    assert torch.equal(multiplied["output"].isfinite(), finite)


@pytest.mark.parametrize("precision", [PRECISION_FULL, PRECISION_MAPS])
def test_only_autocast_multiplies_in_bfloat16(precision: int) -> None:
    case = make_case(DARTS, channels=16).to(torch.float32)
    found = []
    for name in (PRODUCTS, CONVERTED):
        with running_on(name), use_bf16_maps(precision == PRECISION_MAPS):
            found.append(case.results("fused"))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    with running_on(PRODUCTS), torch.autocast("cpu", torch.bfloat16):
        low = case.run().output
    with running_on(CONVERTED), torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(low, case.run().output)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    case = make_case(DARTS, inputs=2, nodes=2, channels=12, size=(16, 16), batch=8)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(both(case.to(torch.float32))[0])
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), name
