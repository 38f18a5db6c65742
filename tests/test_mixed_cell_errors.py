# SPDX-License-Identifier: Apache-2.0
"""Every message of mixed_cell and mixed_op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from darts_fast import _ops, functional
from darts_fast.functional import Candidate, Norm

pytestmark = pytest.mark.filterwarnings("error")

X, W, BATCH = torch.zeros(4, 6, 6, 6), torch.ones(1), (Norm(),)
D, P = torch.zeros(6, 1, 3, 3), torch.zeros(6, 6, 1, 1)
HALF = torch.zeros(3, 6, 1, 1)
MAX = Candidate("max_pool", (), BATCH)


def separable(*convolutions: Tensor, norms: tuple[Norm, ...] = BATCH, **fields: int) -> Candidate:
    return Candidate("separable", convolutions or (D, P), norms, **fields)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((X[0], W, [MAX]), {}, ValueError, r"x must have 4 dimensions .* got \[6, 6, 6\]"),
        ((X[:, :0], W, [MAX]), {}, ValueError, r"channels, rows and columns, got \[4, 0, 6, 6\]"),
        ((X, W, []), {}, ValueError, "needs at least one candidate, got none"),
        ((X, torch.ones(3), [MAX] * 8), {}, ValueError, r"weights .*one entry per op.*\[3\] for 8"),
        ((X, W.double(), [MAX]), {}, TypeError, "weights must have the dtype.*got torch.float64"),
        ((X.half(), W.half(), [MAX]), {}, NotImplementedError, "float32 or float64.*float16"),
        ((X, W, [MAX]), {"stride": 3}, ValueError, "stride must be 1 or 2, got 3"),
        ((X, W, [MAX]), {"groups": 3}, ValueError, "groups must divide the batch, got 3 groups"),
        ((X, W, [MAX]), {"groups": 0}, ValueError, "groups must divide the batch, got 0"),
        ((X, W, [MAX]), {"active": W}, TypeError, "active must be a bool tensor on the CPU"),
        ((X, W, [MAX]), {"active": torch.ones(2).bool()}, ValueError, "active must have one entry"),
        ((X, W, [Candidate("conv")]), {}, ValueError, "kind must be one of none.* got 'conv'"),
        ((X, W, [Candidate("identity")]), {"stride": 2}, ValueError, "identity needs stride 1"),
        ((X, W, [Candidate("none", (P,))]), {}, ValueError, "none must have 0 convolutions, got 1"),
        ((X, W, [Candidate("none", (), BATCH)]), {}, ValueError, "none must have 0 norms, got 1"),
        ((X, W, [separable(D)]), {}, ValueError, "separable must have 2 convolutions, got 1"),
        ((X, W, [separable(norms=())]), {}, ValueError, "separable must have 1 norms, got 0"),
        ((X, W, [separable(P, P)]), {}, ValueError, "kernels of separable must be 3, 5 or 7"),
        ((X, W, [separable(D[:2], P)]), {}, ValueError, r"depthwise weight .*\[2, 1, 3, 3\]"),
        ((X, W, [separable(D, P[:2])]), {}, ValueError, r"pointwise weight .*\[2, 6, 1, 1\]"),
        ((X, W, [separable(D.double(), P)]), {}, TypeError, "depthwise weight .*dtype"),
        ((X, W, [separable(dilation=0)]), {}, ValueError, "dilation must be at least 1.* got 0"),
        ((X, W, [MAX._replace(dilation=2)]), {}, ValueError, "1 unless separable, got 2 for max"),
        ((X, W, [Candidate("dense", (D,), BATCH)]), {}, ValueError, "weight of dense must have"),
        (
            (X, W, [Candidate("factorized_reduce", (HALF, HALF), BATCH)]),
            *({}, ValueError, "factorized_reduce needs stride 2 and even sizes, got stride 1"),
        ),
        (
            (X[:, :, :5], W, [Candidate("factorized_reduce", (HALF, HALF), BATCH)]),
            *({"stride": 2}, ValueError, r"even sizes, got stride 2 for \[4, 6, 5, 6\]"),
        ),
        (
            (X, W, [Candidate("factorized_reduce", (HALF, P), BATCH)]),
            *({"stride": 2}, ValueError, r"second weight .*\[3, 6, 1, 1\], got \[6, 6, 1, 1\]"),
        ),
        (
            (X, W, [separable(norms=(Norm("layer"),))]),
            *({}, ValueError, "batch, running or none, got 'layer' for separable"),
        ),
        (
            (X, W, [separable(norms=(Norm("none"),))]),
            *({}, ValueError, "norm none is for pools only, got separable"),
        ),
        (
            (X, W, [MAX._replace(norms=(Norm("running"),))]),
            *({}, ValueError, "running_mean and running_var, got None for max_pool"),
        ),
        (
            (X, W, [MAX._replace(norms=(Norm(gamma=torch.ones(5)),))]),
            *({}, ValueError, r"gamma of max_pool must have shape \[6\], got \[5\]"),
        ),
        (
            (X[:1, :, :1, :1], W, [MAX]),
            *({}, ValueError, "more than 1 value per channel when training"),
        ),
        (
            (X[:, :, :2, :2], W, [MAX]),
            *({"stride": 2, "groups": 4}, ValueError, "more than 1 value per channel"),
        ),
    ],
)
def test_errors_name_rule_and_values(arguments, keywords, error, message):
    with pytest.raises(error, match=f"^mixed_op: .*{message}"):
        functional.mixed_op(*arguments, **keywords)


@pytest.mark.parametrize(
    ("states", "edges", "keywords", "error", "message"),
    [
        ([], [(0, 1, [MAX])], {}, ValueError, "needs at least one state, got none"),
        (
            [X, X[:2]],
            [(0, 2, [MAX])],
            {},
            ValueError,
            r"one shape .*got \[2, 6, 6, 6\] for state 1",
        ),
        ([X, X.double()], [(0, 2, [MAX])], {}, TypeError, "state 1 must have the dtype"),
        ([X], [(0, 1, [MAX])], {"nodes": 0}, ValueError, "multiplier must be 1 to nodes, got 0"),
        ([X], [(0, 1, [MAX])], {"multiplier": 2}, ValueError, "multiplier .* got 2 for 1 nodes"),
        ([X], [(1, 1, [MAX])], {}, ValueError, "an earlier state to a node, got 1 to 1 with 1"),
        ([X], [(0, 2, [MAX])], {}, ValueError, "an earlier state to a node, got 0 to 2"),
        ([X, X], [(0, 1, [MAX])], {}, ValueError, "an earlier state to a node, got 0 to 1"),
        ([X], [(0, 1, [])], {}, ValueError, "needs at least one candidate, got none"),
        ([X], [(0, 1, [MAX])], {"shared": 2}, ValueError, "shared must be 0 to .* got 2 for 1 st"),
        ([X], [(0, 1, [MAX])], {"shared": -1}, ValueError, "shared must be 0 to .* got -1 for 1"),
        (
            *([X, X], [(0, 2, [MAX])], {"groups": 2, "shared": 1}, ValueError),
            r"shared ones that of one group.*, got \[4, 6, 6, 6\] for state 0 and \[4, 6, 6, 6\]",
        ),
        (
            *([X[:1], X[:3]], [(0, 2, [MAX])], {"groups": 2, "shared": 1}, ValueError),
            "groups must divide the batch, got 2 groups for a batch of 3",
        ),
        ([X], [(0, 1, [MAX])], {"groups": 0, "shared": 1}, ValueError, "must divide the batch"),
    ],
)
def test_errors_of_a_cell(states, edges, keywords, error, message):
    with pytest.raises(error, match=f"^mixed_cell: .*{message}"):
        functional.mixed_cell(states, W, edges, **{"nodes": 1, **keywords})


def test_the_op_checks_too():
    # The last line, for callers that skip the documented function.
    lists, settings = ([], [], [], [], []), (1, 1, 1, 1, 0, None, 0)
    with pytest.raises(ValueError, match="mixed_cell: kind must be 0 to 7, got 8"):
        _ops.mixed_cell([X], W[None], *lists, [0, 1, 8, 0, 0], [], [], *settings, False)
    with pytest.raises(ValueError, match=r"mixed_cell: .*one entry per norm, got 0 and 0 for 1"):
        _ops.mixed_cell([X], W[None], *lists, [0, 1, 2, 0, 0], [], [], *settings, False)
    output, saved, mean, var = _ops.mixed_cell(
        [X], W[None], *lists, [0, 1, 1, 0, 0], [], [], *settings, True
    )
    with pytest.raises(ValueError, match="mixed_cell_backward: output_mask must have 2 entries"):
        _ops.mixed_cell_backward(
            *(output, saved, mean, var, [X], W[None], [], [], [], [0, 1, 1, 0, 0], [], []),
            *(1, 1, 1, 1, None, 0, [True]),
        )
