# SPDX-License-Identifier: Apache-2.0
"""Processes that share a search: the same steps and tables as one process, and the same end of all
of them.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from selection_cases import small_batches, small_net
from torch import nn
from worlds import in_world

from darts_fast.data import Dataset, load_data
from darts_fast.distributed import ALONE, RankLostError, ToldElsewhere, World, join
from darts_fast.nn import Supernet, build_supernet
from darts_fast.reporter import Interrupted, NonFiniteLossError, Reporter
from darts_fast.search import Search, SearchConfig
from darts_fast.search.trainer import Trainer
from darts_fast.seeding import seed_everything
from darts_fast.selection import (
    DiscretizationConfig,
    PerturbationConfig,
    RaceConfig,
    StrengthConfig,
    removal_scores,
    select,
)
from darts_fast.selection.tables import ROUND

SIZES = (4, 4, 4, 4, 3)  # of the batches that selections score on


def nothing() -> None:
    return None


# ---- the world


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
def test_shares_are_consecutive_even_and_first_ranks_have_more(size: int, count: int) -> None:
    parts = [list(range(count))[World(rank, size).share(count)] for rank in range(size)]
    assert list(itertools.chain.from_iterable(parts)) == list(range(count))
    lengths = [len(part) for part in parts]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1


def test_a_process_alone_needs_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_reduce", "all_gather_object", "broadcast_object_list", "init_process_group"):
        monkeypatch.setattr(torch.distributed, name, None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join()
    assert world is ALONE
    tensor = torch.ones(2)
    world.sum([tensor])
    assert torch.equal(tensor, torch.ones(2))
    assert world.gather(3) == [3]
    assert world.first(lambda: 4) == world.same(lambda: 4) == 4
    before = torch.get_rng_state()
    with world.together(), world.own_draws():
        assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError, match="own"), world.together():
        raise KeyError("own")


def collectives(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    mixed = [
        torch.full((2, 2), 1.5 + world.rank, dtype=torch.bfloat16),
        torch.arange(3, dtype=torch.float64).flip(0)[::2] / 3,
        torch.tensor(2 + world.rank),
    ]
    world.sum(mixed)
    found["sum"] = mixed
    found["gather"] = world.gather({"rank": world.rank})
    found["first"] = world.first(lambda: torch.ones(2))

    def fails() -> None:
        raise KeyError("first")

    def errors() -> str:
        try:
            world.first(fails)
        except (KeyError, ToldElsewhere) as error:
            return repr(error)
        return "none"

    found["error"] = errors()
    try:
        with world.together():
            if world.rank == 1:
                raise KeyError("second")
    except (KeyError, ToldElsewhere) as error:
        found["together"] = repr(error)

    def interrupted() -> int:
        if world.rank == 1:
            raise Interrupted
        return 1

    try:
        world.parts(interrupted)
    except Interrupted:
        found["interrupted"] = True
    found["parts"] = world.parts(lambda: world.rank)
    found["same"] = world.same(lambda: world.rank)
    torch.manual_seed(0)
    with world.own_draws():
        found["inside"] = torch.rand(3)
    found["outside"] = torch.rand(3)
    return found


def test_collectives(tmp_path: Path) -> None:
    first, second = in_world(tmp_path, collectives)
    assert first["sum"][0].tolist() == [[4.0, 4.0], [4.0, 4.0]]
    assert first["sum"][1].tolist() == [4 / 3, 0.0]
    assert first["sum"][2].item() == 5
    for one, other in zip(first["sum"], second["sum"], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert first["gather"] == second["gather"] == [{"rank": 0}, {"rank": 1}]
    assert torch.equal(second["first"], torch.ones(2))
    assert (first["error"], second["error"]) == ("KeyError('first')", "ToldElsewhere()")
    assert (first["together"], second["together"]) == ("ToldElsewhere()", "KeyError('second')")
    assert first["interrupted"]
    assert second["interrupted"]
    assert first["parts"] == second["parts"] == [0, 1]
    assert (first["same"], second["same"]) == (0, 1)
    assert not torch.equal(first["inside"], second["inside"])
    assert torch.equal(first["outside"], second["outside"])


def lonely(world: World) -> str:
    if world.rank == 1:
        return "gone"  # its sockets close with it
    try:
        for _ in range(1000):
            world.sum([torch.ones(1)])
    except RankLostError as error:
        return str(error)
    return "no error"


def test_a_process_that_is_gone_is_told_in_one_line(tmp_path: Path) -> None:
    first, _ = in_world(tmp_path, lonely)
    assert re.fullmatch(
        "another of the 2 processes of the run is gone or does not answer "
        r"\([^\n]*(closed|reset) by peer[^\n]*\)",
        first,
    )


# ---- steps


def few_digits(images: int) -> Dataset:
    data = load_data("digits")
    return replace(data, train=data.train.take(images))


def tiny(space: str, dtype: torch.dtype = torch.float32) -> Supernet:
    seed_everything(0)
    net = build_supernet(space, channels=2, num_classes=10, layers=1 if "201" in space else 3)
    return net.to(dtype)


def trained(
    world: World, space: str, method: str, *, batch_norms: str, epochs: int = 1
) -> dict[str, torch.Tensor]:
    """Weights, buffers and alphas after some epochs of batches of 7, 7 and 1 images."""
    net = tiny(space, torch.float64)
    if batch_norms == "running":
        # The images of a batch are then independent of each other.
        net.train = lambda mode=True: nn.Module.train(net, False)  # type: ignore[method-assign]
    config = SearchConfig(
        method=method, epochs=epochs, batch_size=7, learning_rate=0.1, sampling="epoch"
    )
    trainer = Trainer(net, few_digits(30), config, world=world)
    for _ in range(epochs):
        trainer.run_epoch(Reporter(), nothing)
    state = dict(net.full_state_dict()["state_dict"])
    state.update({f"alpha {k}": v for k, v in net.full_state_dict()["alphas"].items()})
    state["sums"] = torch.tensor(trainer.state_dict()["sums"])
    momentum = trainer.optimizer.state_dict()["state"]
    state["with momentum"] = torch.tensor(sorted(momentum))
    return state


@pytest.mark.parametrize(
    ("space", "method"),
    [
        ("s5", "darts"),
        pytest.param("nasbench201", "darts", marks=pytest.mark.slow),
        pytest.param("s4", "blank", marks=pytest.mark.slow),
    ],
)
def test_steps_equal_those_of_one_process_on_the_joint_batch(
    space: str, method: str, tmp_path: Path
) -> None:
    """Also where a share is empty; s4 has noise operations, whose draws differ."""
    found = in_world(tmp_path, _trained_with_running_statistics, space, method)
    alone = _trained_with_running_statistics(ALONE, space, method)
    for name, value in alone.items():
        assert torch.equal(found[0][name], found[1][name]), name
        if space != "s4":
            torch.testing.assert_close(found[0][name], value, rtol=1e-9, atol=1e-12)


def _trained_with_running_statistics(world: World, space: str, method: str) -> Any:
    return trained(world, space, method, batch_norms="running")


def _trained_with_batch_statistics(world: World, epochs: int) -> Any:
    return trained(world, "s5", "darts", batch_norms="batch", epochs=epochs)


def test_processes_hold_the_same_weights_and_running_statistics(tmp_path: Path) -> None:
    first, second = in_world(tmp_path, _trained_with_batch_statistics, 2)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    alone = _trained_with_batch_statistics(ALONE, 2)
    counters = [name for name in alone if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        assert torch.equal(first[name], alone[name]), name
    moved = [name for name in alone if not torch.equal(first[name], alone[name])]
    assert moved  # batch norms see the shares: this is not the step of one process


def _tuned_with_perturbation(world: World) -> Any:
    """Edge weights that depend on all images of the batch."""

    def perturb(net: Supernet, images: torch.Tensor, labels: torch.Tensor) -> Any:
        own = {name: table.detach() for name, table in net.edge_weights().items()}
        return {name: table * (1 + images.double().std()) for name, table in own.items()}

    net = tiny("nasbench201", torch.float64)
    net.train = lambda mode=True: nn.Module.train(net, False)  # type: ignore[method-assign]
    config = SearchConfig(batch_size=7, sampling="epoch", learning_rate=0.1)
    trainer = Trainer(net, few_digits(30), config, perturb=perturb, world=world)
    trainer.start_tuning()
    trainer.run_epoch(Reporter(), nothing)
    return net.state_dict()


def test_perturbations_see_the_joint_batch(tmp_path: Path) -> None:
    alone = _tuned_with_perturbation(ALONE)
    for found in in_world(tmp_path, _tuned_with_perturbation):
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def _one_step(world: World) -> Any:
    net = tiny("s5", torch.float64)
    config = SearchConfig(method="blank", batch_size=9)
    trainer = Trainer(net, few_digits(18), config, world=world)
    trainer.run_epoch(Reporter(), nothing)
    return net.state_dict()["stem.1.running_mean"], net.state_dict()["stem.1.running_var"]


def test_running_means_are_those_of_the_joint_batch(tmp_path: Path) -> None:
    """The stem's, whose input is the same; shares of 5 and 4 images count as such."""
    (mean, variance), _ = in_world(tmp_path, _one_step)
    joint_mean, joint_variance = _one_step(ALONE)
    torch.testing.assert_close(mean, joint_mean, rtol=1e-12, atol=1e-15)
    assert not torch.equal(variance, joint_variance)  # that between the shares is missing


