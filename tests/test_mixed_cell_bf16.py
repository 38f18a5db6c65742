# SPDX-License-Identifier: Apache-2.0
"""mixed_cell with the maps of convolutions in bfloat16: what that saves, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from cell_cases import DARTS, NASBENCH201, Case, by_role, make_case, op_arguments, whole_numbers
from torch import Tensor

from darts_fast import _ops
from darts_fast.backend import bf16_maps, use_backend, use_bf16_maps
from darts_fast.nn import build_supernet
from darts_fast.reference import PRECISION_FULL, PRECISION_MAPS

CELLS = {
    "darts": {"names": DARTS, "inputs": 2, "nodes": 4, "multiplier": 4},
    "darts, reduction": {
        "names": DARTS,
        "inputs": 2,
        "nodes": 4,
        "multiplier": 4,
        "stride": 2,
        "affine": True,
    },
    "nasbench201": {"names": NASBENCH201, "nodes": 3, "affine": True},
}

# What the docstring of use_bf16_maps states, as relative L2 distances to float64: of the output,
# and of every group of gradients.
OUTPUT, GRADIENT = 3e-3, 4e-2


def results(case: Case, enabled: bool = True) -> dict[str, Tensor]:
    with use_bf16_maps(enabled):
        return by_role(case.results("fused"))


@pytest.mark.parametrize("cell", CELLS)
def test_the_error_is_the_stated_one(backend: str, cell: str) -> None:
    case = make_case(**CELLS[cell], channels=16, size=(16, 16), batch=8).to(torch.float32)
    truth = by_role(case.to(torch.float64).results("fused"))
    half, full = results(case), results(case, enabled=False)
    for name, exact in truth.items():
        if name.endswith("alone"):  # of a call that saves nothing
            assert torch.equal(half[name], full[name]), name
            continue
        error, single = (
            ((x[name].double() - exact).norm() / exact.norm()).item() for x in (half, full)
        )
        # Statistics are those of the first sweep to within its rounding, then of what was stored.
        stated = GRADIENT if name.startswith("gradient") else OUTPUT
        assert single < 2e-6, f"{name} in float32: {single:.2e}"
        assert error <= stated, f"{name}: {error:.2e}"
        if not name.startswith(("mean", "var")):
            assert error >= stated / 16, f"{name} is as in float32: {error:.2e}"


@pytest.mark.parametrize("precision", [PRECISION_FULL, PRECISION_MAPS])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_buffer_holds_two_bytes_an_element(stride: int, precision: int) -> None:
    case = make_case(DARTS, inputs=2, nodes=4, multiplier=4, channels=16, size=(16, 16))
    *arguments, _ = op_arguments(case.to(torch.float32))
    with torch.no_grad():
        _, saved, _, _ = _ops.mixed_cell(*arguments, precision, True)
    # Of every edge two separable convolutions of two blocks and two of one, one reduction at most;
    # of every state that is read two pools, and the nodes that are read.
    size = 2 * 16 * 16 * 16 + 144
    assert saved.numel() == (10 + 3) * size + 14 * 6 * size // (2 if precision else 1)


def test_what_is_stored_is_the_nearest_value(backend: str) -> None:
    # A dense convolution of one channel and weight 1 stores the ReLU of the state.
    special = torch.tensor([0.0, -0.0, 1.0, float("inf"), float("nan"), 3.4e38, 1e-40, 1e-45])
    halves = (torch.arange(256) * 0x8000 + 0x3F800000).to(torch.int32).view(torch.float32)
    # A NaN whose digits a rounding would carry into the sign.
    nan = torch.tensor([0x7FFFFFFF] * 33, dtype=torch.int32).view(torch.float32)
    random = torch.randn(999, generator=torch.Generator().manual_seed(0)).exp()
    x = torch.cat([special, halves, nan, random]).view(1, 1, 1, -1)
    ones = torch.ones(1, 1, 1, 1)
    ops, norms = [0, 1, 6, 1, 1], [2]
    _, saved, _, _ = _ops.mixed_cell(
        *([x], torch.ones(1, 1), [ones], [], [], [torch.zeros(1)], [torch.ones(1)], ops, norms),
        *([0.0], 1, 1, 1, 1, 0, None, PRECISION_MAPS, True),
    )
    stored = saved.view(torch.bfloat16)[: x.numel()]
    expected = x.flatten().relu().bfloat16()
    assert torch.equal(stored.isnan(), expected.isnan())
    assert torch.equal(stored.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("stride", [1, 2])
def test_saving_changes_no_result(backend: str, stride: int) -> None:
    case = make_case(
        inputs=2, nodes=3, multiplier=2, groups=2, masked=True, affine=True, stride=stride
    )
    *arguments, _ = op_arguments(case.to(torch.float32))
    kept, dropped = (_ops.mixed_cell(*arguments, PRECISION_MAPS, save) for save in (True, False))
    assert dropped[1].shape == (0,)
    for index in (0, 2, 3):
        assert torch.equal(kept[index], dropped[index])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 10, 16, 33])
@pytest.mark.parametrize("arguments", [{}, {"inputs": 2, "groups": 2, "masked": True}], ids=str)
def test_what_bfloat16_holds_is_kept_exactly(
    backend: str, channels: int, stride: int, arguments: dict[str, Any]
) -> None:
    names = ["plain_max", "sep_3", "dil_3", "dil_5", "dense_1", "dense_3"]
    if stride == 1 or channels % 2 == 0:
        names.append("skip")
    sizes = {"channels": channels, "size": (8, 6), "stride": stride, "norm": "running"}
    case = whole_numbers(make_case(names, **sizes, **arguments))
    full, half = ({} for _ in range(2))
    for enabled, found in ((False, full), (True, half)):
        with use_bf16_maps(enabled):
            out = case.run().output
            grad = torch.arange(out.numel()).view(out.shape) % 3 - 1.0
            grads = torch.autograd.grad(out, case.leaves, grad, materialize_grads=True)
        found |= {"output": out, **dict(zip(case.named_leaves, grads, strict=True))}
    assert full["output"].abs().max() > 3
    for name, value in full.items():
        assert torch.equal(half[name], value), name


def test_float64_and_the_reference_know_no_such_maps() -> None:
    case = make_case(NASBENCH201)
    for name, value in results(case).items():
        assert torch.equal(value, results(case, enabled=False)[name])
    single = case.to(torch.float32)
    with use_bf16_maps(), use_backend("reference"):
        output = single.run().output
    with use_backend("reference"):
        assert torch.equal(output, single.run().output)


def test_a_network_saves_less() -> None:
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.untyped_storage().nbytes())
        return x

    torch.manual_seed(0)
    net = build_supernet("s5", channels=4, num_classes=3, layers=2)
    images = torch.randn(2, 3, 16, 16)
    totals, outputs = [], []
    for enabled in (False, True):
        saved.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        with use_bf16_maps(enabled), hooks:
            outputs.append(net(images))
        totals.append(max(saved))
    assert totals[1] < 0.6 * totals[0]
    assert not torch.equal(*outputs)
    torch.testing.assert_close(*outputs, rtol=0.05, atol=0.05)


def test_opcheck() -> None:
    case = make_case((*DARTS, "plain_max"), nodes=2, groups=2, channels=4).to(torch.float32)
    *arguments, _ = op_arguments(case)
    # As in test_mixed_cell_contract.py.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_ops.mixed_cell, (*arguments, PRECISION_MAPS, True), test_utils=checks)
    output, saved, mean, var = _ops.mixed_cell(*arguments, PRECISION_MAPS, True)
    states, weights, convolutions, gammas, betas, _, _, *settings, _, active = arguments
    mask = [True] * (len(states) + 1 + len(convolutions) + len(gammas) + len(betas))
    backward = (
        *(torch.randn_like(output), saved, mean, var, states, weights, convolutions, gammas, betas),
        *(*settings, active, PRECISION_MAPS, mask),
    )
    backward = tuple(x.detach() if isinstance(x, Tensor) else x for x in backward)
    torch.library.opcheck(_ops.mixed_cell_backward, backward, test_utils=checks)


def test_a_compiled_graph_follows_the_switch() -> None:
    case = make_case(NASBENCH201, nodes=2).to(torch.float32)
    compiled = torch.compile(lambda: case.run().output, fullgraph=True, backend="aot_eager")
    for enabled in (False, True, False):
        with use_bf16_maps(enabled):
            assert torch.equal(compiled(), case.run().output)


def test_errors() -> None:
    *arguments, _ = op_arguments(make_case(NASBENCH201))
    with pytest.raises(ValueError, match="mixed_cell: precision must be 0, 1 or 2, got 3"):
        _ops.mixed_cell(*arguments, 3, False)
    message = "mixed_cell: a precision below the full one needs float32 states, got Double"
    with pytest.raises(NotImplementedError, match=message):
        _ops.mixed_cell(*arguments, PRECISION_MAPS, False)


def test_the_switch_is_put_back() -> None:
    assert not bf16_maps()
    with use_bf16_maps():
        with use_bf16_maps(False):
            assert not bf16_maps()
        assert bf16_maps()
    assert not bf16_maps()


@pytest.mark.parametrize(("value", "shown"), [("1", "True"), ("yes", None)])
def test_the_environment_sets_the_switch(value: str, shown: str | None) -> None:
    code = "from darts_fast.backend import bf16_maps; print(bf16_maps())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DARTS_FAST_BF16_MAPS": value},
    )
    if shown is None:
        assert "DARTS_FAST_BF16_MAPS: must be 0 or 1, got 'yes'" in done.stderr
    else:
        assert done.stdout.strip() == shown, done.stderr
