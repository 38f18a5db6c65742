# SPDX-License-Identifier: Apache-2.0
"""mixed_cell with states that all groups share: the bits of the same states stacked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cell_cases import DARTS, Case, assert_same, make_case
from torch import Tensor

from darts_fast import _ops, functional
from darts_fast.backend import use_backend

pytestmark = pytest.mark.filterwarnings("error")


def shared_case(shared: int, **arguments: object) -> tuple[Case, Case]:
    """The same call twice: the first so many states for one group, and stacked for all."""
    groups = arguments.setdefault("groups", 3)
    assert isinstance(groups, int)
    case = make_case(
        *(DARTS,), inputs=2, nodes=2, multiplier=2, affine=True, masked=True, **arguments
    )
    case = case.map(lambda x: x.detach(), lambda x: x.detach())
    one = [x[: len(x) // groups] if i < shared else x for i, x in enumerate(case.states)]
    stacked = [torch.cat(groups * [x]) if i < shared else x.clone() for i, x in enumerate(one)]
    return replace(case, states=one), replace(case, states=stacked)


def run(case: Case, shared: int) -> functional.MixedCell:
    return functional.mixed_cell(
        *(case.states, case.weights, case.edges),
        nodes=case.nodes,
        multiplier=case.multiplier,
        stride=case.stride,
        groups=case.groups,
        shared=shared,
        active=case.active,
    )


def to(case: Case, dtype: torch.dtype) -> Case:
    return case.map(lambda x: x.to(dtype), lambda x: x.to(dtype))


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_equal_to_stacked_states(backend: str, norm: str, stride: int, shared: int) -> None:
    one, stacked = shared_case(shared, norm=norm, stride=stride)
    for dtype in (torch.float32, torch.float64):
        for found, expected in zip(
            run(to(one, dtype), shared), run(to(stacked, dtype), 0), strict=True
        ):
            assert torch.equal(found, expected)
    with use_backend("reference"):
        reference = run(one, shared)
        again = run(stacked, 0)
    assert all(torch.equal(a, b) for a, b in zip(reference, again, strict=True))
    for name, found in run(one, shared)._asdict().items():
        assert_same(name, found, getattr(reference, name))


def test_maps_in_bfloat16(backend: str) -> None:
    one, stacked = (to(case, torch.float32) for case in shared_case(1))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = run(one, 1).output, run(stacked, 0).output
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_same_bits_at_any_number_of_threads(backend: str, norm: str) -> None:
    one, _ = shared_case(1, norm=norm, batch=5, size=(16, 16), channels=10)
    found = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found.append(run(one, 1).output)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("threads", [1, 3])
def test_groups_whose_maps_are_large_take_turns(backend: str, shared: int, threads: int) -> None:
    """Eight of them at a time: the maps of an edge are 1 MiB."""
    torch.set_num_threads(threads)
    groups, batch = 13, 4
    one, _ = shared_case(shared, groups=groups, batch=batch, size=(32, 32), channels=16, stride=1)
    one = to(one, torch.float32)
    found = run(one, shared)
    for group in range(groups):
        images = slice(group * batch, (group + 1) * batch)
        states = [x if i < shared else x[images] for i, x in enumerate(one.states)]
        assert one.active is not None
        rows = slice(group, group + 1)
        alone = run(
            replace(
                *(one,), states=states, weights=one.weights[rows], active=one.active[rows], groups=1
            ),
            0,
        )
        assert torch.equal(found.output[images], alone.output)
        assert torch.equal(found.mean[rows], alone.mean)
        assert torch.equal(found.var[rows], alone.var)


def test_one_group_shares_nothing_and_everything(backend: str) -> None:
    one, stacked = shared_case(2, groups=1)
    assert torch.equal(run(one, 2).output, run(stacked, 0).output)


@pytest.mark.parametrize("shared", [1, 2])
def test_without_images(backend: str, shared: int) -> None:
    one, stacked = shared_case(shared, batch=0)
    found, expected = run(one, shared), run(stacked, 0)
    assert found.output.shape == expected.output.shape == (0, 12, 6, 4)
    assert torch.equal(found.mean, expected.mean)


def arguments_of(case: Case, shared: int) -> tuple[object, ...]:
    """What `run` gives to the native op."""
    seen: list[tuple[object, ...]] = []
    inner = _ops.mixed_cell
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ops, "mixed_cell", lambda *a: seen.append(a) or inner(*a))
        run(case, shared)
    return seen[0]


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride: int, shared: int) -> None:
    one, _ = shared_case(shared, stride=stride)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_ops.mixed_cell, arguments_of(one, shared), test_utils=checks)


def test_compiles_as_one_graph() -> None:
    one, _ = shared_case(1)

    def call(x: Tensor) -> Tensor:
        return run(replace(one, states=[x, one.states[1]]), 1).output

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(one.states[0]), call(one.states[0]))


@pytest.mark.parametrize("backend_name", ["fused", "reference"])
def test_a_gradient_is_refused(backend_name: str) -> None:
    one, _ = shared_case(1)
    one.weights.requires_grad_()
    message = "mixed_cell: shared states have no gradient, got shared=1 where one is wanted"
    with use_backend(backend_name), pytest.raises(NotImplementedError, match=message):
        run(one, 1)
    with use_backend(backend_name), torch.no_grad():
        run(one, 1)


def test_the_op_checks_too() -> None:
    one, _ = shared_case(1)
    *arguments, _ = arguments_of(one, 1)
    with pytest.raises(NotImplementedError, match="shared states have no gradient, got shared=1"):
        _ops.mixed_cell(*arguments, True)
    for shared in (-1, 3):
        with pytest.raises(ValueError, match=f"shared must be 0 to .*, got {shared} for 2 states"):
            _ops.mixed_cell(*arguments[:14], shared, *arguments[15:], False)
    with pytest.raises(ValueError, match=r"every shared state must have shape \[2, 6, 6, 4\]"):
        _ops.mixed_cell([one.states[1], one.states[1]], *arguments[1:], False)