def error_of_an_epoch(
    kind: type[Exception], net: Supernet, images: int, config: SearchConfig, world: World
) -> str:
    trainer = Trainer(net, few_digits(images), config, world=world)
    try:
        trainer.run_epoch(Reporter(), nothing)
    except kind as error:
        return str(error)
    return "no error"


def poisoned(world: World) -> str:
    """A NaN in the share of the second process alone."""
    net = tiny("s5")
    stem = net.get_submodule("stem")
    if world.rank == 1:
        stem.register_forward_hook(lambda module, given, output: output * float("nan"))
    return error_of_an_epoch(
        NonFiniteLossError, net, 30, SearchConfig(method="blank", batch_size=8), world
    )


def test_a_loss_that_is_not_finite_in_one_process_ends_all(tmp_path: Path) -> None:
    first, second = in_world(tmp_path, poisoned)
    assert first == second
    assert "training loss must be finite, got nan in epoch 0, step 0; first in the " in first
    assert "stem" in first or "cell 0" in first


def come_apart(world: World) -> str:
    net = tiny("nasbench201")
    with torch.no_grad():
        next(iter(net.parameters())).add_(world.rank)
    return error_of_an_epoch(ValueError, net, 16, SearchConfig(batch_size=8), world)


def test_processes_with_other_weights_are_noticed(tmp_path: Path) -> None:
    for text in in_world(tmp_path, come_apart):
        assert text.startswith(
            "search: all 2 processes must hold the same weights after epoch 0, got others; "
        )


