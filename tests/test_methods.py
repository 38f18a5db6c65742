# SPDX-License-Identifier: Apache-2.0
"""What all search methods share: names, options, exact resuming, steps that leave weights alone."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from stopping import StopAfter
from torch import Tensor, nn
from worlds import in_world

from darts_fast import frozen_statistics
from darts_fast.cli.method_flags import method_flags
from darts_fast.data import Dataset, load_data
from darts_fast.distributed import ALONE, World
from darts_fast.nn import build_supernet
from darts_fast.search import (
    METHODS,
    Interrupted,
    Reporter,
    Search,
    SearchConfig,
    Trainer,
    genotype_text,
)
from darts_fast.search.methods import Method, NoOptions, register
from darts_fast.search.methods import registry as registry_module
from darts_fast.search.methods.registry import Methods
from darts_fast.seeding import seed_everything

NAMES = sorted(METHODS)
# What lets three epochs show everything a method does.
OPTIONS: dict[str, dict[str, Any]] = {
    "pc-darts": {"begin": 1},
    "idarts": {"inner_steps": 1, "products": "difference"},
    "balenas": {"samples": 2},
    "sgas": {"warmup_dec_epoch": 0, "decision_freq": 1, "batch_increase": 2, "use_history": True},
}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=48)


def search_of(data: Dataset, method: str, space: str = "s2", **settings: Any) -> Search:
    """Three epochs of three steps in the smallest supernet that the method trains."""
    seed_everything(3)
    settings = {"epochs": 3, "batch_size": 8, "seed": 3, "select": "magnitude", **settings}
    names = {setting.name for setting in fields(SearchConfig)}
    config = SearchConfig(method=method).with_settings(
        **{name: value for name, value in settings.items() if name in names},
        **OPTIONS.get(method, {}),
    )
    layers = 1 if space == "nasbench201" else 3
    net = config.build_supernet(space, channels=4, num_classes=10, layers=layers)
    rest = {name: value for name, value in settings.items() if name not in names}
    return Search(net, data, config, **rest)


def values(net: nn.Module) -> dict[str, Tensor]:
    named = [*net.named_parameters(), *net.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


# Every method


@pytest.mark.parametrize("method", NAMES)
def test_a_step_of_the_architecture_moves_no_weight_and_no_buffer(
    digits: Dataset, method: str
) -> None:
    search = search_of(digits, method)
    trainer, net = search.trainer, search.net
    moved: list[str] = []
    step = trainer._architecture_step

    def watched() -> None:
        before = values(net)
        step()
        after = values(net)
        moved.extend(name for name in before if not torch.equal(before[name], after[name]))

    trainer._architecture_step = watched  # type: ignore[method-assign]
    trainer.run_epoch(Reporter(), lambda: None)
    architecture = {
        name
        for name, parameter in net.named_parameters()
        if any(parameter is own for own in net.arch_parameters())
    }
    assert set(moved) <= architecture
    assert all(parameter.requires_grad for _, parameter in net.named_parameters())


# Each in a space of DARTS's cells, and what has a supernet of its own in the other one too.
@pytest.mark.parametrize(
    ("method", "space"), [*((name, "s2") for name in NAMES), ("pc-darts", "nasbench201")]
)
def test_a_search_stopped_after_any_step_goes_on_to_the_same_bits(
    digits: Dataset, method: str, space: str, tmp_path: Any
) -> None:
    whole = search_of(digits, method, space)
    result = whole.run()
    for steps in (3, 7):
        first = search_of(digits, method, space, reporter=StopAfter(steps))
        first.checkpoint = lambda state: torch.save(state, tmp_path / "state.pt")
        with pytest.raises(Interrupted):
            first.run()
        second = search_of(digits, method, space)
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert second.run() == result
        assert_same(values(second.net), values(whole.net))


@pytest.mark.parametrize("method", NAMES)
def test_a_method_searches_both_kinds_of_spaces(digits: Dataset, method: str) -> None:
    """The tiny form of a search on the digits; the other space is in the other tests."""
    options = OPTIONS.get(method, {})
    config = SearchConfig(method, options, epochs=1, batch_size=16, valid_freq=0)
    net = config.build_supernet("nasbench201", channels=4, num_classes=10, layers=1)
    result = Search(net, digits, config, select="magnitude").run()
    assert genotype_text(result.genotype).startswith("|")


JOINT = ("darts-2nd", "sdarts-rs", "sdarts-adv", "sgas", "pc-darts", "idarts", "balenas")


def _searched(world: World) -> dict[str, dict[str, Tensor]]:
    """What methods make of a network in an epoch whose batches two processes share."""
    found = {}
    for method in JOINT:
        seed_everything(0)
        options = {**OPTIONS.get(method, {}), **({"begin": 0} if method == "pc-darts" else {})}
        config = SearchConfig(
            method, options, epochs=1, batch_size=7, sampling="epoch", arch_learning_rate=0.1
        )
        net = config.build_supernet("s2", channels=4, num_classes=10, layers=3).double()
        # Batch norms would see the shares of a batch, not the batch.
        net.train = lambda mode=True, net=net: nn.Module.train(net, False)  # type: ignore[method-assign,misc]
        Trainer(net, load_data("digits", limit=30), config, world=world).run_epoch(
            Reporter(), lambda: None
        )
        found[method] = values(net)
    return found


@pytest.mark.slow
def test_methods_take_the_same_steps_in_several_processes(tmp_path: Path) -> None:
    """And those of one process, where they draw no noise, whose draws depend on the number."""
    alone = _searched(ALONE)
    first, second = in_world(tmp_path, _searched)
    for method, state in alone.items():
        assert_same(first[method], second[method])
        if not method.startswith(("sdarts", "balenas")):
            for name, value in state.items():
                torch.testing.assert_close(
                    first[method][name], value, rtol=1e-6, atol=1e-9, msg=f"{method} {name}"
                )


@pytest.mark.slow
@pytest.mark.parametrize("method", NAMES)
def test_a_method_searches_the_digits_within_a_minute(
    darts_fast: Callable[..., tuple[int, str, str]], method: str
) -> None:
    """The search of the README's first command, on one thread. Its CPU time: other work on the
    machine changes that little."""
    start = time.process_time()
    status, out, err = darts_fast(
        *("search", "--data", "digits", "--method", method, "--space", "s5", "--threads", "1"),
        *("--init_channels", "4", "--layers", "3", "--epochs", "5", "--batch_size", "128"),
        *("--learning_rate", "0.1", "--select", "magnitude", "--save", "run"),
    )
    assert status == 0, err
    assert "genotype = " in out
    assert time.process_time() - start < 60


def test_options_of_partial_channels_are_checked() -> None:
    with pytest.raises(ValueError, match=r"begin must be 0 or more .*, got -1 and 4"):
        SearchConfig(method="pc-darts", method_options={"begin": -1})


def test_the_architecture_of_partial_channels_waits(digits: Dataset) -> None:
    search = search_of(digits, "pc-darts", epochs=2)
    start = [parameter.detach().clone() for parameter in search.net.arch_parameters()]
    search.trainer.run_epoch(Reporter(), lambda: None)
    for parameter, value in zip(search.net.arch_parameters(), start, strict=True):
        assert torch.equal(parameter, value)
    search.trainer.run_epoch(Reporter(), lambda: None)
    for parameter, value in zip(search.net.arch_parameters(), start, strict=True):
        assert not torch.equal(parameter, value)


@pytest.mark.parametrize("method", NAMES)
def test_a_method_is_one_short_file(method: str) -> None:
    """Under 150 lines, so that it reads like its paper's algorithm."""
    file = inspect.getsourcefile(METHODS[method])
    assert file is not None
    assert len(Path(file).read_text().splitlines()) < 150


