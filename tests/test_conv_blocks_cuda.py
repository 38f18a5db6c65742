# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811  (the imported tests run here, with the imported `backend`)
"""CUDA kernels, launchers and binding of conv_blocks, emulated on the CPU (tests/simt).

Tests of the op run again here, with the emulated kernels in the place of the CPU's; this file adds
what only the CUDA half has: orders of threads, launches, tiles and chunks, refusals.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from emulated import assert_same_bits_in_every_order, launches_of, shifted
from simulated_cell import MARKS
from simulated_conv_blocks import backend
from simulator import Simulated
from test_conv_blocks import (
    ALL,
    WITH_POINTWISE,
    assert_matches_reference,
    make_case,
    op_arguments,
    test_a_gradient_that_does_not_arrive_is_not_computed,
    test_any_strides,
    test_empty_batch,
    test_groups_have_their_own_statistics_and_decisions,
    test_value_and_gradients,
)
from torch.nn import functional as torch_functional

from darts_fast import _ops

pytestmark = MARKS


@pytest.mark.parametrize("stride", [1, 2])
def test_equals_the_convolutions_of_torch(backend, stride):
    case = make_case(stride=stride, size=(16, 16), batch=1)
    out = case.run()
    for b, y in enumerate(out.outputs):
        kernel, dilation = case.depthwise[b].shape[-1], case.dilations[b]
        x = case.inputs[case.sources[b]].relu()
        pad = dilation * (kernel - 1) // 2
        x = torch_functional.conv2d(x, case.depthwise[b], None, stride, pad, dilation, 16)
        torch.testing.assert_close(y, torch_functional.conv2d(x, case.pointwise[b]))
        torch.testing.assert_close(out.mean[0, b], y.mean((0, 2, 3)))
        torch.testing.assert_close(out.var[0, b], y.var((0, 2, 3), correction=0))


# Behind 16 channels a product is made in several depths, behind 64 in several widths.
@pytest.mark.parametrize(
    "channels", [(4, 4), (10, 10), (36, 36), (6, 10), (32, 16), (3, 1), (70, 20), (12, 68)]
)
def test_any_number_of_channels(backend, channels):
    branches = ((3, 1), (5, 2), (0, 1)) if channels[0] < 60 else ((3, 1), (0, 1))
    sizes = {"channels": channels[0], "out_channels": channels[1], "size": (5, 7), "batch": 1}
    assert_matches_reference(make_case(branches=branches, **sizes))
    norm = {"norm": "batch", "affine": True}
    assert_matches_reference(make_case(branches=branches, **sizes, **norm), torch.float64)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(32, 32), (7, 5), (1, 1), (1, 9), (33, 20)])
def test_any_size(backend, size, stride):
    few = {"branches": ((5, 2), (3, 1)), "batch": 1} if size[0] > 30 else {"batch": 3}
    norm = {} if size == (1, 1) else {"norm": "batch", "affine": True}
    case = make_case(size=size, stride=stride, channels=4, out_channels=4, **few, **norm)
    assert_matches_reference(case)


def test_a_real_second_block(backend):
    # A DARTS cell of 16 channels: every map its own norm, and no map of two branches.
    case = make_case(branches=((3, 1), (5, 1)), size=(32, 32), norm="batch", batch=1)
    assert_matches_reference(case)


def test_groups_that_are_many(backend):
    case = make_case(
        groups=7, batch=1, norm="running", affine=True, masked=True, channels=10, size=(5, 3)
    )
    assert not bool(case.active.all())
    assert_matches_reference(case)


def test_inputs_that_many_branches_share(backend):
    case = make_case(inputs=3, branches=(*ALL, *ALL), norm="batch", affine=True, size=(4, 4))
    assert_matches_reference(replace(case, sources=[0, 0, 2, 0, 2, 1, 0, 2, 0, 0]))


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("channels", "dtype"), [(10, torch.float64), (16, torch.float32)])
def test_same_bits_in_every_order(backend, channels, dtype, norm):
    sizes = {"channels": channels, "out_channels": channels, "size": (8, 6)}
    branches = {"branches": WITH_POINTWISE, "groups": 2, "masked": True}
    case = make_case(**sizes, **branches, norm=norm, affine=norm != "none")
    assert_same_bits_in_every_order(backend, lambda: case.to(dtype).results("fused"))


def test_inputs_that_are_not_aligned(backend):
    case = make_case(norm="batch").to(torch.float32)
    expected = case.results("fused")
    moved = replace(case, inputs=[shifted(x) for x in case.inputs])
    assert all(x.data_ptr() % 16 != 0 for x in moved.inputs)
    for name, value in moved.results("fused").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("norm", "forward", "backward"), [("none", 2, 4), ("batch", 3, 6)])
def test_launches(backend, norm, forward, backward):
    case = make_case(norm=norm, affine=norm != "none").to(torch.float32)
    assert launches_of(backend, case.run) == forward
    out = case.run().outputs
    grads = [torch.ones_like(y) for y in out]
    assert launches_of(backend, lambda: torch.autograd.grad(out, case.leaves, grads)) == backward


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_wanted_gradients_do_not_depend_on_the_others(backend, norm):
    affine = norm != "none"
    case = make_case(branches=WITH_POINTWISE, groups=2, masked=True, norm=norm, affine=affine)
    arguments = op_arguments(case.to(torch.float32))
    arguments = tuple(
        [y.detach() for y in x] if isinstance(x, list) and torch.is_tensor(x[0]) else x
        for x in arguments
    )
    outputs, _, _ = _ops.conv_blocks(*arguments)
    grads = [torch.randn_like(y) for y in outputs]
    branches = len(outputs)

    def gradients(mask: list[bool]) -> list[torch.Tensor]:
        found = _ops.conv_blocks_backward(grads, [True] * branches, *arguments, mask)
        return [y for x in found for y in (x if isinstance(x, list) else [x])]

    width = 2 + 2 + 2 * branches
    skipped = {4 + branches - 1, *(() if affine else (2, 3))}  # no such weight, no such parameter
    everything = gradients([i not in skipped for i in range(width)])
    for wanted in set(range(width)) - skipped:
        some = gradients([i == wanted for i in range(width)])
        for i, value in enumerate(some):
            assert (value.numel() > 0) == (i == wanted)
        assert torch.equal(some[wanted], everything[wanted])


def test_a_refused_launch_names_kernel_line_and_reason(backend):
    # More groups than the grid has rows for.
    groups = 65536
    arguments = (
        *([torch.zeros(groups, 1, 2, 1)], None, None, None, None, 0, 0.0, [0], [torch.empty(0)]),
        *([torch.ones(1, 1, 1, 1)], [1], 1, groups, None),
    )
    with pytest.raises(
        RuntimeError,
        match=r"conv_\w+: the launch at \S*.cuh:\d+ failed, invalid configuration argument",
    ):
        _ops.conv_blocks(*arguments)
    with pytest.raises(RuntimeError, match="conv_blocks: tables have room for 32767 of each kind"):
        _ops.conv_blocks(
            *([torch.zeros(1, 3, 4, 4)], None, None, None, None, 0, 0.0, [0]),
            *([torch.ones(3, 1, 3, 3)], [torch.ones(1, 3, 1, 1)], [32768], 1, 1, None),
        )
