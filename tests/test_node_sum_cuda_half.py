# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811  (the imported `backend`)
"""node_sum on CUDA with maps of 16 bits, emulated on the CPU (tests/simt).

The truth is the reference in float64 on the same maps. Plain PyTorch beside it computes in float32
and rounds what has the maps' dtype once: the node and the maps' gradients. So must the kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from closeness import assert_close
from emulated import assert_same_bits_in_every_order, launches_of, shifted
from simulated_cell import MARKS
from simulated_node_sum import backend
from test_mixed_cell_cuda_half import AUTOCAST, HALVES, autocast_dtype
from test_node_sum import MIXED, Case, draw_gradient, make_case, op_arguments
from torch import Tensor

from darts_fast import _ops, reference

pytestmark = MARKS

SELDOM = 0.005  # of values do float32 and float64 round differently


def halved(case: Case, dtype: torch.dtype) -> Case:
    """The case in float32 with maps of this dtype."""
    single = case.to(torch.float32)
    return replace(single, maps=[y.detach().to(dtype).requires_grad_() for y in single.maps])


def results(
    case: Case, op: Callable[..., Any], computed: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Outputs and gradients: of the op for the maps as they are, or brought to another dtype, in
    which the op computes, with a node of the maps' dtype behind it (in float64: of that).
    """
    stored = case.maps[0].dtype
    arguments = op_arguments(case)
    if computed is not None:
        arguments = ([y.to(computed) for y in case.maps], *arguments[1:])
    node, mean, var = op(*arguments)
    if computed == torch.float32:
        node = node.to(stored)
    # Numbers that 16 bits of both kinds hold.
    grad = draw_gradient(case).bfloat16().half().to(node.dtype)
    grads = torch.autograd.grad(node, case.leaves, grad, materialize_grads=True)
    named = {f"gradient {i}": g for i, g in enumerate(grads)}
    return {"node": node.detach(), "mean": mean, "var": var, **named}


def truth_of(case: Case) -> dict[str, Tensor]:
    """In float64, of the same numbers."""
    return results(case.to(torch.float64), reference.node_sum, torch.float64)


def assert_matches_reference(case: Case) -> None:
    """Compares every output and gradient under the closeness policy, and single values."""
    stored = case.maps[0].dtype
    actual = results(case, _ops.node_sum)
    eager = results(case, reference.node_sum, torch.float32)
    truth = truth_of(case)
    different, count = Counter[str](), Counter[str]()
    for name, value in actual.items():
        is_map = value.dim() == 4
        assert value.dtype == (stored if is_map else torch.float32), name
        assert_close(name, value, eager[name], truth[name], gradient=name.startswith("gradient"))
        if is_map:
            part = name.partition(" ")[0]
            different[part] += int((value != truth[name].to(stored)).sum())
            count[part] += value.numel()
    for part, values in different.items():
        assert values <= 1 + SELDOM * count[part], f"{part}: {values} of {count[part]} values"


SHAPES: dict[str, dict[str, Any]] = {
    "C=16": {"size": (17, 15)},
    "C=4, odd": {"channels": 4, "size": (7, 5)},
    "C=10, batch 1": {"channels": 10, "batch": 1, "size": (9, 7)},
    "C=36, 7 groups": {"channels": 36, "groups": 7, "batch": 1, "masked": True},
    "C=36": {"channels": 36, "size": (8, 9)},
    "C=1": {"channels": 1},
    "C=130": {"channels": 130, "batch": 2},
    "a row as wide as a block": {"channels": 255, "batch": 2},
    "a row wider than a block": {"channels": 257, "batch": 2},
    "columns that are cut": {"channels": 520, "terms": 2, "norms": ["batch", "none"]},
    "many tiles": {"terms": 35, "batch": 2, "size": (40, 33), "channels": 10, "norms": "batch"},
    # 3 * 3 * 1 * 5 elements a group: most slices start between two vectors.
    "slices that are not aligned": {"channels": 5, "batch": 1, "size": (3, 3), "groups": 3},
    "one position per image": {"size": (1, 1), "batch": 4},
    "without affine": {"affine": False},
}


@HALVES
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients(backend, shape, dtype):
    case = make_case(**{"norms": MIXED, **SHAPES[shape]})
    assert_matches_reference(halved(case, dtype))


@HALVES
@pytest.mark.parametrize(("terms", "groups"), [(64, 1), (70, 1), (130, 1), (2, 70)])
def test_more_than_one_chunk_of_the_tables(backend, terms, groups, dtype):
    # Between chunks of terms the sum is not rounded.
    norms = [["batch", "running", "none"][k % 3] for k in range(terms)]
    shape = {"batch": 1, "channels": 6, "size": (3, 3), "masked": True}
    case = make_case(terms=terms, groups=groups, norms=norms, **shape)
    assert_matches_reference(halved(case, dtype))


@HALVES
@pytest.mark.parametrize("channels", [3, 8, 10])
def test_what_16_bits_hold_is_kept_exactly(backend, channels, dtype):
    case = make_case(channels=channels, norms=["running", "none"] * 3, terms=6, groups=2)
    whole = [y.detach().round().clamp(-4, 4) for y in case.maps]
    whole_numbers = {
        name: getattr(case, name).detach().round() for name in ("weights", "gamma", "beta")
    }
    whole_numbers |= {"running_mean": case.running_mean.round()}
    # 1 + eps, whose root a float32 holds: no rounding is left.
    ones = torch.full_like(case.running_var, 1 - 1e-5)
    case = replace(case, maps=whole, running_var=ones, **whole_numbers)
    found = []
    for stored in (torch.float32, dtype):
        each = halved(case, stored)
        found.append(results(each, _ops.node_sum))
    single, low = found
    assert 3 < single["node"].abs().max() <= 256
    for name, value in single.items():
        assert torch.equal(low[name], value.to(low[name].dtype)), name