# Frozen statistics


class Counting(nn.Module):
    """A module with a buffer of its own that every forward moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


@pytest.mark.parametrize("training", [True, False])
def test_frozen_statistics_change_no_output_and_no_buffer(training: bool) -> None:
    net = build_supernet("s5", channels=4, num_classes=10, layers=3)
    whole = nn.Sequential(net, Counting(), nn.BatchNorm1d(10, momentum=None)).train(training)
    x = torch.randn(4, 3, 8, 8)
    before = values(whole)
    with frozen_statistics(whole):
        frozen = whole(x)
        with frozen_statistics(net):  # nested
            whole(x)
        whole(x)
    assert_same(values(whole), before)
    assert torch.equal(whole(x), frozen)
    moved = [name for name, value in values(whole).items() if not torch.equal(value, before[name])]
    assert "1.calls" in moved
    assert any("running_mean" in name for name in moved) == training


def test_frozen_statistics_end_with_an_error() -> None:
    norm = nn.BatchNorm2d(2)
    with pytest.raises(KeyError), frozen_statistics(norm):
        raise KeyError
    norm(torch.randn(2, 2, 3, 3))
    assert norm.num_batches_tracked == 1


# Names and options


@pytest.fixture
def a_method() -> Iterator[type[Method]]:
    @dataclass(frozen=True)
    class Options:
        rate: float = field(default=0.5, metadata={"help": "A rate."})
        kind: str = field(default="a", metadata={"choices": ("a", "b")})

        def __post_init__(self) -> None:
            if self.rate < 0:
                raise ValueError(f"still: rate must be >= 0, got {self.rate}")

    class Still(Method):
        name = "still"

        def gradient(self, loop: Any) -> None:
            return None

    Still.Options = Options
    yield register(Still)
    del METHODS._classes["still"]


def test_a_registered_method_is_known_by_name_and_by_its_options(
    a_method: type[Method], digits: Dataset
) -> None:
    assert METHODS["still"] is a_method
    assert register(a_method) is a_method
    config = SearchConfig.from_mapping({"method": "still", "rate": 2.0, "kind": None, "x": 1})
    assert config.method_options == {"rate": 2.0}
    trainer = Trainer(build_supernet("s2", channels=4, num_classes=10, layers=3), digits, config)
    assert (trainer.method.options.rate, trainer.method.options.kind) == (2.0, "a")
    assert config.with_settings(epochs=3, kind="b").method_options == {"rate": 2.0, "kind": "b"}
    assert config.with_settings(method="blank").method_options == {}
    with pytest.raises(ValueError, match="still: rate must be >= 0, got -1"):
        SearchConfig(method="still", method_options={"rate": -1})
    with pytest.raises(ValueError, match="method still: options must be among rate, kind, got x"):
        config.with_settings(x=1)
    with pytest.raises(ValueError, match="method blank: options must be among none, got rate"):
        Search(trainer.net, digits, method="blank", rate=1.0)


def test_options_are_flags(a_method: type[Method]) -> None:
    @click.command()
    @method_flags
    def command(**settings: Any) -> None:
        """Only parsed."""

    context = command.make_context("command", ["--rate", "2", "--unrolled"])
    assert context.params["rate"] == 2.0
    assert context.params["unrolled"] is True
    assert context.params["kind"] is None
    with pytest.raises(click.BadParameter, match="'c' is not one of 'a', 'b'"):
        command.make_context("command", ["--kind", "c"])
    assert "A rate. Of still. [default: 0.5]" in " ".join(command.get_help(context).split())


def test_an_option_whose_name_is_a_flag_already_is_left_out(a_method: type[Method]) -> None:
    @click.option("--rate", type=int, default=3)
    def command(**settings: Any) -> None:
        """Only parsed."""

    with pytest.warns(RuntimeWarning, match="option 'rate' of search method 'still' cannot be a"):
        wrapped = click.command()(method_flags(command))
    assert wrapped.make_context("command", []).params["rate"] == 3


def test_names_that_are_taken_are_refused() -> None:
    class Darts(Method):
        name = "darts"

    with pytest.raises(ValueError, match="the name must be free, got 'darts' of Darts"):
        register(Darts)
    with pytest.raises(ValueError, match="a method must be a subclass of Method, got 3"):
        register(3)  # type: ignore[arg-type]


class FromElsewhere(Method):
    """What an entry point of another package names."""

    name = "elsewhere"


def test_entry_points_of_other_packages_are_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    group = registry_module.GROUP
    points = [
        EntryPoint("elsewhere", f"{__name__}:FromElsewhere", group),
        EntryPoint("broken", f"{__name__}:Nothing", group),
    ]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points)
    known = Methods()
    with pytest.warns(RuntimeWarning, match=r"search method 'broken' .* cannot be used: .*Nothing"):
        assert known["elsewhere"].name == "elsewhere"
    assert known["elsewhere"].Options is NoOptions
    assert set(known) == {*NAMES, "elsewhere"}


def test_a_base_method_has_no_gradient(digits: Dataset) -> None:
    net = build_supernet("s2", channels=4, num_classes=10, layers=3)
    with pytest.raises(NotImplementedError):
        Method(net, SearchConfig(), NoOptions()).gradient(
            Trainer(net, digits, SearchConfig())._loop
        )
