# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811  (the imported tests run here, with the imported `backend`)
"""The CUDA kernels, launchers and binding of node_sum, emulated on the CPU (tests/simt).

The tests of the op run again here, with the emulated kernels in the place of the CPU's; this file
adds what only the CUDA half has: orders of threads, launches, chunks, vectors, refused launches.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checked_runs import run_checked, under_every_check
from emulated import assert_same_bits_in_every_order, launches_of, shifted
from simulated_cell import MARKS
from simulated_node_sum import backend
from test_node_sum import (
    MIXED,
    Case,
    assert_matches_reference,
    draw_gradient,
    make_case,
    op_arguments,
    test_all_inactive_gives_zeros,
    test_any_number_of_channels,
    test_any_shape,
    test_any_strides,
    test_empty_batch,
    test_gradcheck,
    test_groups_have_their_own_weights_and_statistics,
    test_inactive_maps_are_not_read,
    test_many_tiles_and_terms,
    test_multiplied_zero_weight_spreads_nan,
    test_one_position_per_image,
    test_value_and_gradients,
    test_variance_far_from_zero_mean,
)

pytestmark = MARKS


def all_bits(case: Case) -> dict[str, torch.Tensor]:
    return case.results("fused", draw_gradient(case))


@pytest.mark.parametrize("channels", [4, 10, 16, 36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_in_every_order(backend, channels, dtype):
    case = make_case(
        terms=5, batch=2, channels=channels, size=(17, 15), groups=2, norms=MIXED, masked=True
    ).to(dtype)
    assert_same_bits_in_every_order(backend, lambda: all_bits(case))
    assert_matches_reference(case, dtype)


@pytest.mark.parametrize("channels", [257, 300, 512, 513])
def test_rows_of_channels_that_are_cut(backend, channels):
    assert_matches_reference(make_case(terms=2, channels=channels, norms=["batch", "none"]))


@pytest.mark.parametrize(
    ("terms", "groups"),
    [(64, 1), (70, 1), (2, 70), pytest.param(66, 65, marks=pytest.mark.slow)],
)
def test_more_than_one_chunk_of_the_tables(backend, terms, groups):
    norms = [["batch", "running", "none"][k % 3] for k in range(terms)]
    case = make_case(
        terms=terms, batch=1, channels=4, size=(2, 3), groups=groups, norms=norms, masked=True
    )
    assert_matches_reference(case)


def test_real_node_of_a_supernet(backend):
    # The last node of a cell of 16 channels, a small batch.
    assert_matches_reference(make_case(terms=35, batch=2, channels=16, size=(32, 32)))


def test_variance_a_million_deviations_from_zero(backend):
    # The mean of a tile is rounded to 1/16 of a deviation: the statistics take that back out.
    case = make_case(terms=3, batch=2, size=(20, 20), affine=False)
    far = replace(case, maps=[y / (k + 1) + 1e6 for k, y in enumerate(case.maps)])
    single = far.to(torch.float32)
    out = single.run()
    for k, y in enumerate(single.maps):
        truth = y.detach().double().var((0, 2, 3), correction=0)
        torch.testing.assert_close(out.var[0, k].double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_that_are_not_aligned(backend, dtype):
    case = make_case(norms=MIXED).to(dtype)
    moved = replace(case, maps=[shifted(y) for y in case.maps])
    assert all(y.data_ptr() % 16 != 0 for y in moved.maps)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in moved.maps)
    expected = all_bits(case)
    for name, value in all_bits(moved).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


def test_groups_whose_slices_are_not_aligned(backend):
    # 3 * 3 * 1 * 5 elements a group: every other slice starts between two vectors.
    assert_matches_reference(make_case(channels=5, batch=1, size=(3, 3), groups=3, norms=MIXED))


@pytest.mark.parametrize(("norms", "expected"), [("batch", 3), ("running", 2), ("none", 2)])
def test_launches_of_a_node(backend, norms, expected):
    case = make_case(terms=35, norms=norms)
    assert launches_of(backend, case.run) == expected
    out = case.run()
    backward = launches_of(backend, lambda: torch.autograd.grad(out.node.sum(), case.leaves))
    assert backward == 3


def test_nothing_is_launched_for_nothing(backend):
    case = make_case(batch=0, norms=MIXED)
    assert launches_of(backend, lambda: all_bits(case)) == 0
    out = case.run()
    expected = case.running_mean[2].expand_as(out.mean[:, 2])
    assert torch.equal(out.mean[:, 2], expected)
    assert bool((out.mean[:, :2] == 0).all())
    assert bool((out.var[:, [0, 1, 3, 4]] == 1).all())


@pytest.mark.parametrize("wanted", range(8))
def test_wanted_gradients_do_not_depend_on_the_others(backend, wanted):
    case = make_case(norms=MIXED, groups=2, masked=True).to(torch.float32)
    *arguments, running_mean, running_var = (x.detach() for x in op_tensors(case))
    maps = [y.detach() for y in case.maps]
    settings = op_arguments(case)[6:]
    _, mean, var = backend.forward(maps, *arguments, running_mean, running_var, *settings)
    grad = draw_gradient(case).float()

    def gradients(mask: list[bool]) -> list[torch.Tensor]:
        grad_maps, *rest = backend.backward(grad, maps, *arguments, mean, var, *settings, mask)
        return [*grad_maps, *rest]

    for index, value in enumerate(gradients([i == wanted for i in range(8)])):
        assert value.numel() == 0 if index != wanted else value.isfinite().all()
    alone = gradients([i == wanted for i in range(8)])[wanted]
    assert torch.equal(alone, gradients([True] * 8)[wanted])


def op_tensors(case: Case) -> list[torch.Tensor]:
    assert case.gamma is not None
    assert case.beta is not None
    return [case.weights, case.gamma, case.beta, case.running_mean, case.running_var]


def test_a_refused_launch_names_kernel_line_and_reason(backend):
    # More columns than the grid has blocks for.
    y = torch.zeros(2, 64 * 65536 + 4, 1, 1)
    with pytest.raises(
        RuntimeError,
        match=r"node_sum_statistics: the launch at \S*node_sum.cuh:\d+ failed, "
        r"invalid configuration argument, for a grid of \(1, 65537, 1\) blocks of \(256, 1, 1\)",
    ):
        backend.forward([y], torch.ones(1, 1), *(None,) * 4, [1], [1e-5], 1, None)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {0: [torch.zeros(4, 3, 2, 2, dtype=torch.int32)]},
            NotImplementedError,
            "maps must be float32 or float64, float16 or bfloat16 .*Int",
        ),
        ({1: torch.ones(1, 2)}, ValueError, r"weights must have shape \[1, 1\], got \[1, 2\]"),
        ({8: 3}, ValueError, "groups must divide the batch, got 3 groups for a batch of 4"),
        ({9: torch.ones(1, 1)}, TypeError, "active must be a bool tensor on the CPU, got Float"),
        ({6: [2]}, ValueError, "a running norm needs running_mean and running_var"),
    ],
)
def test_the_binding_checks(backend, changes, error, message):
    arguments = [[torch.zeros(4, 3, 2, 2)], torch.ones(1, 1), *(None,) * 4, [1], [1e-5], 1, None]
    for index, value in changes.items():
        arguments[index] = value
    with pytest.raises(error, match=f"node_sum: {message}"):
        backend.forward(*arguments)


@under_every_check
def test_under_every_check(build):
    run_checked(build, __file__, "tests/test_node_sum_cuda_half.py")
