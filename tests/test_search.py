# SPDX-License-Identifier: Apache-2.0
"""Training of a supernet: steps, schedules, reproducibility, and going on after a stop."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from stopping import StopAfter
from torch import Tensor
from torch.nn import functional

from darts_fast.data import Dataset, load_data
from darts_fast.nn import Supernet, build_supernet, frozen
from darts_fast.search import (
    Interrupted,
    NonFiniteLossError,
    Reporter,
    Search,
    SearchConfig,
    Trainer,
    genotype_text,
)
from darts_fast.search.loop import Batch, Loop
from darts_fast.seeding import seed_everything
from darts_fast.selection import (
    DiscretizationConfig,
    PerturbationConfig,
    RaceConfig,
    StrengthConfig,
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=48)


def net_of(space: str = "nasbench201", seed: int = 0, channels: int = 4) -> Supernet:
    seed_everything(seed)
    layers = 1 if space == "nasbench201" else 3
    return build_supernet(space, channels=channels, num_classes=10, layers=layers)


def trainer_of(data: Dataset, net: Supernet | None = None, **settings: Any) -> Trainer:
    settings = {"batch_size": 8, "epochs": 2, **settings}
    return Trainer(net or net_of(), data, SearchConfig(**settings))


def values(net: Supernet) -> dict[str, Tensor]:
    state = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    return {**state, **{name: buffer.clone() for name, buffer in net.named_buffers()}}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


def nothing() -> None:
    return None


# Configuration


def test_defaults_are_the_originals() -> None:
    config = SearchConfig()
    assert (config.learning_rate, config.learning_rate_min) == (0.025, 0.001)
    assert (config.momentum, config.weight_decay, config.grad_clip) == (0.9, 3e-4, 5)
    assert (config.arch_learning_rate, config.arch_weight_decay) == (3e-4, 1e-3)
    assert (config.epochs, config.batch_size, config.train_portion) == (50, 64, 0.5)
    assert (config.method, config.sampling) == ("darts", "replacement")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "x"}, "method must be one of darts, .*blank, .*got 'x'"),
        ({"method_options": {"x": 1}}, "method darts: options must be among unrolled, got x"),
        ({"sampling": "x"}, "sampling must be one of replacement, epoch, got 'x'"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"valid_freq": -1}, "valid_freq must be at least 0, got -1"),
        ({"report_freq": 0}, "report_freq must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite and >= 0, got nan"),
        ({"learning_rate_min": -1.0}, "learning_rate_min must be finite and >= 0, got -1"),
        ({"momentum": -1.0}, "momentum must be finite and >= 0, got -1"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and >= 0, got -1"),
        ({"arch_learning_rate": -1.0}, "arch_learning_rate must be finite and >= 0, got -1"),
        ({"arch_weight_decay": -1.0}, "arch_weight_decay must be finite and >= 0, got -1"),
        ({"grad_clip": 0.0}, "grad_clip must be positive, got 0"),
        ({"train_portion": 1.0}, "train_portion must be between 0 and 1, got 1"),
    ],
)
def test_configuration_is_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        SearchConfig(**settings)


def test_configuration_from_a_mapping_leaves_other_keys_alone() -> None:
    assert SearchConfig.from_mapping({"epochs": 3, "data": "digits"}) == SearchConfig(epochs=3)


# Architecture steps


def architecture_step(net: Supernet, x: Tensor, y: Tensor, **settings: Any) -> float:
    """One step of the method on a batch by a trainer; the validation loss before it."""
    trainer = trainer_of(load_data("digits", limit=48), net, **settings)
    trainer._loop.begin_step(Batch(x, y), iter([(x, y)]))
    losses: list[float] = []
    gradient = trainer.method.gradient

    def keep(loop: Loop) -> Any:
        found = gradient(loop)
        losses.append(found[0])
        return found

    trainer.method.gradient = keep  # type: ignore[method-assign]
    trainer._architecture_step()
    return losses[0]


def test_architecture_step_is_adam_on_the_full_gradient(digits: Dataset) -> None:
    net = net_of("s2")
    x = digits.plain(digits.train.images[:16])
    y = digits.train.labels[:16]
    twin = net_of("s2")
    loss = functional.cross_entropy(twin(x), y)
    loss.backward()
    expected = [alpha.grad for alpha in twin.arch_parameters()]
    steps = torch.optim.Adam(twin.arch_parameters(), lr=0.1, betas=(0.5, 0.999), weight_decay=1e-3)
    steps.step()

    before = values(net)
    assert architecture_step(net, x, y, arch_learning_rate=0.1) == pytest.approx(loss.item())
    for alpha, gradient, moved in zip(
        net.arch_parameters(), expected, twin.arch_parameters(), strict=True
    ):
        torch.testing.assert_close(alpha.grad, gradient)
        torch.testing.assert_close(alpha, moved)
    after = values(net)
    still = [name for name in before if not name.startswith("alphas")]
    assert any("running_mean" in name for name in still)
    assert all(torch.equal(before[name], after[name]) for name in still)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_architecture_step_keeps_the_flags_of_the_weights() -> None:
    net = net_of()
    mine = next(net.parameters())
    mine.requires_grad_(False)
    with frozen(list(net.parameters())):
        assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not mine.requires_grad
    assert sum(not parameter.requires_grad for parameter in net.parameters()) == 1


@pytest.mark.parametrize("space", ["s2", "nasbench201"])
def test_decided_rows_get_no_gradient(space: str, digits: Dataset) -> None:
    net = net_of(space)
    cell_type = net.space.cell_types[0]
    net.projection.project_op(cell_type, 3, 1)
    if space == "s2":
        net.projection.project_edges(cell_type, 5, [9, 12])
    x, y = digits.plain(digits.train.images[:16]), digits.train.labels[:16]
    architecture_step(net, x, y)
    gradient = net.arch_parameters()[0].grad
    assert gradient is not None
    decided = [3] if space == "nasbench201" else [3, 10, 11, 13]
    assert [edge for edge in range(len(gradient)) if not gradient[edge].any()] == decided


def test_architecture_step_when_everything_is_decided(digits: Dataset) -> None:
    net = net_of()
    for edge in range(6):
        net.projection.project_op("cell", edge, 1)
    x, y = digits.plain(digits.train.images[:16]), digits.train.labels[:16]
    architecture_step(net, x, y)
    (alpha,) = net.arch_parameters()
    assert alpha.grad is not None
    assert not alpha.grad.any()


# The trainer


def test_weight_steps_leave_the_architecture_alone(digits: Dataset) -> None:
    net = net_of()
    alphas = [alpha.detach().clone() for alpha in net.arch_parameters()]
    before = values(net)
    trainer = trainer_of(digits, net, method="blank")
    trainer.run_epoch(Reporter(), nothing)
    assert all(
        torch.equal(alpha, old) for alpha, old in zip(net.arch_parameters(), alphas, strict=True)
    )
    assert all(alpha.requires_grad and alpha.grad is None for alpha in net.arch_parameters())
    assert not torch.equal(before["classifier.weight"], net.classifier.weight)


def test_darts_moves_the_architecture_before_each_weight_step(digits: Dataset) -> None:
    net = net_of()
    before = [alpha.detach().clone() for alpha in net.arch_parameters()]
    trainer = trainer_of(digits, net, arch_learning_rate=0.01)
    trainer.run_epoch(Reporter(), nothing)
    steps = trainer.arch_optimizer.state[net.arch_parameters()[0]]["step"]
    assert steps == trainer.epoch_steps == 3
    assert not torch.equal(before[0], net.arch_parameters()[0])


def test_gradients_are_clipped_to_the_global_norm(digits: Dataset) -> None:
    net = net_of()
    trainer = trainer_of(digits, net, method="blank", grad_clip=1e-3, weight_decay=0.0)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    lr = trainer.learning_rate

    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    with pytest.raises(StopError):
        trainer.run_epoch(Reporter(), stop)
    moved = [(old - new).norm() for old, new in zip(before, net.parameters(), strict=True)]
    assert torch.stack(moved).norm().item() == pytest.approx(lr * 1e-3, rel=1e-2)


def test_the_learning_rate_is_torchs_cosine(digits: Dataset) -> None:
    trainer = trainer_of(digits, epochs=7)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.025)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7, eta_min=0.001)
    for epoch in range(7):
        trainer.epoch = epoch
        assert trainer.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()


def test_tuning_restarts_sgd_at_a_constant_tenth(digits: Dataset) -> None:
    trainer = trainer_of(digits)
    trainer.run_epoch(Reporter(), nothing)
    assert trainer.optimizer.state
    adam = trainer.arch_optimizer
    trainer.start_tuning()
    assert not trainer.optimizer.state
    assert trainer.arch_optimizer is adam
    assert adam.state
    rates = []
    for _ in range(3):
        trainer.run_epoch(Reporter(), nothing)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025] * 3)


def labels_of_weight_steps(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """A list that fills with the labels of each weight step."""
    batches: list[list[int]] = []
    step = trainer._weight_step

    def record(images: Tensor, labels: Tensor) -> None:
        batches.append(labels.tolist())
        step(images, labels)

    monkeypatch.setattr(trainer, "_weight_step", record)
    return batches


@pytest.mark.parametrize(("sampling", "tuning"), [("epoch", False), ("replacement", True)])
def test_an_epoch_without_replacement_sees_each_image_once(
    digits: Dataset, sampling: str, tuning: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(digits, batch_size=7, sampling=sampling, method="blank")
    if tuning:
        trainer.start_tuning()
    batches = labels_of_weight_steps(trainer, monkeypatch)
    trainer.run_epoch(Reporter(), nothing)
    assert Counter(label for labels in batches for label in labels) == Counter(
        trainer.train.labels.tolist()
    )


def test_sampling_with_replacement_takes_full_batches(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(digits, batch_size=7, method="blank")
    batches = labels_of_weight_steps(trainer, monkeypatch)
    trainer.run_epoch(Reporter(), nothing)
    assert [len(labels) for labels in batches] == [7, 7, 7, 7]


def test_the_halves_are_cut_in_index_order(digits: Dataset) -> None:
    trainer = trainer_of(digits, train_portion=0.25)
    assert torch.equal(trainer.train.labels, digits.train.labels[:12])
    assert torch.equal(trainer.valid.labels, digits.train.labels[12:])


def test_the_halves_are_cut_class_by_class_if_told(digits: Dataset) -> None:
    trainer = trainer_of(digits, train_portion=0.5, stratified=True)
    counts = [torch.bincount(half.labels, minlength=10) for half in (trainer.train, trainer.valid)]
    assert len(trainer.train) == len(digits.train) // 2
    assert (counts[0] - counts[1]).abs().max() <= 1


@pytest.mark.parametrize("sampling", ["replacement", "epoch"])
def test_a_loss_that_is_not_finite_ends_the_search(digits: Dataset, sampling: str) -> None:
    trainer = trainer_of(
        digits, learning_rate=1e38, weight_decay=1.0, method="blank", sampling=sampling
    )
    with pytest.raises(
        NonFiniteLossError, match=r"training loss must be finite, got \w+ in epoch 0, step [12];"
    ):
        trainer.run_epoch(Reporter(), nothing)
    trainer = trainer_of(digits)
    with torch.no_grad():
        trainer.net.classifier.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="architecture loss must be finite, got nan"):
        trainer.run_epoch(Reporter(), nothing)
    trainer.start_tuning()
    with pytest.raises(NonFiniteLossError, match="in tuning epoch 0, step 0"):
        trainer.run_epoch(Reporter(), nothing)


def test_log_lines_have_the_originals_form(digits: Dataset) -> None:
    lines: list[str] = []

    class Lines(Reporter):
        def log(self, line: str) -> None:
            lines.append(line)

    Search(
        net_of(),
        digits,
        select="magnitude",
        epochs=2,
        batch_size=8,
        report_freq=2,
        reporter=Lines(),
    ).run()
    assert lines[0] == "epoch 0 lr 2.500000e-02"
    assert [line.split()[:2] for line in lines if line.startswith("train ")] == 2 * [
        ["train", "000"],
        ["train", "002"],
    ]
    assert len(lines[1].split()) == 5
    assert any(line.startswith("genotype = |") for line in lines)
    assert sum(line.startswith("valid_acc ") for line in lines) == 2
    assert sum(line.startswith("train_acc ") for line in lines) == 2


# Whole searches


def search_of(data: Dataset, space: str = "nasbench201", **settings: Any) -> Search:
    settings = {"epochs": 2, "batch_size": 8, "seed": 3, **settings}
    if settings.get("select") != "magnitude":
        settings.setdefault("selection", PerturbationConfig(proj_intv=1, seed=3))
    return Search(net_of(space, seed=3), data, **settings)


def test_the_same_seed_gives_the_same_bits(digits: Dataset) -> None:
    runs = []
    for _ in range(2):
        search = search_of(digits, proj_images=16)
        runs.append((search.run(), values(search.net)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])
    other = search_of(digits, seed=4, select="magnitude").run()
    assert other.history != runs[0][0].history


def test_evaluation_changes_no_result(digits: Dataset) -> None:
    finals = []
    for valid_freq in (0, 1):
        search = search_of(digits, "s4", valid_freq=valid_freq, select="magnitude")
        result = search.run()
        assert (result.history[0]["valid_acc"] is None) == (valid_freq == 0)
        finals.append(values(search.net))
    assert_same(*finals)


def test_result_tells_both_selections(digits: Dataset) -> None:
    search = search_of(digits)
    result = search.run()
    assert genotype_text(result.genotype) == search.net.genotype()
    assert result.magnitude == result.history[-1]["genotype"]
    assert len(result.decisions) == 6
    assert [entry["epoch"] for entry in result.history] == [0, 1]
    plain = search_of(digits, select="magnitude").run()
    assert plain.genotype == plain.magnitude == result.magnitude
    assert plain.decisions == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampling": "epoch", "batch_size": 10},
        {"selection": PerturbationConfig(mode="compat", proj_intv=1, seed=3)},
        {
            "selection": PerturbationConfig(
                proj_intv=1, seed=3, race=RaceConfig(min_batches=2, ordered=True)
            )
        },
        {
            "select": "strength",
            "selection": StrengthConfig(schedule="progressive", proj_intv=4, seed=3),
        },
        pytest.param(
            {
                "select": "discretization",
                "selection": DiscretizationConfig(proj_intv=1, seed=3),
                "batch_size": 16,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["paired", "epoch sampling", "compat", "race", "strength", "discretization"],
)
def test_a_stopped_search_goes_on_to_the_same_bits(
    digits: Dataset, settings: dict[str, Any], tmp_path: Any
) -> None:
    whole = search_of(digits, **settings)
    result = whole.run()
    stops = 0
    saved: list[dict[str, Any]] = []

    def keep(state: dict[str, Any]) -> None:
        torch.save(state, tmp_path / "state.pt")
        saved[:] = [torch.load(tmp_path / "state.pt", weights_only=True)]

    # Each process gets a little further by another number of steps: every kind of place is hit.
    while True:
        search = search_of(digits, **settings)
        search.checkpoint = keep
        search.reporter = StopAfter(24 + stops)
        if saved:
            search.load_state_dict(saved[0])
        try:
            resumed = search.run()
            break
        except Interrupted:
            stops += 1
            assert stops < 40
    assert stops >= 3
    assert resumed == result
    assert_same(values(search.net), values(whole.net))


def test_a_search_stopped_after_any_step_goes_on_to_the_same_bits(digits: Dataset) -> None:
    """Two epochs of three steps: the stops hit first, middle and last steps of an epoch."""
    settings: dict[str, Any] = {"select": "magnitude", "sampling": "epoch"}
    whole = search_of(digits, **settings)
    result = whole.run()
    for steps in range(1, 7):
        saved: list[dict[str, Any]] = []
        first = search_of(digits, **settings)
        first.checkpoint = saved.append
        first.reporter = StopAfter(steps)
        with pytest.raises(Interrupted):
            first.run()
        second = search_of(digits, **settings)
        second.load_state_dict(saved[-1])
        assert second.run() == result
        assert_same(values(second.net), values(whole.net))


def test_search_arguments_are_checked(digits: Dataset) -> None:
    with pytest.raises(ValueError, match="magnitude takes no selection, got PerturbationConfig"):
        search_of(digits, select="magnitude", selection=PerturbationConfig())
    with pytest.raises(
        ValueError, match=r"select must be one of perturbation, magnitude, .*one_shot, got x"
    ):
        search_of(digits, select="x")
    with pytest.raises(ValueError, match=r"proj_images must be 1 to 24 .*, got 25"):
        search_of(digits, proj_images=25)
    net = build_supernet("s2", channels=4, num_classes=10, layers=3)
    odd = load_data("digits", limit=48)
    images = odd.train.images[:, :, :6, :6]
    data = Dataset(
        "odd",
        type(odd.train)(images, odd.train.labels),
        odd.test,
        odd.class_names,
        odd.augmentation,
    )
    with pytest.raises(ValueError, match="even at each of the 2 reductions"):
        Search(net, data)


def test_a_double_network_is_searched_in_double(digits: Dataset) -> None:
    net = net_of().double()
    Search(net, digits, epochs=1, batch_size=8, selection=PerturbationConfig(proj_intv=0)).run()
    assert {parameter.dtype for _, parameter in net.named_parameters()} == {torch.float64}


@pytest.mark.slow
def test_digits_are_learned() -> None:
    data = load_data("digits")
    search = Search(net_of(channels=8), data, epochs=10, select="magnitude")
    assert search.run().history[-1]["valid_acc"] > 90