# ---- removals


def tables(world: World, bn: str, batches: int) -> Any:
    calls = [0]

    def count() -> None:
        calls[0] += 1

    scores = removal_scores(
        small_net("s4"),
        small_batches(*[2] * batches, 3),
        bn=bn,
        cell_type="reduce",
        edges=[0, 5],
        world=world,
        between=count,
    )
    return scores.batch_loss, scores.batch_correct, scores.scores.batch_loss[0], calls[0]


@pytest.mark.parametrize(
    ("bn", "size"), [("batch", 2), pytest.param("running", 3, marks=pytest.mark.slow)]
)
def test_removal_tables_are_those_of_one_process(bn: str, size: int, tmp_path: Path) -> None:
    """Noise operations, and a last round with one small batch for all processes."""
    batches = ROUND * size
    alone = tables(ALONE, bn, batches)
    for found in in_world(tmp_path, tables, bn, batches, size=size):
        assert all(torch.equal(one, other) for one, other in zip(alone[:3], found[:3], strict=True))
        assert found[3] == alone[3]


METHODS: dict[str, tuple[str, Any, Any]] = {
    "paired": ("perturbation", PerturbationConfig(proj_intv=0, proj_crit="loss"), None),
    "race": (
        "perturbation",
        PerturbationConfig(proj_intv=0, proj_crit="loss"),
        RaceConfig(error=0.3, margin=0.05, min_batches=2, ordered=True),
    ),
    "compat": ("perturbation", PerturbationConfig(mode="compat", proj_intv=0), None),
    "one_shot": ("one_shot", PerturbationConfig(proj_crit="loss"), None),
    "strength": ("strength", StrengthConfig(), None),
    "discretization": ("discretization", DiscretizationConfig(criterion="loss"), None),
}


