# SPDX-License-Identifier: Apache-2.0
"""What explain says before and after accelerate, and what verify finds."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from originals import darts, darts_pt, pc_darts
from rich.console import Console
from test_accelerate import NETWORKS, HalvingCell, network
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import darts_fast
from darts_fast import AccelerateError
from darts_fast.accelerate.forward import FusedForward
from darts_fast.nn import build_supernet


def test_before_and_after() -> None:
    net = network("skip")
    before = [{**vars(module)} for module in net.modules()]
    told = darts_fast.explain(net)
    assert [{**vars(module)} for module in net.modules()] == before
    assert [row.module for row in told.rows] == ["cells.0", "cells.1", "cells.2"]
    assert {row.now for row in told.rows} == {"can be accelerated"}
    assert {row.modules for row in told.rows} == {""}
    darts_fast.accelerate(net)
    after = darts_fast.explain(net)
    assert {row.now for row in after.rows} == {"accelerated"}
    normal = "5 none, 5 max_pool, 5 avg_pool, 5 identity, 5 separable_twice 3x3"
    assert after.rows[0].fused.startswith(normal)
    assert "5 separable 5x5 dilation 2" in after.rows[0].fused


def test_every_reason_is_told() -> None:
    names = ("noise", "sep_conv_3x3_skip", "sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3")
    edge = darts.MixedOp(4, 1, names)
    darts_fast.accelerate(edge)
    edge._ops[4].register_forward_hook(lambda *_: None)
    parametrizations.weight_norm(edge._ops[2].op[1])
    assert darts_fast.explain(edge).rows[0].now == "can be accelerated"
    darts_fast.accelerate(edge)
    (row,) = darts_fast.explain(edge).rows
    assert (row.kind, row.now, row.fused) == (
        "mixed operation",
        "accelerated",
        "1 separable 3x3 dilation 2",
    )
    assert "1 Noise: computes something else than its parts: " in row.modules
    assert "1 SepConvSkip: computes something else than its parts: " in row.modules
    assert "1 SepConv: has parametrizations" in row.modules
    assert "1 Sequential(MaxPool2d, BatchNorm2d): has hooks" in row.modules


def test_a_cell_that_stays_is_told_with_its_edges() -> None:
    net = darts_fast.accelerate(network("skip", cell=HalvingCell))
    rows = darts_fast.explain(net).rows
    assert rows[0].now == (
        "left alone, its mixed operations one by one: the output differs in training"
    )
    assert [row.module for row in rows[1:6]] == [f"cells.0._ops.{edge}" for edge in range(5)]
    assert {row.now for row in rows[1:6]} == {"accelerated"}


def test_it_prints_with_and_without_rich() -> None:
    net = pc_darts.Network(8, 5, 1, steps=2, multiplier=2)
    told = darts_fast.explain(net)
    lines = str(told).splitlines()
    assert lines[0].split("  ")[0] == "module"
    # Neighbours that are alike share a line: in a reduction cell, the edges of stride 2.
    (edges,) = (line for line in lines if line.startswith("cells.0._ops.0 to cells.0._ops.3 (4)"))
    assert "mixed operation on 1/4 of the channels" in edges
    stream = io.StringIO()
    Console(file=stream, width=300).print(told)
    assert "cells.0._ops.0 to cells.0._ops.3 (4)" in stream.getvalue()


def test_networks_of_the_package() -> None:
    net = build_supernet("nasbench201", channels=2, num_classes=3, layers=1)
    assert {row.now for row in darts_fast.explain(net).rows} == {"native by itself"}


@pytest.mark.parametrize("zero", ["multiply", "skip"])
@pytest.mark.parametrize("given", ["true", "images", "pair", "tuple"])
def test_verify_accepts_what_is_right_and_leaves_no_trace(zero: str, given: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[zero](2, 5, 1, steps=2, multiplier=2)
    images = torch.randn(4, 3, 8, 8)
    batch = {
        "true": True,
        "images": images,
        "pair": [images, torch.arange(4)],
        "tuple": (images, torch.rand(5, net.alphas_normal.shape[1])),
    }[given]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net.classifier.bias.grad = torch.ones(5)
    random = torch.get_rng_state()
    darts_fast.accelerate(net, verify=batch)
    assert len(darts_fast.accelerated(net)) == 1
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    gradients = [name for name, value in net.named_parameters() if value.grad is not None]
    assert gradients == ["classifier.bias"]


def _larger(out: Tensor) -> Tensor:
    return 1.01 * out


def _detached(out: Tensor) -> Tensor:
    return out.detach() + 0.0 * out.sum()


@pytest.mark.parametrize(
    ("spoil", "what"), [(_larger, "the output"), (_detached, "the gradient of input 0")]
)
def test_verify_names_the_first_module_that_differs(
    spoil: Callable[[Tensor], Tensor], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = darts_pt.Network(2, 5, 3, steps=2, multiplier=2)
    call = FusedForward.__call__

    def spoiled(self: FusedForward, *args: object, **kwargs: object) -> Tensor:
        out = call(self, *args, **kwargs)
        return out if self.module is net.cells[0] else spoil(out)

    monkeypatch.setattr(FusedForward, "__call__", spoiled)
    numbers = r"got a difference of norm \S+ \(largest entry \S+\) to a norm of \S+$"
    with pytest.raises(AccelerateError, match=f"accelerate: {what} of cells.1 .*{numbers}"):
        darts_fast.accelerate(net, verify=torch.randn(4, 3, 8, 8))
    assert not darts_fast.accelerated(net)


def test_a_model_that_is_no_supernet() -> None:
    with pytest.raises(ValueError, match=r"must have mixed operations, .* got none in Sequential"):
        darts_fast.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert darts_fast.explain(nn.Linear(2, 2)).rows == ()