@HALVES
@pytest.mark.parametrize("channels", [4, 10, 36])
def test_same_bits_in_every_order(backend, channels, dtype):
    shape = {"terms": 5, "batch": 2, "size": (17, 15), "groups": 2, "masked": True}
    case = halved(make_case(channels=channels, norms=MIXED, **shape), dtype)
    assert_same_bits_in_every_order(backend, lambda: results(case, _ops.node_sum))


@HALVES
def test_maps_that_are_not_aligned(backend, dtype):
    case = halved(make_case(norms=MIXED, size=(7, 5)), dtype)
    moved = replace(case, maps=[shifted(y) for y in case.maps])
    assert all(y.data_ptr() % 16 != 0 for y in moved.maps)
    assert_matches_reference(moved)


@HALVES
def test_inactive_maps_are_not_read(backend, dtype):
    case = make_case(norms=MIXED, groups=2)
    active = torch.tensor([[True, False, False, True, True], [False, True, True, False, True]])
    case = replace(halved(case, dtype), active=active)
    clean = results(case, _ops.node_sum)
    half = case.maps[0].shape[0] // 2
    with torch.no_grad():
        for k, y in enumerate(case.maps):
            for group in range(2):
                if not active[group, k]:
                    y[group * half : (group + 1) * half] = float("nan")
    for name, value in results(case, _ops.node_sum).items():
        assert torch.equal(value, clean[name]), name
        assert bool(value.isfinite().all())


@HALVES
def test_a_weight_of_zero_is_multiplied(backend, dtype):
    case = halved(make_case(norms="none", affine=False), dtype)
    with torch.no_grad():
        case.weights[0, 1] = 0
        case.maps[1][0, 0, 0, 0] = float("inf")
    node = case.run().node
    assert bool(node[0, 0, 0, 0].isnan())
    assert node.isnan().sum() == 1


@HALVES
def test_what_overflows_is_infinite(backend, dtype):
    largest = torch.finfo(dtype).max
    y = torch.tensor([1.0, -largest, largest, float("nan")], dtype=dtype).view(1, 1, 1, 4)
    arguments = (None, None, None, None, [0], [0.0], 1, None)
    node = _ops.node_sum([y], torch.full((1, 1), 2.0), *arguments)[0]
    expected = [2.0, -float("inf"), float("inf")]
    assert node.flatten()[:3].tolist() == expected
    assert bool(node.flatten()[3].isnan())


@HALVES
@pytest.mark.parametrize(("norms", "expected"), [("batch", 3), ("running", 2), ("none", 2)])
def test_launches_of_a_node(backend, norms, expected, dtype):
    case = halved(make_case(terms=35, norms=norms), dtype)
    assert launches_of(backend, case.run) == expected
    out = case.run()
    backward = launches_of(backend, lambda: torch.autograd.grad(out.node.sum(), case.leaves))
    assert backward == 3


@HALVES
def test_nothing_is_launched_for_nothing(backend, dtype):
    case = halved(make_case(batch=0, norms=MIXED), dtype)
    assert launches_of(backend, lambda: results(case, _ops.node_sum)) == 0


@HALVES
def test_autocast_stores_maps_in_its_dtype(backend, dtype):
    single = make_case(norms=MIXED).to(torch.float32)
    low = halved(single, dtype)
    mixed = replace(low, maps=[*low.maps[:2], *single.maps[2:]])

    def autocast(*arguments: Any) -> Any:
        return _ops.node_sum.redispatch(AUTOCAST, *arguments)

    expected = results(low, _ops.node_sum)
    with autocast_dtype(dtype):
        for case in (single, low, mixed):
            found = results(case, autocast)
            assert found["node"].dtype == dtype
            assert found["mean"].dtype == found["var"].dtype == torch.float32
            for i, leaf in enumerate(case.leaves):
                assert found[f"gradient {i}"].dtype == leaf.dtype
            for name, value in found.items():
                assert torch.equal(value, expected[name].to(value.dtype)), name
        lower = replace(low, weights=low.weights.detach().to(dtype).requires_grad_())
        assert results(lower, autocast)["gradient 5"].dtype == dtype
        double = make_case(norms=MIXED)
        assert results(double, autocast)["node"].dtype == torch.float64


@HALVES
def test_second_derivative(backend, dtype):
    case = halved(make_case(channels=2, size=(4, 3), norms=MIXED), dtype)

    def second(each: Case, op: Callable[..., Any]) -> list[Tensor]:
        leaves = [each.weights, each.maps[0]]
        node = op(*op_arguments(each))[0]
        first = torch.autograd.grad(node.double().square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.double().square().sum() for g in first), leaves))

    exact = case.to(torch.float64)
    for value, wanted in zip(
        second(case, _ops.node_sum), second(exact, reference.node_sum), strict=True
    ):
        error = (value.double() - wanted).norm() / wanted.norm()
        assert error < 20 * torch.finfo(dtype).eps


def test_errors(backend):
    case = halved(make_case(), torch.bfloat16)
    maps, weights, *rest = op_arguments(case)
    message = "weights must be Float beside maps of BFloat16, got BFloat16"
    with pytest.raises(TypeError, match=message):
        _ops.node_sum(maps, weights.bfloat16(), *rest)
    with pytest.raises(TypeError, match="every map must have the dtype of the maps, BFloat16"):
        _ops.node_sum([maps[0], *(y.half() for y in maps[1:])], weights, *rest)
