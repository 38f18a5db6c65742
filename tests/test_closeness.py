# SPDX-License-Identifier: Apache-2.0
"""The tolerance policy fails on planted errors, and passes honest rounding."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close


@pytest.fixture
def triple() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    truth = torch.randn(64, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return truth.float(), truth.float(), truth


def test_rounding_passes(triple):
    actual, eager, truth = triple
    assert_close("x", actual, eager, truth, gradient=True)
    assert_close("x", actual * (1 + 2e-7), eager, truth, gradient=True)


def test_one_wrong_value_fails(triple):
    actual, eager, truth = triple
    actual[3, 4] += 1e-4
    with pytest.raises(AssertionError, match=r"flat index 103 .* exceeds"):
        assert_close("x", actual, eager, truth)


def test_twice_the_eager_error_is_the_limit(triple):
    _, _, truth = triple
    noise = torch.randn(truth.shape, dtype=torch.float64).sign() * 1e-3
    eager = (truth + noise).float()
    assert_close("x", (truth + 1.9 * noise).float(), eager, truth)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close("x", (truth + 2.1 * noise).float(), eager, truth)


def test_a_missing_small_gradient_fails(triple):
    # One large value makes the absolute bound too wide to see that the others are missing.
    _, _, truth = triple
    truth = truth * 2e-7
    truth[0, 0] = 1.0
    actual = torch.zeros_like(truth).float()
    actual[0, 0] = 1.0
    truth_rounded = truth.float()
    assert_close("x", actual, truth_rounded, truth)
    with pytest.raises(AssertionError, match="L2"):
        assert_close("x", actual, truth_rounded, truth, gradient=True)


def test_a_gradient_scaled_by_a_percent_fails(triple):
    actual, eager, truth = triple
    with pytest.raises(AssertionError):
        assert_close("x", actual * 1.01, eager, truth, gradient=True)


@pytest.mark.parametrize("planted", [float("nan"), float("inf")])
def test_a_planted_nan_or_infinity_fails(triple, planted):
    actual, eager, truth = triple
    actual[0, 0] = planted
    with pytest.raises(AssertionError, match="finite"):
        assert_close("x", actual, eager, truth)


def test_infinities_must_have_the_sign_of_the_truth(triple):
    actual, eager, truth = triple
    truth[0, 0] = float("inf")
    actual[0, 0] = eager[0, 0] = float("inf")
    assert_close("x", actual, eager, truth)
    actual[0, 0] = -float("inf")
    with pytest.raises(AssertionError, match="infinite"):
        assert_close("x", actual, eager, truth)


def test_shapes_and_dtypes_must_agree(triple):
    actual, eager, truth = triple
    with pytest.raises(AssertionError, match="shapes differ"):
        assert_close("x", actual[1:], eager, truth)
    with pytest.raises(AssertionError, match="dtypes differ"):
        assert_close("x", actual.double(), eager, truth)
    with pytest.raises(AssertionError, match="truth must be float64"):
        assert_close("x", actual, eager, eager)


def test_empty_tensors_are_close():
    empty = torch.empty(0, 3)
    assert_close("x", empty, empty, empty.double())
