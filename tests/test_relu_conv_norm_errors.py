# SPDX-License-Identifier: Apache-2.0
"""Every message of relu_conv_norm."""

from __future__ import annotations

import pytest
import torch

from darts_fast import _ops, functional
from darts_fast.functional import Norm

pytestmark = pytest.mark.filterwarnings("error")

X, W, BATCH = torch.zeros(4, 6, 6, 6), torch.zeros(8, 6, 3, 3), Norm()
HALF, ROW = torch.zeros(4, 6, 1, 1), torch.zeros(8)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((X[0], [W], BATCH), {}, ValueError, r"x must have 4 dimensions .*got \[6, 6, 6\]"),
        ((X[:, :, :0], [W], BATCH), {}, ValueError, r"rows and columns, got \[4, 6, 0, 6\]"),
        ((X.half(), [W.half()], BATCH), {}, NotImplementedError, "float64, got torch.float16"),
        ((X, [W], BATCH), {"stride": 3}, ValueError, "stride must be 1 or 2, got 3"),
        ((X, [W], BATCH), {"groups": 3}, ValueError, "divide the batch, got 3 groups for .* of 4"),
        ((X, [W], BATCH), {"groups": 0}, ValueError, "divide the batch, got 0 groups"),
        ((X, [], BATCH), {}, ValueError, "weights must be one, or two halves, got 0"),
        ((X, [HALF] * 3, BATCH), {"stride": 2}, ValueError, "one, or two halves, got 3"),
        ((X, [W[0]], BATCH), {}, ValueError, r"weights must have 4 .*got \[6, 3, 3\]"),
        ((X, [W[:0]], BATCH), {}, ValueError, r"and channels, got \[0, 6, 3, 3\]"),
        ((X, [W[..., :2]], BATCH), {}, ValueError, r"kernel must be 1 or 3, got \[8, 6, 3, 2\]"),
        ((X, [W[:, :, :1]], BATCH), {}, ValueError, r"weight 0 must .*, got \[8, 6, 1, 3\]"),
        ((X, [W[:, :5]], BATCH), {}, ValueError, r"weight 0 .*\[8, 6, 3, 3\], got \[8, 5, 3, 3\]"),
        ((X, [W.double()], BATCH), {}, TypeError, "weight 0 must have the dtype.*torch.float64"),
        ((X, [HALF] * 2, BATCH), {}, ValueError, "two halves need stride 2 .*got stride 1"),
        ((X[..., :5], [HALF] * 2, BATCH), {"stride": 2}, ValueError, r"even sizes.*\[4, 6, 6, 5\]"),
        ((X, [HALF, W], BATCH), {"stride": 2}, ValueError, r"weight 1 .*, got \[8, 6, 3, 3\]"),
        ((X, [HALF, HALF[1:]], BATCH), {"stride": 2}, ValueError, r"weight 1 .*, got \[3, 6, 1, 1"),
        ((X, [W], Norm("none")), {}, ValueError, "norm must be batch or running, got 'none'"),
        ((X, [W], Norm("running")), {}, ValueError, "needs running_mean and running_var, got None"),
        ((X, [W], Norm(gamma=ROW[2:])), {}, ValueError, r"gamma must have .*\[8\], got \[6\]"),
        ((X, [W], Norm(beta=W[0, 0])), {}, ValueError, r"beta must have .*\[8\], got \[3, 3\]"),
        ((X, [W], Norm(beta=ROW.double())), {}, TypeError, "beta must have the dtype"),
        ((X[:1, :, :1, :1], [W], BATCH), {}, ValueError, r"1 value per channel .*\[1, 6, 1, 1\]"),
        (
            (X[..., :2, :2], [HALF] * 2, BATCH),
            *({"stride": 2, "groups": 4}, ValueError, "1 value per channel .*in 4 groups"),
        ),
    ],
)
def test_errors_name_rule_and_values(arguments, keywords, error, message):
    with pytest.raises(error, match=f"^relu_conv_norm: .*{message}"):
        functional.relu_conv_norm(*arguments, **keywords)


# The op: the last line, for callers that skip the documented function.
OP_ARGUMENTS = {
    "input": X,
    "weights": [W],
    "gamma": None,
    "beta": None,
    "running_mean": None,
    "running_var": None,
    "norm": 1,
    "eps": 1e-5,
    "stride": 1,
    "groups": 1,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": X[0]}, ValueError, "input must have 4 dimensions"),
        ({"input": X.half()}, NotImplementedError, "float32 or float64 on CPU"),
        ({"input": X[:, :0]}, ValueError, "input must have channels, rows and columns"),
        ({"stride": 3}, ValueError, "stride must be 1 or 2, got 3"),
        ({"groups": 3}, ValueError, "groups must divide the batch, got 3"),
        ({"norm": 0}, ValueError, "norm must be 1 or 2, got 0"),
        ({"norm": 2}, ValueError, "a running norm needs running_mean and running_var"),
        ({"weights": []}, ValueError, "weights must be one .*got 0"),
        ({"weights": [W[..., :2]]}, ValueError, "kernel must be 1 or 3"),
        ({"weights": [W.double()]}, TypeError, "the weight must have the dtype"),
        ({"weights": [HALF] * 2}, ValueError, "two halves need stride 2 .*got stride 1"),
        ({"weights": [HALF, W], "stride": 2}, ValueError, "each half must have shape"),
        ({"gamma": ROW[2:]}, ValueError, "gamma must have shape"),
        ({"input": X[:1, :, :1, :1]}, ValueError, "expected more than 1 value per channel"),
    ],
)
def test_the_op_checks_too(change, error, message):
    with pytest.raises(error, match=f"^relu_conv_norm: .*{message}"):
        _ops.relu_conv_norm(**{**OP_ARGUMENTS, **change})


def test_the_backward_checks_too():
    output, *kept = _ops.relu_conv_norm(**OP_ARGUMENTS)
    rest = ([W], None, None, 1, 1e-5, 1, 1, True)
    with pytest.raises(ValueError, match="backward: output_mask must have 4 entries, got 3"):
        _ops.relu_conv_norm_backward(output, X, *kept, *rest, [True] * 3)
    with pytest.raises(ValueError, match="backward: grad_output must have shape"):
        _ops.relu_conv_norm_backward(output[1:], X, *kept, *rest, [True] * 4)
    for i, name in enumerate(("raw", "mean", "var")):
        short = [value[:0] if j == i else value for j, value in enumerate(kept)]
        with pytest.raises(ValueError, match=f"backward: {name} must have shape"):
            _ops.relu_conv_norm_backward(output, X, *short, *rest, [True] * 4)


def test_a_gradient_needs_the_map_before_the_norm():
    x = X.clone().requires_grad_()
    output, raw, *_ = _ops.relu_conv_norm(**{**OP_ARGUMENTS, "input": x}, save=False)
    assert raw.numel() == 0
    with pytest.raises(RuntimeError, match="relu_conv_norm: save must be True where a gradient"):
        output.sum().backward()
