# SPDX-License-Identifier: Apache-2.0
"""Selection and checkpoints of compat.darts_pt."""

from __future__ import annotations

import copy
import functools
import logging
from argparse import Namespace
from pathlib import Path

import eager_supernets
import numpy as np
import pytest
import torch
from compat_cases import batch, with_args
from torch import Tensor, nn

from darts_fast.compat.darts_pt import Architect, DartsNetworkProj, SDartsNetworkProj, spaces_dict
from darts_fast.compat.darts_pt.perturb import Random_alpha
from darts_fast.compat.darts_pt.projection import project_edge, project_op, pt_project
from darts_fast.compat.darts_pt.train_search import infer
from darts_fast.selection import PerturbationConfig, removal_scores, select
from darts_fast.selection.engine.walk import can_walk
from darts_fast.spaces import S5_PRIMITIVES

ARGS = with_args(
    proj_crit={"normal": "loss", "reduce": "loss"},
    proj_crit_normal="loss",
    proj_crit_reduce="acc",
    proj_intv=1,
    dev_resume_epoch=-1,
    report_freq=50,
    fast=False,
)


def queue(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [batch(seed, size=8) for seed in range(count)]


def build(
    kind: type[DartsNetworkProj] = DartsNetworkProj, steps: int = 2, space: str = "s5"
) -> DartsNetworkProj:
    loss = nn.CrossEntropyLoss()
    net = kind(2, 5, 3, loss, spaces_dict[space], ARGS, steps, steps).double()
    net.set_arch_parameters([torch.randn_like(alpha) for alpha in net.arch_parameters()])
    return net


def plain_losses(net: DartsNetworkProj, tables: list[dict[str, Tensor]]) -> list[float]:
    """Mean loss over the queue in training mode under each table, by plain modules."""
    plain = eager_supernets.Network(2, 5, 3, "skip", S5_PRIMITIVES, steps=net._steps).double()
    plain.load_state_dict(net.state_dict())
    found = []
    for table in tables:
        weights = {**{k: w.detach() for k, w in net.edge_weights().items()}, **table}
        total = 0.0
        for images, labels in queue():
            s0 = s1 = plain.stem(images)
            for cell in plain.cells:
                kind = "reduce" if cell.reduction else "normal"
                s0, s1 = s1, cell(s0, s1, weights[kind])
            logits = plain.classifier(plain.global_pooling(s1).flatten(1))
            total += nn.functional.cross_entropy(logits, labels).item()
        found.append(total / 2)
    return found


def test_project_op_removes_what_hurts_most(caplog: pytest.LogCaptureFixture) -> None:
    net = build()
    net.project_op(0, 3, "normal")
    tables = []
    for op in range(7):
        weights = net.get_projected_weights("normal").detach().clone()
        weights[3, op] = 0
        tables.append({"normal": weights})
    expected = plain_losses(net, tables)
    caplog.set_level(logging.INFO)
    assert project_op(net, queue(), ARGS, infer, "normal", 3) == (3, int(np.argmax(expected)))
    logged = [float(line.split()[1]) for line in caplog.messages if line.startswith("valid_loss")]
    assert logged == pytest.approx(expected, abs=1e-5)
    assert int(net.get_buffer("stem.1.num_batches_tracked")) == 14  # running statistics move
    drawn, _ = project_op(net, queue(1), ARGS, infer, "normal")
    assert drawn != 0


def test_projection_code_of_one_s_own_runs() -> None:
    """What the published file does to a network, with NumPy's integers for numbers of edges."""
    np.random.seed(0)  # noqa: NPY002
    net = build(steps=4)
    open_edges = torch.nonzero(net.candidate_flags["reduce"]).cpu().numpy().T[0]
    edge = np.random.choice(open_edges, size=1)[0]  # noqa: NPY002
    weights = net.get_projected_weights("reduce")
    mask = torch.ones_like(weights[edge])
    mask[2] = 0
    weights[edge] = weights[edge] * mask
    infer(queue(1), net, log=False, _eval=False, weights_dict={"reduce": weights})
    net.project_op(edge, np.int64(2), cell_type="reduce")
    node = torch.nonzero(net.candidate_flags_edge["reduce"]).cpu().numpy().T[0][1]
    edges = copy.deepcopy(net.nid2eids[node])
    weights = net.get_projected_weights("reduce")
    weights[edges[0]].data.fill_(0)
    net.project_edge(node, edges[2:], cell_type="reduce")
    assert net.nid2selected_eids["reduce"][1] == [7, 8]
    assert net.get_projected_weights("reduce")[[5, 6]].abs().max() == 0
    rows = net.get_projected_weights("reduce")[edge]
    assert rows.sum() == (0 if edge in (5, 6) else rows[2])


def test_ties_go_to_the_first_operation_and_the_last_edge() -> None:
    net = build()

    def same(*_: object, **__: object) -> tuple[float, float]:
        return 50.0, 1.0

    accuracy = Namespace(proj_crit={"normal": "acc", "reduce": "acc"})
    for args in (ARGS, accuracy):
        assert project_op(net, queue(1), args, same, "reduce", 1) == (1, 0)
        assert project_edge(net, queue(1), args, same, "reduce") == (0, [2, 3])


def test_project_edge_compares_each_removal_with_the_complete_node() -> None:
    net = build(steps=4)
    for node in (0, 1):
        net.project_edge(node, net.nid2eids[node][:2], "normal")
    tables = []
    for edge in range(9, 14):
        weights = net.get_projected_weights("normal").detach().clone()
        weights[edge] = 0
        tables.append({"normal": weights})
    losses = plain_losses(net, tables)
    worst = sorted(range(5), key=lambda i: losses[i])[-2:]
    assert project_edge(net, queue(), ARGS, infer, "normal") == (
        2,
        sorted(9 + i for i in worst),
    )


def select_all(
    net: DartsNetworkProj, folder: Path, resume: int = -1, perturb: object = None
) -> Architect:
    architect = Architect(net, ARGS)
    changed = {"dev_resume_epoch": resume, "dev_resume_checkpoint_dir": str(folder)}
    args = with_args(**{**vars(ARGS), **changed, "dev_save_checkpoint_dir": str(folder)})
    queues = (queue(1), queue(1))
    pt_project(*queues, net, architect, net.optimizer, 0, args, infer, perturb, 0.3)  # type: ignore[arg-type]
    return architect


def test_the_whole_selection_and_going_on_from_a_checkpoint(tmp_path: Path) -> None:
    net = build(space="s2")
    np.random.seed(1)  # noqa: NPY002
    select_all(net, tmp_path)
    assert not any(flags.any() for flags in net.candidate_flags.values())
    assert not any(flags.any() for flags in net.candidate_flags_edge.values())
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [f"checkpoint_{epoch}.pth.tar" for epoch in range(6)]
    assert net.optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)
    for name, entries in (("normal", net.genotype().normal), ("reduce", net.genotype().reduce)):
        kept = [0, 1, *net.nid2selected_eids[name][0]]
        rows = net.proj_weights[name]
        ops = net.space.primitives[name]
        expected = {(ops[e][int(rows[e].argmax())], e - (2 if e > 1 else 0)) for e in kept}
        assert {*entries} == expected

    # The last operation is open at epoch 4: only one edge can be drawn, whatever the seed.
    again = build(space="s2")
    select_all(again, tmp_path, resume=4)
    assert again.genotype() == net.genotype()
    for key, value in net.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(again.arch_parameters(), net.arch_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    with pytest.raises(FileNotFoundError):
        select_all(build(space="s2"), tmp_path, resume=7)


def test_the_whole_selection_of_sdarts(tmp_path: Path) -> None:
    net = build(SDartsNetworkProj, space="s2")
    select_all(net, tmp_path, perturb=Random_alpha)
    assert not net.softmaxed
    assert not any(flags.any() for flags in net.candidate_flags.values())


def original_checkpoint(net: DartsNetworkProj) -> dict[str, object]:
    """What the original writes: tables of tensors, a dropped edge's row zeros again."""
    flags = {name: torch.ones(14, dtype=torch.bool) for name in ("normal", "reduce")}
    nodes = {name: torch.ones(3, dtype=torch.bool) for name in ("normal", "reduce")}
    rows = {name: torch.zeros(14, 7) for name in ("normal", "reduce")}
    for edge, op in ((2, 4), (4, 1), (13, 6)):
        flags["normal"][edge] = False
        rows["normal"][edge, op] = 1
    flags["normal"][3] = False  # its node dropped it
    nodes["normal"][0] = False
    selected = {name: {0: [], 1: [], 2: []} for name in ("normal", "reduce")}
    selected["normal"][0] = [2, 4]
    architect = Architect(net, ARGS)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(net.optimizer, 81, 0.001)
    return {
        "epoch": 70,
        "state_dict": net.state_dict(),
        "alpha": [alpha.detach().clone().requires_grad_() for alpha in net.arch_parameters()],
        "optimizer": net.optimizer.state_dict(),
        "arch_optimizer": architect.optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "nid2eids": {0: [2, 3, 4], 1: [5, 6, 7, 8], 2: [9, 10, 11, 12, 13]},
        "nid2selected_eids": selected,
        "candidate_flags": flags,
        "candidate_flags_edge": nodes,
        "proj_weights": rows,
    }


def test_a_checkpoint_of_the_original(tmp_path: Path) -> None:
    source, net = build(steps=4), build(steps=4)
    torch.save(original_checkpoint(source), tmp_path / "checkpoint_70.pth.tar")
    checkpoint = torch.load(tmp_path / "checkpoint_70.pth.tar")
    architect = Architect(net, ARGS)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(net.optimizer, 81, 0.001)
    net.set_state_dict(architect, scheduler, checkpoint)
    for name in ("normal", "reduce"):
        for table in ("candidate_flags", "candidate_flags_edge", "proj_weights"):
            expected = checkpoint[table][name]
            assert torch.equal(getattr(net, table)[name].to(expected), expected)
    assert net.nid2selected_eids == checkpoint["nid2selected_eids"]
    weights = torch.softmax(source.alphas_normal, -1).detach()
    weights[[2, 4, 13]] = checkpoint["proj_weights"]["normal"][[2, 4, 13]].double()
    weights[3] = 0
    torch.testing.assert_close(net.get_projected_weights("normal"), weights, rtol=0, atol=0)

    written = net.get_state_dict(70, architect, scheduler)
    assert {*written} == {*checkpoint}
    torch.save(written, tmp_path / "again.pth.tar")
    third = build(steps=4)
    third.set_state_dict(architect, scheduler, torch.load(tmp_path / "again.pth.tar"))
    assert torch.equal(third.get_projected_weights("normal"), net.get_projected_weights("normal"))
    checkpoint["proj_weights"]["normal"][13] = 0
    with pytest.raises(ValueError, match="must be one-hot"):
        third.set_state_dict(architect, scheduler, checkpoint)


def test_the_stacked_evaluation_takes_it(caplog: pytest.LogCaptureFixture) -> None:
    """Own names of arguments do not send it the slow way, and the scores are those of the loop."""
    net = build()
    assert can_walk(net)
    scores = removal_scores(net, queue(), cell_type="normal", edges=[2])
    tables = []
    for op in range(7):
        weights = net.get_projected_weights("normal").detach().clone()
        weights[2, op] = 0
        tables.append({"normal": weights})
    assert scores.loss[0].tolist() == pytest.approx(plain_losses(net, tables), rel=1e-9)

    class Mine(DartsNetworkProj):
        @functools.wraps(DartsNetworkProj.forward)
        def forward(self, input: Tensor, weights_dict: object = None) -> Tensor:
            return super().forward(input, weights_dict) * 2  # type: ignore[arg-type]

    assert not can_walk(build(Mine))
    config = PerturbationConfig(proj_crit="loss", proj_intv=0)
    selection = select(copy.deepcopy(net), queue(), method="perturbation", config=config)
    assert len(selection.decisions) == 12
