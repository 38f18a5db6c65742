# SPDX-License-Identifier: Apache-2.0
"""compat.nasbench201 against the structure of its code written as plain modules."""

from __future__ import annotations

import pytest
import torch
from compat_cases import ARGS, batch
from torch import nn

from darts_fast.compat.nasbench201 import (
    NAS201SearchCell,
    Structure,
    TinyNetwork,
    TinyNetworkDartsProj,
)
from darts_fast.compat.nasbench201.cell_operations import NAS_BENCH_201, OPS, ResNetBasicblock
from darts_fast.selection import removal_scores
from darts_fast.selection.engine.walk import can_walk
from darts_fast.spaces import arch_from_index, unique_string


def build(kind: type[TinyNetwork] = TinyNetworkDartsProj) -> TinyNetwork:
    return kind(4, 1, 4, 5, nn.CrossEntropyLoss(), NAS_BENCH_201, ARGS).double()


def test_state_dict_and_attributes() -> None:
    net = TinyNetwork(16, 5, 4, 10, nn.CrossEntropyLoss(), NAS_BENCH_201, ARGS)
    assert len(net.state_dict()) == 759
    assert "cells.0.edges.1<-0.2.op.1.weight" in net.state_dict()
    assert [tuple(alpha.shape) for alpha in net.arch_parameters()] == [(6, 5)]
    assert net._arch_parameters is net.arch_parameters()[0]
    assert not any("arch" in name for name, _ in net.named_parameters())
    index = {"1<-0": 0, "2<-0": 1, "2<-1": 2, "3<-0": 3, "3<-1": 4, "3<-2": 5}
    assert net.edge2index == net.cells[0].edge2index == index
    assert (net.num_edge, net.num_op, net._Layer) == (6, 5, 17)
    assert net.get_message().count("info :: 4 nodes") == 15
    assert isinstance(net.cells[5], ResNetBasicblock)
    for name in NAS_BENCH_201:
        assert isinstance(OPS[name](4, 8, 2, True, True), nn.Module)


def test_an_old_checkpoint_with_alphas_and_without_counters_loads() -> None:
    net = build()
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    other = build()
    other.load_state_dict({**state, "_arch_parameters": net._arch_parameters.detach()})
    assert torch.equal(other.get_theta(), net.get_theta())
    other.load_state_dict(state)
    images, _ = batch(0)
    assert torch.equal(other(images), net(images))


def test_projection_and_masks() -> None:
    net = build()
    net.project_op(2, 3)
    assert net.candidate_flags.tolist() == [True, True, False, True, True, True]
    assert torch.equal(net.proj_weights[2], torch.eye(5, dtype=torch.float64)[3])
    weights = net.get_projected_weights()
    mask = torch.ones_like(weights[0])
    mask[1] = 0
    weights[0] = weights[0] * mask  # as the published projection masks
    images, _ = batch(0)
    net.eval()
    masked = net(images, weights=weights)
    assert torch.equal(masked, net(images, {"cell": weights}))
    assert not torch.equal(masked, net(images))
    assert net.genotype().nodes[1][1] == ("nor_conv_3x3", 1)
    assert can_walk(net)
    scores = removal_scores(net, [batch(0)], cell_type="cell", edges=[0], bn="running")
    loss = nn.functional.cross_entropy(masked, batch(0)[1]).item()
    assert scores.loss[0, 1].item() == pytest.approx(loss, rel=1e-6)


def test_alphas_are_kept_and_put_back_and_copied_by_new() -> None:
    net = build()
    before = net._arch_parameters.detach().clone()
    net.save_arch_parameters()
    net.set_arch_parameters([torch.ones(6, 5)])
    assert net.new().get_theta().unique().tolist() == pytest.approx([0.2])
    net.restore_arch_parameters()
    assert torch.equal(net._arch_parameters, before)
    *_, gradient = net.step(*batch(0), ARGS, return_grad=True)
    assert gradient.norm() <= 5 + 1e-9
    with pytest.raises(ValueError, match="C_in must be C_out"):
        NAS201SearchCell(4, 8, 1, 4, NAS_BENCH_201)


def test_structures() -> None:
    for index in (0, 1462, 9999):
        text = arch_from_index(index)
        cell = Structure.str2structure(text)
        assert cell.tostr() == text
        assert cell.to_unique_str(True) == unique_string(text)
        assert (len(cell), cell.node_num) == (4, 4)
        assert cell.check_valid_op(NAS_BENCH_201)
    text = "|none~0|+|none~0|skip_connect~1|+|none~0|nor_conv_3x3~1|none~2|"
    cut = Structure.str2structure(text)
    assert not cut.check_valid()
    assert cut.tolist("none") == (None, False)
    assert cut.tolist(None) == ([*cut.nodes], True)
    assert cut[1] == cut.node(1) == (("none", 0), ("skip_connect", 1))
    cells = Structure.gen_all(["none", "skip_connect"], 3, False)
    assert len({cell.tostr() for cell in cells}) == 8
    assert sum(cell.check_valid() for cell in cells) == 5
    with pytest.raises(ValueError, match="node 1 must read"):
        Structure([[("none", 1)]])
    with pytest.raises(ValueError, match="inputs must read"):
        Structure.str2structure("|none|")
