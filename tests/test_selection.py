# SPDX-License-Identifier: Apache-2.0
"""Scores of removals, and the decisions that are made from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scripted import Removed, ScriptedNet, edges_removed, scripted_batches
from selection_cases import Batches, small_batches, small_net
from torch import Tensor
from torch.nn import functional

from darts_fast.nn import Supernet
from darts_fast.seeding import rng_state
from darts_fast.selection import (
    PerturbationConfig,
    PerturbationSelection,
    projection_schedule,
    removal_scores,
    score_tables,
    select,
)
from darts_fast.selection.analysis import skip_weight
from darts_fast.spaces import get_space


def buffers_of(net: Supernet) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


# Schedule


def test_schedule_of_the_darts_spaces() -> None:
    schedule = projection_schedule(get_space("s5"), 5)
    assert schedule.epochs == 81
    assert [epoch for epoch, kind in schedule.steps if kind == "op"] == list(range(0, 70, 5))
    assert [epoch for epoch, kind in schedule.steps if kind == "edge"] == [70, 75, 80]


def test_schedule_of_nasbench201() -> None:
    schedule = projection_schedule(get_space("nasbench201"), 5)
    assert schedule.epochs == 25
    assert schedule.steps == tuple((epoch, "op") for epoch in (0, 5, 10, 15, 20, 24))


@pytest.mark.parametrize("space", ["s5", "nasbench201"])
@pytest.mark.parametrize("interval", [0, 1, 2, 3])
def test_schedule_decides_everything_at_any_interval(space: str, interval: int) -> None:
    schedule = projection_schedule(get_space(space), interval)
    kinds = Counter(kind for _, kind in schedule.steps)
    assert kinds["op"] == get_space(space).num_edges
    assert kinds["edge"] == (3 if space == "s5" else 0)
    epochs = [epoch for epoch, _ in schedule.steps]
    assert epochs[-1] == schedule.epochs - 1
    assert interval == 0 or len(set(epochs)) == len(epochs)
    assert sum((schedule.at(epoch) for epoch in range(schedule.epochs)), ()) == tuple(
        kind for _, kind in schedule.steps
    )


def test_schedule_rejects_a_negative_interval() -> None:
    with pytest.raises(ValueError, match="proj_intv must be 0 or more, got -1"):
        projection_schedule(get_space("s5"), -1)


# Scores


@pytest.mark.parametrize(
    ("space", "cell_type"),
    [("s5", "reduce"), ("darts", "normal"), ("nasbench201", "cell")],
)
def test_scores_equal_a_naive_loop_of_forwards(space: str, cell_type: str) -> None:
    net, batches = small_net(space), small_batches(5, 3)
    net.projection.project_op(cell_type, 1, 2)
    edges = [3, 1]
    scores = removal_scores(net, batches, cell_type=cell_type, edges=edges)

    net.train()
    images = sum(len(y) for _, y in batches)
    for row, edge in enumerate(edges):
        for op in range(net.space.num_ops):
            table = net.edge_weights()[cell_type].detach().clone()
            table[edge, op] = 0
            with torch.no_grad():
                logits = [net(x, {cell_type: table}) for x, _ in batches]
            pairs = list(zip(logits, (y for _, y in batches), strict=True))
            loss = sum(functional.cross_entropy(a, y, reduction="sum").item() for a, y in pairs)
            right = sum((a.argmax(1) == y).sum().item() for a, y in pairs)
            assert scores.loss[row, op].item() == pytest.approx(loss / images, abs=1e-5)
            assert scores.accuracy[row, op].item() == pytest.approx(100 * right / images)
    assert scores.images == images
    assert scores.loss.shape == (2, net.space.num_ops)
    # Removing what a decided edge does not use changes nothing.
    unused = [op for op in range(net.space.num_ops) if op != 2]
    assert scores.loss[1, unused].tolist() == [scores.base.loss] * len(unused)
    assert scores.loss[1, 2].item() != scores.base.loss


def test_standard_errors_take_the_batch_as_unit() -> None:
    net, batches = small_net("s2"), small_batches(6, 6, 3)
    scores = removal_scores(net, batches, cell_type="normal", edges=[0])
    sizes = torch.tensor([6.0, 6.0, 3.0], dtype=torch.float64)
    sums = scores.batch_loss[0, 1]
    mean = sums.sum() / 15
    expected = math.sqrt(3 / 2 * ((sums - sizes * mean) ** 2).sum().item()) / 15
    assert scores.loss_stderr[0, 1].item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(scores.batch_images, sizes)
    one = removal_scores(net, batches[:1], cell_type="normal", edges=[0])
    assert one.loss_stderr.isnan().all()


def test_standard_error_is_that_of_the_mean_for_equal_batches() -> None:
    net, batches = small_net("s2"), small_batches(4, 4, 4, 4)
    scores = removal_scores(net, batches, cell_type="normal", edges=[0])
    means = scores.batch_correct[0, 0] / 4
    assert scores.accuracy_stderr[0, 0].item() == pytest.approx(100 * means.std().item() / 2)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_no_trace(training: bool) -> None:
    net, batches = small_net("s4"), small_batches(6, 6, 3)
    net.train(training)
    net.cells[1].eval()
    flags = [module.training for module in net.modules()]
    buffers, random = buffers_of(net), rng_state()["torch"]
    removal_scores(net, batches, cell_type="normal", edges=[0])
    assert same(buffers, buffers_of(net))
    assert flags == [module.training for module in net.modules()]
    assert torch.equal(random, rng_state()["torch"])
    assert all(parameter.grad is None for _, parameter in net.named_parameters())


def test_scoring_that_is_ended_leaves_no_trace() -> None:
    class EndedError(Exception):
        pass

    def end() -> None:
        raise EndedError

    net = small_net("s2").eval()
    buffers = buffers_of(net)
    with pytest.raises(EndedError):
        removal_scores(net, small_batches(6, 6, 3), cell_type="normal", edges=[0], between=end)
    assert same(buffers, buffers_of(net))
    assert not any(module.training for module in net.modules())


def test_batch_norm_modes() -> None:
    net, batches = small_net("s2"), small_batches(6, 6, 3)
    net.train()
    for x, _ in batches:
        net(x)
    net.eval()
    buffers = buffers_of(net)
    with torch.no_grad():
        expected = sum(
            functional.cross_entropy(net(x), y, reduction="sum").item() for x, y in batches
        )
    running = score_tables(net, batches, [{}], bn="running")
    assert running.loss.item() == pytest.approx(expected / 15, abs=1e-6)
    batch = score_tables(net, batches, [{}], bn="batch")
    assert abs(batch.loss.item() - running.loss.item()) > 1e-3
    assert same(buffers, buffers_of(net))
    updating = score_tables(net, batches, [{}], bn="batch_updating")
    assert updating.loss.item() == batch.loss.item()
    assert not same(buffers, buffers_of(net))


def test_noise_is_shared_by_all_tables() -> None:
    net, batches = small_net("s4"), small_batches(6, 6, 3)
    weights = net.edge_weights()["normal"].detach()
    tables = []
    for edge in (2, 3):
        table = weights.clone()
        table[edge, 0] = 0  # noise: skipped, and yet edges 4, 5, ... must draw what they drew
        tables.append({"normal": table})
    both = weights.clone()
    both[2:4, 0] = 0
    first = score_tables(net, batches, [*tables, {"normal": both}], seed=3)
    alone = score_tables(net, batches, [tables[1]], seed=3)
    assert first.batch_loss[1].tolist() == alone.batch_loss[0].tolist()
    other = score_tables(net, batches, [tables[1]], seed=4)
    assert first.batch_loss[1].tolist() != other.batch_loss[0].tolist()

    draws: list[list[Tensor]] = []
    for table in ({}, tables[0]):
        draws.append([])
        ops = [cell._ops[9]._ops[0] for cell in net.cells]
        hooks = [
            op.register_forward_hook(lambda m, i, out: draws[-1].append(out.clone())) for op in ops
        ]
        score_tables(net, batches, [table], seed=3)
        for hook in hooks:
            hook.remove()
    assert len(draws[0]) == len(net.cells) * len(batches)
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


def test_equal_tables_are_evaluated_once() -> None:
    net = ScriptedNet(lambda removed: 0.0)
    table = {"normal": net.edge_weights()["normal"].detach()}
    scores = score_tables(net, scripted_batches(), [{}, table, {}])
    assert len(net.tables) == 2  # two batches
    assert scores.loss.shape == (3,)


def test_score_arguments_are_checked() -> None:
    net, batches = small_net("s5"), small_batches(6, 6, 3)
    with pytest.raises(ValueError, match="cell_type must be one of normal, reduce, got 'cell'"):
        removal_scores(net, batches, cell_type="cell")
    with pytest.raises(ValueError, match=r"edges must be in 0..13, got \[14\]"):
        removal_scores(net, batches, cell_type="normal", edges=[14])
    with pytest.raises(
        ValueError, match="bn must be one of batch, batch_updating, running, got 'x'"
    ):
        removal_scores(net, batches, cell_type="normal", edges=[0], bn="x")
    with pytest.raises(ValueError, match="batches must not be empty, got 0 batches"):
        removal_scores(net, [], cell_type="normal", edges=[0])
    with pytest.raises(ValueError, match="tables must not be empty, got 0 tables"):
        score_tables(net, batches, [])


# Decisions


def run(net: ScriptedNet, **config: object) -> PerturbationSelection:
    batches = scripted_batches()
    source = (lambda: iter(batches)) if config.get("mode") == "compat" else batches
    config.setdefault("proj_intv", 0)
    selection = PerturbationSelection(net, source, PerturbationConfig(**config))  # type: ignore[arg-type]
    selection.run()
    return selection


def per_op(harms: list[float]) -> Callable[[Removed], float]:
    """Harm by operation; whole edges (topology) cost nothing."""

    def harm(removed: Removed) -> float:
        places = [place for name in removed for place in removed[name]]
        return harms[places[0][1]] if len(places) == 1 else 0.0

    return harm


@pytest.mark.parametrize("mode", ["paired", "compat"])
@pytest.mark.parametrize("criterion", ["acc", "loss"])
def test_the_op_whose_removal_hurts_most_is_kept(mode: str, criterion: str) -> None:
    net = ScriptedNet(per_op([1, 2, 3, 30, 5, 6, 7]))
    selection = run(net, mode=mode, proj_crit=criterion)
    ops = [d for d in selection.decisions if d.kind == "op"]
    assert len(ops) == 28
    assert all(decision.chosen == [3] for decision in ops)
    assert all(
        sorted(d.place for d in ops if d.cell_type == t) == list(range(14))
        for t in ("normal", "reduce")
    )
    assert net.projection.undecided_edges("normal") == []
    assert net.projection.undecided_nodes("reduce") == []


@pytest.mark.parametrize("mode", ["paired", "compat"])
@pytest.mark.parametrize("criterion", ["acc", "loss"])
def test_ties_between_ops_go_to_the_first(mode: str, criterion: str) -> None:
    net = ScriptedNet(per_op([1, 9, 2, 9, 9, 1, 1]))
    selection = run(net, mode=mode, proj_crit=criterion)
    assert {tuple(d.chosen) for d in selection.decisions if d.kind == "op"} == {(1,)}


def test_the_two_criteria_look_at_different_things() -> None:
    harms = [0.1, 0.2, 0.3, 0.4, 0.1, 0.1, 0.1]  # no image is lost: accuracy ties
    by_accuracy = run(ScriptedNet(per_op(harms)), proj_crit="acc")
    by_loss = run(ScriptedNet(per_op(harms)), proj_crit="loss")
    mixed = run(ScriptedNet(per_op(harms)), proj_crit={"normal": "loss"})
    chosen = [
        {(d.cell_type, d.chosen[0]) for d in s.decisions if d.kind == "op"}
        for s in (by_accuracy, by_loss, mixed)
    ]
    assert chosen[0] == {("normal", 0), ("reduce", 0)}
    assert chosen[1] == {("normal", 3), ("reduce", 3)}
    assert chosen[2] == {("normal", 3), ("reduce", 0)}


def edge_harm(single: dict[int, float], both: float) -> Callable[[Removed], float]:
    """Harm of removing edges of the node with inputs 5 to 8; 5 and 6 stand in for each other."""

    def harm(removed: Removed) -> float:
        gone = edges_removed(removed, "normal") if len(removed["normal"]) != 1 else set()
        return sum(single.get(edge, 0.0) for edge in gone) + (both if {5, 6} <= gone else 0)

    return harm


def kept_edges(selection: PerturbationSelection, node: int) -> list[int]:
    (found,) = [
        d.chosen
        for d in selection.decisions
        if d.kind == "edge" and d.place == node and d.cell_type == "normal"
    ]
    return found


@pytest.mark.parametrize("criterion", ["acc", "loss"])
def test_edges_are_removed_cumulatively_in_paired_mode_only(criterion: str) -> None:
    harm = edge_harm({7: 10, 8: 20}, both=50)
    # One-hot rows: removing an edge is removing its one operation, so alphas stay undecided here.
    for mode, kept in (("paired", [5, 8]), ("compat", [7, 8])):
        net = ScriptedNet(harm)
        source = scripted_batches() if mode == "paired" else scripted_batches
        selection = PerturbationSelection(
            net, source, PerturbationConfig(mode=mode, proj_crit=criterion)
        )
        while net.projection.undecided_nodes("normal"):
            selection._project_edge("normal")
        assert kept_edges(selection, 4) == kept


@pytest.mark.parametrize("mode", ["paired", "compat"])
def test_ties_between_edges_remove_the_last(mode: str) -> None:
    selection = run(ScriptedNet(lambda removed: 0.0), mode=mode)
    assert [kept_edges(selection, node) for node in (3, 4, 5)] == [[2, 3], [5, 6], [9, 10]]


def test_rounds_of_a_node() -> None:
    selection = run(ScriptedNet(lambda removed: 0.0))
    (node,) = [
        d
        for d in selection.decisions
        if d.kind == "edge" and d.place == 5 and d.cell_type == "normal"
    ]
    assert node.candidates == [[9, 10, 11, 12, 13], [9, 10, 11, 12], [9, 10, 11]]
    assert [len(row) for row in node.loss] == [5, 4, 3]


def test_masking_does_not_renormalise_and_decisions_are_seen_by_the_next() -> None:
    net = ScriptedNet(per_op([0, 0, 5, 0, 0, 0, 0]))
    selection = run(net)
    first, second = selection.decisions[:2]
    assert (first.cell_type, second.cell_type) == ("normal", "reduce")
    alphas = net.alphas_normal.softmax(-1).detach()
    table = net.tables[0]["normal"][first.place]
    assert table[0] == 0
    assert torch.equal(table[1:], alphas[first.place, 1:])
    after = net.tables[2 * 7]["normal"][first.place]  # two batches of seven candidates later
    assert after.tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert all(net.modes)


def test_the_number_of_evaluations_is_known() -> None:
    net = ScriptedNet(lambda removed: 0.0)
    selection = run(net, mode="compat")
    assert selection.evaluations == 240
    assert len(net.tables) == 240 * 2


def test_the_order_is_drawn_from_the_seed() -> None:
    def order(seed: int) -> list[int]:
        return [d.place for d in run(ScriptedNet(lambda removed: 0.0), seed=seed).decisions]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_a_loss_that_is_not_finite_counts_as_the_worst() -> None:
    net = ScriptedNet(per_op([1, 2, 3, 4, float("nan"), 5, 6]))
    config = PerturbationConfig(proj_crit="loss")
    selection = PerturbationSelection(net, scripted_batches(), config)
    for _ in range(14):
        selection._project_op("normal")
    assert {tuple(decision.chosen) for decision in selection.decisions} == {(4,)}
    broken = ScriptedNet(lambda removed: float("nan"))
    with pytest.raises(FloatingPointError, match=r"finite loss, got .* for normal edge"):
        run(broken, proj_crit="loss")


def test_tuning_happens_between_projections() -> None:
    for mode, tuned in (("paired", 80), ("compat", 81)):
        events: list[object] = []
        net = ScriptedNet(lambda removed: 0.0)
        selection = PerturbationSelection(
            net,
            scripted_batches() if mode == "paired" else scripted_batches,
            PerturbationConfig(mode=mode),
            tune=events.append,
            log=lambda line, e=events: e.append(line) if line.startswith("project ") else None,  # type: ignore[misc]
        )
        selection.run()
        assert [e for e in events if isinstance(e, int)] == list(range(tuned))
        assert selection.tuning_epochs == tuned
        assert events[:8] == ["project op"] * 2 + [0, 1, 2, 3, 4, "project op"]
        at = {i: events.index(i) for i in (69, 70, 79)}
        assert events[at[69] + 1 : at[69] + 4] == ["project edge", "project edge", 70]
        assert events[at[79] + 1 : at[79] + 3] == ["project edge", "project edge"]


def test_compat_takes_fresh_images_for_every_candidate_and_moves_running_statistics() -> None:
    calls = 0
    batches = scripted_batches()

    def fresh() -> Batches:
        nonlocal calls
        calls += 1
        return batches

    net = ScriptedNet(lambda removed: 0.0)
    before = buffers_of(net)
    PerturbationSelection(net, fresh, PerturbationConfig(mode="compat", proj_intv=0)).run()
    assert calls == 240
    assert net.bn.num_batches_tracked.item() == 480
    assert not same(before, buffers_of(net))
    paired = ScriptedNet(lambda removed: 0.0)
    run(paired)
    assert same(buffers_of(paired), before)


def test_log_lines_have_the_originals_form() -> None:
    lines: list[str] = []
    net = ScriptedNet(per_op([0, 7, 0, 0, 0, 0, 0]))
    PerturbationSelection(
        net, scripted_batches(), PerturbationConfig(proj_intv=0), log=lines.append
    ).run()
    edge = next(line for line in lines if line.startswith("selected edge: "))
    assert edge.endswith(" normal")
    assert lines[0] == "project op"
    assert lines[2] == "valid_acc  100.000000"
    assert lines[4] == "valid_acc  93.000000"
    assert "best opid: 1" in lines
    assert "top2 edges: (2, 3)" in lines
    assert lines[-1] == "projection finished"


def test_state_goes_on_to_the_same_decisions() -> None:
    harms = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    whole = run(ScriptedNet(per_op(harms)), seed=5)
    net = ScriptedNet(per_op(harms))
    first = PerturbationSelection(net, scripted_batches(), PerturbationConfig(proj_intv=0, seed=5))

    class StopError(Exception):
        pass

    def stop_at_the_tenth() -> None:
        if len(first.decisions) == 10:
            raise StopError

    first.checkpoint = stop_at_the_tenth
    with pytest.raises(StopError):
        first.run()
    second = PerturbationSelection(net, scripted_batches(), PerturbationConfig(proj_intv=0, seed=5))
    second.load_state_dict(first.state_dict())
    second.run()
    assert second.decisions == whole.decisions
    assert second.finished


def test_nasbench201_is_decided_without_topology() -> None:
    net = small_net("nasbench201")
    selection = select(net, small_batches(6, 6, 3), method="perturbation")
    assert len(selection.decisions) == 6
    assert {d.kind for d in selection.decisions} == {"op"}
    assert [d.epoch for d in selection.decisions] == [0, 5, 10, 15, 20, 24]
    rows = net.edge_weights()["cell"]
    assert torch.equal(rows, functional.one_hot(rows.argmax(1), 5).float())
    assert selection.genotype == net.genotype()


def test_none_is_a_candidate_like_any_other() -> None:
    net = small_net("s3")
    selection = select(net, small_batches(4), method="perturbation")
    assert all(len(d.candidates[0]) == 3 for d in selection.decisions if d.kind == "op")


def test_magnitude_ignores_projections() -> None:
    net = small_net("s5")
    genotype = select(net, method="magnitude").genotype
    assert genotype == net.genotype()
    weakest = net.alphas_normal[0].argmin().item()
    net.projection.project_op("normal", 0, weakest)
    assert select(net).genotype == genotype


def test_selection_arguments_are_checked() -> None:
    net, batches = small_net("s5"), small_batches(6, 6, 3)
    with pytest.raises(
        ValueError, match=r"method must be one of perturbation, magnitude, .*, got 'x'"
    ):
        select(net, method="x")
    with pytest.raises(ValueError, match="perturbation needs batches to score on"):
        select(net, method="perturbation")
    with pytest.raises(ValueError, match="mode must be one of paired, compat, got 'x'"):
        PerturbationConfig(mode="x")
    with pytest.raises(ValueError, match="proj_intv must be 0 or more, got -2"):
        PerturbationConfig(proj_intv=-2)
    with pytest.raises(ValueError, match="proj_crit must be one of acc, loss, got 'x'"):
        PerturbationConfig(proj_crit={"normal": "x"})
    with pytest.raises(ValueError, match="mode compat needs a function for batches, got list"):
        PerturbationSelection(net, batches, PerturbationConfig(mode="compat"))
    with pytest.raises(ValueError, match="mode paired needs a sequence for batches, got function"):
        PerturbationSelection(net, lambda: batches)
    with pytest.raises(ValueError, match="batches must not be empty, got 0 batches"):
        PerturbationSelection(net, [])


# Proposition 1


def test_skip_weight_is_the_optimum_of_the_softmax_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(500, dtype=torch.float64, generator=generator)
    x = 0.4 * torch.randn(500, dtype=torch.float64, generator=generator) + 0.3 * shared
    o = torch.randn(500, dtype=torch.float64, generator=generator) + 0.3 * shared
    alpha = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([alpha], lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        weights = alpha.softmax(0)
        (weights[0] * x + weights[1] * o).square().mean().backward()
        optimizer.step()
        scheduler.step()
    assert skip_weight(x, o) == pytest.approx(alpha.softmax(0)[0].item(), abs=1e-6)
    assert skip_weight(x, o) > 0.5  # the input is the better estimate, so skip wins


def test_skip_weight_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match=r"the same shape, got \[2\] and \[3\]"):
        skip_weight(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"must differ and be finite, got 0\.0"):
        skip_weight(torch.ones(2), torch.ones(2))
