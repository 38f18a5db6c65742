# SPDX-License-Identifier: Apache-2.0
"""SGAS: its scores on a table computed by hand, and a whole search of fifty epochs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darts_fast.data import load_data
from darts_fast.nn import Supernet, build_supernet
from darts_fast.search import Reporter, Search, SearchConfig, Trainer
from darts_fast.search.methods.sgas_scores import Scores, normalised
from darts_fast.selection import PerturbationConfig

ALPHA = torch.tensor([[2.0, 1, 0, 0], [0, 3, 0, 0], [0, 1, 1, 1], [1, 0, 0, 2]])
NAMES = [["none", "a", "b", "c"]] * 4
PAST = torch.tensor([[0.6, 0.2, 0.2], [0.3, 0.4, 0.3], [0.34, 0.33, 0.33], [0.1, 0.1, 0.8]])


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=5e-5)


def test_the_scores_of_the_table() -> None:
    past = torch.cat([torch.zeros(4, 1), PAST], 1).double()
    scores = Scores(ALPHA, NAMES, [past])
    close(scores.importance, [0.3897, 0.9567, 0.8908, 0.7755])
    close(scores.certainty, [0.1122, 0.6663, 0, 0.3942])
    close(scores.stability, [0.9761, 0.3906, 0.9933, 0.9870])
    close(scores.criterion(use_history=False), [0, 1, 0, 0.4025])
    close(scores.criterion(use_history=True), [0, 0, 0, 0.3983])
    every = range(4)
    assert scores.best(every, use_history=False) == 1
    assert scores.operation(1) == 1
    assert scores.best(every, use_history=True) == 3
    assert scores.operation(3) == 3
    assert scores.best([0, 2, 3], use_history=False) == 3


def test_without_a_history_or_a_range_there_is_nothing_to_tell() -> None:
    scores = Scores(ALPHA, NAMES, [])
    assert scores.stability.tolist() == [0, 0, 0, 0]
    assert scores.best(range(2, 4), use_history=True) == 2  # all alike: the first
    assert normalised(torch.full((3,), 0.7)).tolist() == [0, 0, 0]
    long = Scores(ALPHA, NAMES, [scores.distribution, torch.zeros(4, 4).double()])
    close(long.stability, [0.5, 0.5, 0.5, 0.5])


def test_without_none_certainty_decides() -> None:
    scores = Scores(ALPHA, [["d", "a", "b", "c"]] * 4, [])
    weights = ALPHA.double().softmax(-1)
    entropy = -(weights * weights.log()).sum(-1)
    torch.testing.assert_close(scores.certainty, 1 - entropy / torch.tensor(4.0).double().log())
    torch.testing.assert_close(
        scores.criterion(use_history=False), normalised(scores.certainty), rtol=1e-12, atol=0
    )
    alone = Scores(ALPHA[:, :2], [["none", "a"]] * 4, [])
    assert alone.certainty.tolist() == [1, 1, 1, 1]


# A search


DECISIONS = [9, 14, 19, 24, 29, 34, 39, 44]


def counts(edge: nn.Module) -> list[int]:
    """How many weight steps each operation of an edge has run in; 0 where it has no batch norm."""
    found = []
    for op in edge._ops:
        norms = [module for module in op.modules() if isinstance(module, nn.BatchNorm2d)]
        found.append(max((int(norm.num_batches_tracked) for norm in norms), default=0))
    return found


class Watched:
    """A search with the default settings and one step an epoch, looked at after every epoch.

    Attributes: decided, by epoch the edges of each type that are decided or gone; sizes, of the
    batches; closed, by type and edge the number of steps before it was decided or gone.
    """

    def __init__(self, **settings: Any) -> None:
        self.net = SearchConfig("sgas").build_supernet(
            "darts", channels=4, num_classes=10, layers=3
        )
        self.search = Search(
            self.net,
            load_data("digits", limit=128),
            method="sgas",
            select="magnitude",
            valid_freq=0,
            arch_learning_rate=0.02,
            **settings,
        )
        self.decided: list[dict[str, set[int]]] = []
        self.sizes: list[int] = []
        self.closed: dict[tuple[str, int], int] = {}
        self._resting: dict[tuple[str, int], Tensor] = {}
        self.search.snapshot = self.look

    def look(self, epoch: int) -> None:
        now = {}
        for name, alpha in self.net.alphas().items():
            now[name] = {*range(14)} - {*self.net.projection.undecided_edges(name)}
            for edge in now[name]:
                self.closed.setdefault((name, edge), epoch + 1)
                kept = self._resting.setdefault((name, edge), alpha[edge].detach().clone())
                assert torch.equal(kept, alpha[edge])  # frozen
        self.decided.append(now)
        self.sizes.append(self.search.trainer._search_batches.batch_size)

    def check(self) -> None:
        """Two inputs of a node, eight edges decided and six gone per type, at the right epochs."""
        assert self.sizes == [64 + 8 * sum(at <= epoch for at in DECISIONS) for epoch in range(50)]
        for name in ("normal", "reduce"):
            counted = [len(now[name]) for now in self.decided]
            changed = [e for e in range(1, 50) if counted[e] > counted[e - 1]]
            assert (counted[0], changed, counted[-1]) == (0, DECISIONS, 14)
            rows = self.net.edge_weights()[name]
            kept = [edge for edge in range(14) if rows[edge].any()]
            assert len(kept) == 8
            assert rows[kept].max(-1).values.tolist() == [1.0] * 8
            assert rows.sum() == 8
            assert not rows[:, 0].any()
            for edges in self.net.space.node_edges.values():
                assert len({*edges} & {*kept}) == 2


def test_fifty_scripted_epochs_decide_eight_edges_of_each_type() -> None:
    """The schedule alone: alphas drift at random, nothing is trained."""
    watched = Watched()
    trainer = watched.search.trainer
    for epoch in range(50):
        trainer.epoch = epoch
        with torch.no_grad():
            for name, alpha in watched.net.alphas().items():
                for edge in watched.net.projection.undecided_edges(name):
                    alpha[edge] += torch.randn(8)
        trainer.method.end_epoch(trainer._loop)
        watched.look(epoch)
    watched.check()


@pytest.mark.slow
def test_a_search_of_fifty_epochs_does_not_compute_what_is_gone() -> None:
    watched = Watched()
    result = watched.search.run()
    watched.check()
    for cell, name in zip(watched.net.cells, ("normal", "reduce", "reduce"), strict=True):
        rows = watched.net.edge_weights()[name]
        for number, edge in enumerate(cell._ops):
            for op, count in enumerate(counts(edge)):
                steps = 50 if rows[number, op] == 1 else watched.closed[name, number]
                assert count in (0, steps)
            assert max(counts(edge)) >= watched.closed[name, number]
    assert result.genotype == result.magnitude == watched.net.genotype()


def trainer_of(net: Supernet, **settings: Any) -> Trainer:
    config = SearchConfig("sgas", epochs=4, batch_size=12).with_settings(**settings)
    return Trainer(net, load_data("digits", limit=48), config)


def test_perturbation_chooses_the_operation_whose_removal_costs_most() -> None:
    net = build_supernet("s3", channels=4, num_classes=10, layers=3)
    trainer = trainer_of(net, op_choice="perturbation", warmup_dec_epoch=1)
    trainer.run_epoch(Reporter(), lambda: None)
    assert len(net.projection.undecided_edges("normal")) == 14
    expected: dict[str, dict[int, int]] = {}

    def watched(loop: Any) -> None:
        """Every choice there could be, one network at a time, before any is made."""
        own = {name: table.detach() for name, table in net.edge_weights().items()}
        edges = 14 if not expected else 0
        for name in ("normal",):
            expected[name] = {}
            for edge in range(edges):
                correct = []
                for op in (1, 2):
                    table = own[name].clone()
                    table[edge, op] = 0
                    total = 0
                    with torch.no_grad():
                        for images, labels in loop.valid_pool():
                            logits = net(images, weights={**own, name: table})
                            total += int((logits.argmax(1) == labels).sum())
                    correct.append(total)
                expected[name][edge] = 1 + correct.index(min(correct))
        end(loop)

    end = trainer.method.end_epoch
    trainer.method.end_epoch = watched  # type: ignore[method-assign]
    trainer.run_epoch(Reporter(), lambda: None)
    (edge,) = set(range(14)) - set(net.projection.undecided_edges("normal"))
    assert net.projection.decided_op("normal", edge) == expected["normal"][edge]


@pytest.mark.parametrize("epochs", [2, 8])
def test_a_selection_decides_what_the_search_left_open(epochs: int) -> None:
    """After eight decisions nothing: no tuning either."""
    config = SearchConfig(
        "sgas", {"warmup_dec_epoch": 0, "decision_freq": 1}, epochs=epochs, batch_size=24
    )
    net = config.build_supernet("s2", channels=4, num_classes=10, layers=3)
    selection = PerturbationConfig(proj_intv=0)
    data = load_data("digits", limit=48)
    search = Search(net, data, config, select="perturbation", selection=selection, proj_images=6)
    result = search.run()
    for name in ("normal", "reduce"):
        assert net.projection.undecided_edges(name) == []
        assert net.projection.undecided_nodes(name) == []
    if epochs == 8:
        assert result.decisions == []
        assert result.genotype == result.magnitude
        assert search.trainer.step == search.trainer.epoch == 0
    else:
        kinds = [(made.kind, made.cell_type) for made in result.decisions]
        assert kinds.count(("op", "normal")) <= 12
        assert ("edge", "normal") in kinds


def test_options_and_supernet_are_checked() -> None:
    for options, message in (
        ({"history_size": 0}, "history_size must be 1 or more, got 0"),
        ({"decision_freq": 0}, "decision_freq must be 1 or more, got 0"),
        ({"warmup_dec_epoch": -1}, "warmup_dec_epoch must be 0 or more, got -1"),
        ({"batch_increase": -1}, "batch_increase must be 0 or more, got -1"),
        ({"op_choice": "x"}, "op_choice must be one of weight, perturbation, got 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            SearchConfig("sgas", options)
    net = build_supernet("darts", channels=4, num_classes=10, layers=3)
    with pytest.raises(ValueError, match=r"zero='skip'; .* got zero='multiply'"):
        trainer_of(net)
