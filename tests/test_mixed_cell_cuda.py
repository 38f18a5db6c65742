# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811  (the imported tests run here, with the imported `backend`)
"""CUDA kernels, launchers and bindings of mixed_cell and its kin, emulated on the CPU (tests/simt).

Tests of the ops run again here, with the emulated kernels in the place of the CPU's; this file adds
what only the CUDA half has: orders of threads, launches, wide and unaligned cells, refusals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
import torch
from cell_cases import (
    DARTS,
    NASBENCH201,
    Case,
    assert_matches_reference,
    make_case,
    op_arguments,
)
from emulated import assert_same_bits_in_every_order, launches_of, shifted
from simt_build import ROOT
from simulated_cell import MARKS, SimulatedCell, backend
from test_mixed_cell import (
    test_a_cell_whose_edges_differ,
    test_a_max_pool_of_negative_values_ignores_the_padding,
    test_edges_in_any_order_some_twice_some_missing,
    test_empty_batch,
    test_groups_have_their_own_weights_and_statistics,
    test_one_position_per_image,
    test_ties_of_a_max_pool_go_to_the_first_in_scan_order,
    test_variance_far_from_zero_mean,
)
from test_mixed_cell_contract import (
    test_a_multiplied_zero_weight_spreads_nan,
    test_a_node_without_active_ops_is_zero,
    test_an_inactive_op_leaks_nothing,
    test_one_op_of_each_edge_is_that_op,
    test_parameters_without_a_gradient,
    test_saving_changes_no_result,
)
from test_relu_conv_norm import test_empty_batch as test_empty_relu_conv_norm
from test_relu_conv_norm import (
    test_groups_have_their_own_statistics,
    test_more_output_channels_than_an_image_has_values,
    test_value_and_gradients,
    test_values_that_are_not_finite,
)
from test_running_statistics import (
    test_no_norm_that_tracks,
    test_one_value_keeps_its_biased_variance,
    test_statistics_move_as_in_torch,
    test_without_values_only_the_counter_moves,
)

from darts_fast import _ops
from darts_fast._ops import _mixed_cell
from darts_fast.backend import use_bf16_maps

sys.path.insert(0, str(ROOT / "bench" / "cuda"))

import launches

# Launches of a cell of 4 nodes.
FORWARD, FORWARD_RUNNING = 13, 14
BACKWARD, BACKWARD_ALPHAS = 15, 12

pytestmark = MARKS


@pytest.mark.parametrize("stride", [1, 2], ids=["normal", "reduction"])
def test_a_cell_of_darts(backend, stride):
    cell = {"inputs": 2, "nodes": 4, "multiplier": 4, "stride": stride}
    assert_matches_reference(torch.float64, **cell, channels=16, size=(8, 8))
    assert_matches_reference(torch.float32, **cell, channels=4, batch=3, affine=True)


@pytest.mark.parametrize("affine", [False, True])
def test_a_cell_of_nasbench201(backend, affine):
    for dtype in (torch.float32, torch.float64):
        assert_matches_reference(
            *(dtype,), names=NASBENCH201, nodes=3, multiplier=1, channels=16, affine=affine
        )


# Behind 16 channels a product is made in several depths, behind 64 in several widths.
@pytest.mark.parametrize("channels", [1, 3, 4, 10, 16, 36, 64, 70])
def test_any_number_of_channels(backend, channels):
    names = (*DARTS, "dense_1", "dense_3") if channels < 60 else ("sep_5", "dense_1", "avg_pool")
    assert_matches_reference(names=names, channels=channels, affine=True)
    if channels % 2 == 0:
        assert_matches_reference(names=("skip", "dil_3"), channels=channels, stride=2)


def test_groups_that_are_many(backend):
    case = {"groups": 7, "batch": 1, "masked": True, "channels": 10, "size": (5, 3)}
    assert_matches_reference(**case, inputs=2, nodes=2, multiplier=2)
    names = ("none", "dense_1", "dense_3", "plain_avg", "sep_5", "dil_3", "max_pool")
    assert_matches_reference(torch.float64, **case, names=names, stride=2, affine=True)


# The backward cuts images into boxes, here of 64 positions of 3 channels, and in float32 of 256 of
# 4: parts of an image whose windows reach into others, in several slabs; whole images; one row.
@pytest.mark.parametrize(
    ("channels", "size", "batch"),
    [(3, (20, 13), 1), (4, (33, 20), 2), (4, (5, 7), 20), (4, (1, 300), 1)],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_boxes_of_any_shape(backend, channels, size, batch, stride):
    case = {"channels": channels, "size": size, "batch": batch, "stride": stride}
    for dtype in (torch.float32, torch.float64):
        assert_matches_reference(dtype, names=("sep_3", "dil_5", "dense_3"), **case)


def test_boxes_that_share_a_row_of_partial_sums(backend):
    # 72 boxes; more than 64 rows would move more bytes than they save.
    assert_matches_reference(torch.float64, names=("sep_3",), channels=3, size=(72, 64), batch=1)


def bits(case: Case) -> dict[str, torch.Tensor]:
    return case.results("fused")


@pytest.mark.parametrize(("channels", "dtype"), [(10, torch.float64), (16, torch.float32)])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_bits_in_every_order(backend, channels, dtype, stride):
    names = (*DARTS, "dense_3")
    case = make_case(names, channels=channels, size=(8, 6), groups=2, masked=True, stride=stride)
    assert_same_bits_in_every_order(backend, lambda: bits(case.to(dtype)))


def test_states_that_are_not_aligned(backend):
    case = make_case(channels=16).to(torch.float32)
    expected = bits(case)
    case.states = [shifted(x) for x in case.states]
    assert all(x.data_ptr() % 16 != 0 for x in case.states)
    for name, value in bits(case).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("norm", "forward"), [("batch", FORWARD), ("running", FORWARD_RUNNING)])
def test_launches_of_a_cell_of_darts(backend, norm, forward):
    case = make_case(inputs=2, nodes=4, multiplier=4, channels=4, norm=norm)
    assert launches_of(backend, case.run) == forward
    out = case.run().output
    everything = lambda: torch.autograd.grad(out.sum(), case.leaves)  # noqa: E731
    assert launches_of(backend, everything) == BACKWARD


@pytest.mark.parametrize("cell_type", ["normal", "reduce"])
def test_launches_of_the_cells_of_s5(backend, cell_type):
    step = launches.cell_step("s5", cell_type)
    backend.by_op.clear()
    step()
    assert sum(backend.by_op[op] for op in launches.CELL_OPS) <= launches.TARGET
    record = {row["name"]: row["own"] for row in json.loads(launches.RECORD.read_text())["cells"]}
    assert dict(backend.by_op) == record[f"{cell_type} of s5"]


def test_launches_of_an_architecture_step(backend):
    # No parameter of an operation and no input wants a gradient.
    case = make_case(inputs=2, nodes=4, multiplier=4, channels=4)
    fixed = case.map(lambda x: x.detach(), lambda x: x)
    fixed.weights.requires_grad_()
    out = fixed.run().output.sum()
    grads = []
    gradient = lambda: grads.extend(torch.autograd.grad(out, fixed.weights))  # noqa: E731
    assert launches_of(backend, gradient) == BACKWARD_ALPHAS
    torch.testing.assert_close(grads, torch.autograd.grad(case.run().output.sum(), [case.weights]))


def test_wanted_gradients_do_not_depend_on_the_others(backend):
    case = make_case((*DARTS, "dense_3"), inputs=2, nodes=2, groups=2, masked=True, affine=True)
    arguments = op_arguments(case)
    *inputs, _, _ = arguments[:7]
    *settings, _, active, precision = arguments[7:]
    output, saved, mean, var = _ops.mixed_cell(*arguments, True)
    grad = torch.randn_like(output)
    flat = [x for part in inputs for x in (part if isinstance(part, list) else [part])]

    def gradients(mask: list[bool]) -> list[torch.Tensor]:
        states, weights, *rest = _mixed_cell.mixed_cell_backward(
            *(grad, saved, mean, var, *inputs, *settings, active, precision, mask)
        )
        return [*states, weights, *(x for part in rest for x in part)]

    everything = gradients([True] * len(flat))
    for wanted in (0, 1, 2, 3, 4, len(flat) // 2, len(flat) - 1):
        some = gradients([i == wanted for i in range(len(flat))])
        for i, value in enumerate(some):
            assert (value.numel() > 0) == (i == wanted)
        assert torch.equal(some[wanted], everything[wanted])


@pytest.mark.parametrize("channels", [3, 16])
def test_maps_in_bfloat16_are_near(backend, channels):
    case = make_case((*DARTS, "dense_3"), channels=channels, size=(8, 8)).to(torch.float32)
    truth = case.to(torch.float64).results("reference")
    with use_bf16_maps():
        actual = bits(case)
    for name, value in actual.items():
        if truth[name].norm() > 1e-3:
            error = ((value.double() - truth[name]).norm() / truth[name].norm()).item()
            assert error < 5e-2, name
    assert not torch.equal(actual["output"], bits(case)["output"])


def test_a_refused_launch_names_kernel_line_and_reason(backend):
    # More groups than the grid has rows for.
    groups = 65536
    x = torch.zeros(groups, 1, 2, 1)
    with pytest.raises(
        RuntimeError,
        match=r"cell_\w+: the launch at \S*.cuh:\d+ failed, invalid configuration argument",
    ):
        _ops.mixed_cell(
            *([x], torch.ones(groups, 1), [], [], [], [], [], [0, 1, 1, 0, 1], [], []),
            *(1, 1, 1, groups, 0, None, 0, False),
        )
