# SPDX-License-Identifier: Apache-2.0
"""mixed_cell equals its specification for whatever cell, shape and activity one draws."""

from __future__ import annotations

import pytest
import torch
from cell_cases import KINDS, assert_same, make_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("error")

ANY_STRIDE = [name for name in KINDS if name not in ("identity", "reduce")]


@st.composite
def cells(draw: st.DrawFn) -> dict[str, object]:
    """Arguments of `make_case`."""
    inputs, nodes, stride = (draw(st.integers(1, n)) for n in (2, 3, 2))
    height, width = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    channels = draw(st.integers(1, 20))
    kinds = list(ANY_STRIDE)
    if stride == 1 or (height % 2 == width % 2 == channels % 2 == 0):
        kinds.append("skip")
    possible = [(s, node) for node in range(inputs, inputs + nodes) for s in range(node)]
    edges = draw(st.lists(st.sampled_from(possible), min_size=1, max_size=4))
    return {
        "names": [draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4)) for _ in edges],
        "inputs": inputs,
        "nodes": nodes,
        "multiplier": draw(st.integers(1, nodes)),
        "edges": edges,
        "batch": draw(st.integers(3, 4)),
        "channels": channels,
        "size": (height, width),
        "stride": stride,
        "norm": draw(st.sampled_from(["batch", "running"])),
        "affine": draw(st.booleans()),
        "groups": draw(st.integers(1, 3)),
        "masked": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(arguments=cells(), data=st.data())
def test_any_cell(backend, arguments, data):
    case = make_case(**arguments)
    if case.active is None:  # some weights are 0, which is no reason to skip an op
        zeros = data.draw(st.sets(st.integers(0, case.weights.shape[1] - 1)))
        case.weights = case.weights.detach()
        case.weights[:, list(zeros)] = 0.0
        case.weights.requires_grad_()
    actual, truth = case.results("fused"), case.results("reference")
    for name, value in actual.items():
        assert_same(name, value, truth[name], 1e-8)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(arguments=cells(), data=st.data())
def test_any_activity_equals_a_cell_without_those_ops(backend, arguments, data):
    case = make_case(**{**arguments, "masked": False})
    terms = case.weights.shape[1]
    row = data.draw(st.lists(st.booleans(), min_size=terms, max_size=terms).filter(any))
    active = torch.tensor(row)
    case.active = active
    kept = iter(row)
    smaller = [(s, n, [c for c in own if next(kept)]) for s, n, own in case.edges]
    alone = make_case(**{**arguments, "masked": False})
    alone.states, alone.edges, alone.weights = case.states, smaller, case.weights[:, active]
    expected, out = alone.run().output, case.run().output
    assert torch.equal(out, expected)
    grad = torch.randn(out.shape, dtype=out.dtype)
    for a, b in zip(
        torch.autograd.grad(out, case.states, grad),
        torch.autograd.grad(expected, case.states, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-8)