def selected(world: World, name: str) -> Any:
    method, config, race = METHODS[name]
    batches = small_batches(*SIZES)
    net = small_net("nasbench201")
    given: Any = (lambda: iter(batches)) if name == "compat" else batches
    found = select(
        net,
        given,
        method=method,
        config=config,
        race=race,
        converge=lambda copy: None if name == "discretization" else copy,
        world=world,
    )
    return found, [buffer.clone() for buffer in net.buffers()]


def selections(world: World, names: list[str]) -> Any:
    return {name: selected(world, name) for name in names}


@pytest.mark.parametrize(
    "names",
    [
        ["paired", "race", "one_shot"],
        pytest.param(["compat", "strength", "discretization"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_selections_decide_as_one_process(names: list[str], tmp_path: Path) -> None:
    alone = selections(ALONE, names)
    for found in in_world(tmp_path, selections, names):
        for name, (selection, buffers) in alone.items():
            assert repr(found[name][0]) == repr(selection), name  # NaN is not equal to itself
            assert all(map(torch.equal, found[name][1], buffers)), name
    if "race" in alone:
        outcomes = [o for decision in alone["race"][0].decisions for o in decision.outcomes]
        assert "decided" in outcomes


# ---- a search


class StopsAfter(Reporter):
    """Asks to stop once it has counted so many steps; counts on."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.count = 0

    def advance(self, accuracy: float | None = None) -> None:
        self.count += 1

    @property
    def stopping(self) -> bool:
        return self.count >= self.steps


def stopped(world: World, steps: int) -> Any:
    """Only the second process is asked to stop."""
    states: list[Any] = []
    search = Search(
        tiny("nasbench201"),
        few_digits(64),
        epochs=1,
        batch_size=8,
        selection=PerturbationConfig(proj_intv=1),
        reporter=StopsAfter(steps if world.rank == 1 else 10**9),
        checkpoint=states.append,
        world=world,
    )
    try:
        search.run()
    except Interrupted:
        trainer = states[-1]["trainer"]
        return trainer["tuning"], trainer["epoch"], trainer["step"], states[-1]["done"]
    return "not stopped"


@pytest.mark.parametrize(
    ("steps", "phase"),
    [
        (2, "search"),
        (12, "scoring"),
        pytest.param(25, "tuning", marks=pytest.mark.slow),
    ],
)
def test_all_stop_at_the_step_at_which_one_is_asked_to(
    steps: int, phase: str, tmp_path: Path
) -> None:
    first, second = in_world(tmp_path, stopped, steps)
    assert first == second
    tuning, _, step, _ = first
    assert tuning == (phase != "search")
    assert (step > 0) == (phase != "scoring")


class SavesAt(StopsAfter):
    """Asks for a checkpoint after so many steps, and not to stop."""

    stopping = False  # type: ignore[assignment]

    @property
    def saving(self) -> bool:
        return self.count == self.steps


def saved(world: World) -> list[int]:
    """The steps at which a checkpoint is made; only the second process is asked for one."""
    steps: list[int] = []
    search = Search(
        tiny("nasbench201"),
        few_digits(64),
        epochs=1,
        batch_size=8,
        select="magnitude",
        reporter=SavesAt(2 if world.rank == 1 else 10**9),
        checkpoint=lambda state: steps.append(state["trainer"]["step"]),
        world=world,
    )
    search.run()
    return steps


def test_all_save_at_the_step_at_which_one_is_asked_to(tmp_path: Path) -> None:
    first, second = in_world(tmp_path, saved)
    assert first == second
    assert len(first) == 1


def searched(world: World, seed: int) -> Any:
    """The processes are seeded otherwise: all take what the first one has."""
    seed_everything(seed + world.rank)
    net = build_supernet("s4", channels=2, num_classes=10, layers=3)
    search = Search(
        net,
        few_digits(40),
        epochs=1,
        batch_size=7,
        sampling="epoch",
        select="one_shot",
        proj_images=20,
        world=world,
    )
    result = search.run()
    state = search.state_dict()
    return result, state["net"]["state_dict"], state["net"]["alphas"], state["rng"]["torch"]


def test_a_search_ends_alike_in_all_processes(tmp_path: Path) -> None:
    first, second = in_world(tmp_path, searched, 5)
    assert first[0] == second[0]
    assert first[0].history[0]["valid_acc"] is not None
    for one, other in zip(first[1:3], second[1:3], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(first[3], second[3])
