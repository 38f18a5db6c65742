# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811  (the imported tests run here, with the imported `backend`)
"""What tests/test_conv_blocks_cuda.py shows, at more sizes and under the sanitizers."""

from __future__ import annotations

import pytest
from checked_runs import run_checked, under_every_check
from simt_build import Build
from simulated_cell import MARKS
from simulated_conv_blocks import backend
from test_conv_blocks import (
    assert_matches_reference,
    make_case,
    test_any_shape,
    test_gradcheck,
)

pytestmark = [*MARKS, pytest.mark.slow]


def test_many_tiles(backend):
    # More positions than a tile has, and more tiles than a warp has lanes.
    case = make_case(branches=((3, 1), (5, 2)), batch=9, size=(33, 32), channels=4, out_channels=4)
    assert_matches_reference(case)


def test_maps_of_16_bits_as_on_sm_75():
    run_checked(Build.PLAIN, "tests/test_conv_blocks_cuda_half.py", architecture=75)


@under_every_check
def test_under_every_check(build):
    files = ("tests/test_conv_blocks_cuda.py", "tests/test_conv_blocks_cuda_half.py", __file__)
    run_checked(build, *files)
