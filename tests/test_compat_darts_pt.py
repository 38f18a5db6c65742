# SPDX-License-Identifier: Apache-2.0
"""compat.darts_pt against the structure of darts-pt written as plain modules."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from compat_cases import ARGS, batch, with_args
from torch import nn

from darts_fast.compat import convert, darts
from darts_fast.compat.darts_pt import (
    Architect,
    DartsNetworkProj,
    Network,
    SDartsNetwork,
    SDartsNetworkProj,
    perturb,
    spaces_dict,
    utils,
)


def build(kind: type[Network] = DartsNetworkProj, space: str = "s5", steps: int = 2) -> Network:
    loss = nn.CrossEntropyLoss()
    return kind(2, 5, 3, loss, spaces_dict[space], ARGS, steps, steps).double()


@pytest.mark.parametrize(
    ("space", "keys"), [("s1", 824), ("s2", 1274), ("s3", 1274), ("s4", 1194), ("s5", 4186)]
)
def test_state_dict(space: str, keys: int) -> None:
    for kind in (Network, SDartsNetworkProj):
        net = kind(16, 10, 8, nn.CrossEntropyLoss(), spaces_dict[space], ARGS)
        assert len(net.state_dict()) == keys
    assert net.num_edges == 14
    assert net.num_ops == len(spaces_dict[space]["primitives_reduct"][0])
    assert [tuple(a.shape) for a in net.arch_parameters()] == [(14, net.num_ops)] * 2
    if space == "s5":
        assert sum(p.numel() for p in net.get_weights()) == 1_930_618


def test_topology_tables() -> None:
    net = build(steps=4)
    assert net.nid2eids == {0: [2, 3, 4], 1: [5, 6, 7, 8], 2: [9, 10, 11, 12, 13]}
    assert net.candidate_flags["normal"].tolist() == [True] * 14
    assert net.candidate_flags_edge["reduce"].tolist() == [True] * 3
    net.project_op(3, 2, "normal")
    net.project_op(4, 0, "normal")
    net.project_edge(0, [2, 4], "normal")
    assert net.candidate_flags["normal"].nonzero().flatten().tolist() == [0, 1, 2, *range(5, 14)]
    assert net.candidate_flags_edge["normal"].tolist() == [False, True, True]
    assert net.nid2selected_eids["normal"] == {0: [2, 4], 1: [], 2: []}
    expected = torch.zeros(14, 7, dtype=torch.float64)
    expected[4, 0] = 1
    assert torch.equal(net.proj_weights["normal"], expected)
    weights = net.get_projected_weights("normal")
    softmax = net.get_softmax()["normal"]
    assert torch.equal(weights[4], expected[4])
    assert torch.equal(weights[3], expected[3])
    assert torch.equal(weights[2], softmax[2])
    weights[7] = weights[7] * 0  # as the published projection masks
    assert net.get_projected_weights("normal")[7].sum().item() == pytest.approx(1)


def test_candidates_of_one_s_own() -> None:
    mine = {
        "primitives_normal": [["skip_connect", "sep_conv_3x3", "none"]] * 14,
        "primitives_reduct": [["max_pool_3x3", "dil_conv_3x3", "none"]] * 14,
    }
    net = Network(2, 3, 3, nn.CrossEntropyLoss(), mine, ARGS)
    net._loss(torch.randn(2, 3, 8, 8), torch.tensor([0, 1])).backward()
    ops = {op for op, _ in net.genotype().reduce}
    assert ops <= {"max_pool_3x3", "dil_conv_3x3"}
    assert net.new().space == net.space


def test_decided_rows_get_no_gradient_and_skipped_operations_none() -> None:
    net = build()
    net.project_op(2, 4, "normal")
    net._loss(*batch(0)).backward()
    assert net.alphas_normal.grad[2].abs().max() == 0
    assert net.alphas_normal.grad[3].abs().max() > 0
    edge = net.cells[0]._ops[2]
    assert all(p.grad is None for op in (2, 3, 5, 6) for p in edge._ops[op].parameters())
    assert all(p.grad is not None for p in edge._ops[4].parameters())


def test_blank_leaves_the_alphas_and_second_order_is_refused() -> None:
    net = build()
    before = copy.deepcopy(net.alphas_normal)
    Architect(net, with_args(method="blank")).step(*batch(0), *batch(1))
    assert torch.equal(net.alphas_normal, before)
    with pytest.raises(ValueError, match="method must be"):
        Architect(net, with_args(method="darts-so"))
    architect = Architect(net, ARGS)
    architect.step(*batch(0), *batch(1))
    assert not torch.equal(net.alphas_normal, before)
    architect.reset_arch_parameters()
    assert torch.equal(net.alphas_normal, before)


def test_clip_is_that_of_the_formula() -> None:
    net = build()
    with torch.no_grad():
        net.alphas_normal.uniform_(-0.5, 1.5)
        net.alphas_normal[1].uniform_(-1, 0)
    rows = net.alphas_normal.detach().tolist()
    net.clip()
    for row, found in zip(rows, net.alphas_normal.tolist(), strict=True):
        clamped = [min(max(value, 0.0), 1.0) for value in row]
        if sum(clamped) == 0:
            clamped[row.index(max(row))] = 1.0
        assert found == pytest.approx([value / sum(clamped) for value in clamped])


@pytest.mark.parametrize("kind", [SDartsNetwork, SDartsNetworkProj])
@pytest.mark.parametrize("attack", [perturb.Random_alpha, perturb.Linf_PGD_alpha])
def test_perturbed_weight_step(kind: type[SDartsNetwork], attack: object) -> None:
    net = build(kind)
    alphas = [alpha.detach().clone() for alpha in net.arch_parameters()]
    if kind is SDartsNetworkProj:
        net.project_op(1, 5, "normal")
    weights = {name: table.detach().clone() for name, table in net.edge_weights().items()}
    images, labels = batch(0)
    net.eval()
    clean = net._loss(images, labels).item()
    net.train()
    net.softmax_arch_parameters()
    for name, alpha in zip(weights, net.arch_parameters(), strict=True):
        assert torch.equal(alpha, weights[name])
    attack(net, images, labels, 0.3)  # type: ignore[operator]
    assert net.training
    perturbed = {name: table.detach() for name, table in net.edge_weights().items()}
    for name, table in perturbed.items():
        assert torch.allclose(table.sum(1), torch.ones(5, dtype=torch.float64))
        assert not torch.equal(table, weights[name])
    if kind is SDartsNetworkProj:
        assert torch.equal(perturbed["normal"][1], weights["normal"][1])
    if attack is perturb.Linf_PGD_alpha:
        net.eval()
        assert net._loss(images, labels).item() >= clean
    assert all(p.grad is None for p in net.parameters())
    net.restore_arch_parameters()
    for alpha, saved in zip(net.arch_parameters(), alphas, strict=True):
        assert torch.equal(alpha, saved)


def test_checkpoints_between_eight_and_seven_operations() -> None:
    eight = darts.Network(2, 5, 3, nn.CrossEntropyLoss(), 2, 2).double()
    seven = build()
    seven.load_state_dict(convert.to_darts_pt(eight.state_dict()))
    back = convert.to_darts(seven.state_dict())
    assert list(back) == list(eight.state_dict())
    assert all(torch.equal(back[key], value) for key, value in eight.state_dict().items())
    alphas = [convert.alphas_to_darts(alpha) for alpha in seven.arch_parameters()]
    eight.set_arch_parameters(alphas)
    seven.set_arch_parameters([convert.alphas_to_darts_pt(alpha) for alpha in alphas])
    images, _ = batch(0)
    torch.testing.assert_close(eight(images), seven(images), rtol=1e-10, atol=1e-10)
    assert seven.genotype() == eight.genotype()
    with pytest.raises(ValueError, match="operations with parameters must be 1 to 7"):
        convert.to_darts_pt(seven.state_dict())
    with pytest.raises(ValueError, match="operations with parameters must be 0 to 6"):
        convert.to_darts(eight.state_dict())
    with pytest.raises(ValueError, match=r"alphas must be \[edges, 7\]"):
        convert.alphas_to_darts(alphas[0])


def test_size_of_the_compact_network() -> None:
    net = build(steps=4)
    derived = darts.NetworkCIFAR(36, 5, 20, False, net.genotype())
    expected = sum(p.numel() for p in derived.parameters()) / 1e6
    assert utils.count_parameters_in_Compact(net) == pytest.approx(expected)


def test_the_device_with_most_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = [(10, 100), (30, 60), (40, 100)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(memory))
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory.__getitem__)
    assert utils.pick_gpu_lowest_memory() == 1
    memory.clear()
    with pytest.raises(RuntimeError, match="there must be a CUDA device"):
        utils.pick_gpu_lowest_memory()


def test_checkpoints_and_cutout_of_the_scripts(tmp_path: Path) -> None:
    net = build()
    state = {"state_dict": net.state_dict(), "optimizer": net.optimizer.state_dict()}
    state |= {"epoch": 7, "best_acc_top1": 61.5}
    utils.save_checkpoint(state, True, tmp_path, per_epoch=True, prefix="last_")
    assert (tmp_path / "model_best.pth.tar").exists()
    (tmp_path / "last_checkpoint_7.pth.tar").rename(tmp_path / "checkpoint_7.pth.tar")
    other = build()
    found = utils.load_checkpoint(other, other.optimizer, tmp_path, 7)
    assert found == (other, other.optimizer, 7, 61.5)
    assert torch.equal(other.classifier.weight, net.classifier.weight)
    ones = torch.ones(3, 8, 8)
    assert utils.Cutout(4, prob=0.0)(ones.clone()).equal(ones)
    assert not utils.Cutout(4, prob=1.0)(ones.clone()).equal(ones)
    args = with_args(cutout=True, cutout_length=16, cutout_prob=0.5)
    for make in (
        utils._data_transforms_cifar10,
        utils._data_transforms_cifar100,
        utils._data_transforms_svhn,
    ):
        train, valid = make(args)
        assert train.transforms[-1].prob == 0.5
        assert len(valid.transforms) == 2
