# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811  (the imported tests run here, with the imported `backend`)
"""What tests/test_mixed_cell_cuda.py shows, at more sizes and under the sanitizers."""

from __future__ import annotations

import pytest
import torch
from cell_cases import assert_matches_reference
from checked_runs import run_checked, under_every_check
from simt_build import Build
from simulated_cell import MARKS, backend
from test_mixed_cell import test_any_size, test_any_strides, test_each_kind
from test_mixed_cell_bf16 import (
    test_what_bfloat16_holds_is_kept_exactly,
    test_what_is_stored_is_the_nearest_value,
)
from test_mixed_cell_contract import test_gradcheck_of_a_cell, test_gradcheck_of_an_edge
from test_mixed_cell_shared import (
    test_equal_to_stacked_states,
    test_one_group_shares_nothing_and_everything,
    test_without_images,
)
from test_relu_conv_norm import test_any_number_of_channels as test_channels_of_relu_conv_norm
from test_relu_conv_norm import test_any_size as test_sizes_of_relu_conv_norm

pytestmark = [*MARKS, pytest.mark.slow]


def test_a_real_cell_of_a_search(backend):
    cell = {"inputs": 2, "nodes": 4, "multiplier": 4, "channels": 16, "size": (32, 32)}
    assert_matches_reference(torch.float64, **cell)


def test_many_tiles(backend):
    # More positions than a tile has, and more tiles than a warp has lanes.
    assert_matches_reference(names=("sep_3", "max_pool"), batch=9, size=(33, 32), channels=4)


def test_maps_of_16_bits_as_on_sm_75():
    run_checked(Build.PLAIN, "tests/test_mixed_cell_cuda_half.py", architecture=75)


@under_every_check
def test_under_every_check(build):
    files = ("tests/test_mixed_cell_cuda.py", "tests/test_mixed_cell_cuda_half.py", __file__)
    run_checked(build, *files)
