# SPDX-License-Identifier: Apache-2.0
"""iDARTS in a search: its gradient, its schedule, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from darts_fast.data import Dataset, load_data
from darts_fast.nn import build_supernet
from darts_fast.reporter import Reporter
from darts_fast.search import SearchConfig, Trainer
from darts_fast.search.loop import Batch
from darts_fast.search.methods import idarts
from darts_fast.search.methods.idarts import IDarts, IDartsOptions
from darts_fast.search.methods.implicit_step import implicit_step
from darts_fast.seeding import seed_everything

DAMPING = 20.0  # the Hessian of a network that has just begun is not positive


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=48)


def trainer_of(data: Dataset, space: str = "nasbench201", **options: Any) -> Trainer:
    seed_everything(0)
    net = build_supernet(space, channels=4, num_classes=10, layers=1 if space[0] == "n" else 3)
    config = SearchConfig(method="idarts", method_options=options, batch_size=8, epochs=2)
    return Trainer(net.double(), data, config)


class Lines(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def plain_gradient(trainer: Trainer, train: Batch, valid: Batch, terms: int) -> list[Tensor]:
    """The hypergradient with K + 1 terms, every derivative by autograd, one graph for each."""
    net, eta = trainer.net, trainer.learning_rate
    decay = trainer.config.weight_decay + DAMPING
    weights, alphas = list(net.parameters()), net.arch_parameters()

    def loss_of(batch: Batch) -> Tensor:
        return functional.cross_entropy(net(batch.images), batch.labels)

    def derivative(vector: list[Tensor], leaves: list[Any]) -> list[Tensor]:
        first = torch.autograd.grad(loss_of(train), weights, create_graph=True, allow_unused=True)
        along = sum((g * v).sum() for g, v in zip(first, vector, strict=True) if g is not None)
        assert isinstance(along, Tensor)
        return list(torch.autograd.grad(along, leaves, allow_unused=True, materialize_grads=True))

    both = torch.autograd.grad(
        loss_of(valid), [*weights, *alphas], allow_unused=True, materialize_grads=True
    )
    term, direct = list(both[: len(weights)]), both[len(weights) :]
    total = term
    for _ in range(terms):
        image = derivative(term, weights)
        term = [v - eta * (h + decay * v) for v, h in zip(term, image, strict=True)]
        total = [t + v for t, v in zip(total, term, strict=True)]
    mixed = derivative(total, alphas)
    return [a - eta * b for a, b in zip(direct, mixed, strict=True)]


@pytest.mark.parametrize(("products", "mixed"), [("exact", "exact"), ("difference", "difference")])
def test_the_gradient_is_the_series_written_out(
    digits: Dataset, products: str, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kinks are near: a batch of eight small images has channels of hardly any variance.
    settings = {"terms": 1, "damping": DAMPING, "diverging": "raise", "radius": 1e-6}
    trainer = trainer_of(digits, inner_steps=1, products=products, mixed=mixed, **settings)
    drawn: list[Batch] = []
    draw = type(trainer._loop).draw_train

    def watched(loop: Any) -> Batch:
        drawn.append(draw(loop))
        return drawn[-1]

    monkeypatch.setattr(type(trainer._loop), "draw_train", watched)
    checked = 0
    gradient = IDarts.gradient

    def compared(method: Any, loop: Any) -> Any:
        nonlocal checked
        before = [p.detach().clone() for p in trainer.net.parameters()]
        buffers = [b.clone() for b in trainer.net.buffers()]
        found = gradient(method, loop)
        assert all(map(torch.equal, before, trainer.net.parameters()))
        assert all(map(torch.equal, buffers, trainer.net.buffers()))
        if found is not None and checked == 0:
            checked += 1
            expected = plain_gradient(trainer, drawn[-1], loop.valid, 1)
            tight = {"rtol": 1e-7, "atol": 1e-9}
            loose = {"rtol": 1e-5, "atol": 1e-7}
            torch.testing.assert_close(
                found[1], expected, **(tight if products == "exact" else loose)
            )
        return found

    monkeypatch.setattr(IDarts, "gradient", compared)
    trainer.run_epoch(Reporter(), lambda: None)
    assert checked == 1


def test_an_architecture_step_comes_before_every_t_th_weight_step(digits: Dataset) -> None:
    trainer = trainer_of(digits, inner_steps=2, terms=0)
    alpha = trainer.net.arch_parameters()[0]
    moved = []
    last = alpha.detach().clone()

    def note() -> None:
        nonlocal last
        moved.append(not torch.equal(last, alpha))
        last = alpha.detach().clone()

    for _ in range(2):
        trainer.run_epoch(Reporter(), note)
    assert moved == [False, True, False, True, False, True]


def test_reference_noise_moves_the_weights_by_it(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises: list[list[Tensor]] = []
    moves: list[list[Tensor]] = []
    update = IDarts.update

    def noted(*arguments: Any) -> Any:
        found = implicit_step(*arguments)
        noises.append(found.noise)
        return found

    def watched(method: Any, loop: Any, gradients: Any) -> None:
        before = [weight.detach().clone() for weight in loop.weights]
        update(method, loop, gradients)
        pairs = zip(loop.weights, before, strict=True)
        moves.append([weight.detach() - old for weight, old in pairs])

    monkeypatch.setattr(idarts, "implicit_step", noted)
    monkeypatch.setattr(IDarts, "update", watched)
    for noise in (False, True):
        options = {"inner_steps": 1, "products": "difference", "reference_noise": noise}
        trainer_of(digits, **options).run_epoch(Reporter(), lambda: None)
    assert len(moves) == len(noises) == 6
    assert all((move == 0).all() for moved in moves[:3] for move in moved)
    for moved, expected in zip(moves[3:], noises[3:], strict=True):
        assert any(part.abs().max() > 0 for part in expected)
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-12)


def test_series_that_grow_are_told(digits: Dataset) -> None:
    trainer = trainer_of(digits, inner_steps=1, products="difference", damping=1000.0)
    reporter = Lines()
    trainer.run_epoch(reporter, lambda: None)
    assert "idarts: 3 of 3 series grew" in reporter.lines


def test_noise_operations_draw_alike_at_both_ends(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a difference of gradients would be one of noise, divided by the step."""
    sizes = []
    for mixed in ("exact", "difference"):
        trainer = trainer_of(digits, "s4", inner_steps=1, terms=0, mixed=mixed, radius=1e-8)
        found = []
        gradient = IDarts.gradient

        def watched(method: Any, loop: Any, found: Any = found, call: Any = gradient) -> Any:
            found.append(call(method, loop))
            return found[-1]

        with monkeypatch.context() as patch:
            patch.setattr(IDarts, "gradient", watched)
            trainer.run_epoch(Reporter(), lambda: None)
        sizes.append(torch.cat([g.flatten() for g in found[1][1]]))
    assert (sizes[0] - sizes[1]).norm() < 1e-5 * sizes[0].norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": 0}, "inner_steps must be at least 1, got 0"),
        ({"terms": -1}, "terms must be at least 0, got -1"),
        ({"reference_noise": True, "mixed": "exact"}, "needs solver neumann and mixed difference"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IDartsOptions(**options)
