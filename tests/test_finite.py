# SPDX-License-Identifier: Apache-2.0
"""Values that are not finite, planted in known places, are told by cell, edge and operation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.data import load_data
from darts_fast.derive import build_derived
from darts_fast.derive.train import NetworkTraining, TrainConfig
from darts_fast.finite import clip_gradients, first_non_finite, place
from darts_fast.nn import Supernet, build_supernet
from darts_fast.reporter import NonFiniteLossError, Reporter
from darts_fast.search import Search, SearchConfig, Trainer

ARCH = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_3x3~2|"
IMAGES = torch.randn(2, 3, 8, 8)


def net_of(space: str) -> Supernet:
    torch.manual_seed(0)
    return build_supernet(
        space, channels=4, num_classes=10, layers=1 if space == "nasbench201" else 3
    )


def derived(genotype: str) -> nn.Module:
    layers = 1 if genotype == ARCH else 3
    return build_derived(genotype, channels=4, num_classes=10, layers=layers, auxiliary=False)


def breaks(net: nn.Module, name: str, value: float = math.nan) -> None:
    """Let the module of that name give out a value that no weight explains."""
    module = net.get_submodule(name)
    forward = module.forward

    def broken(*arguments: Any) -> Tensor:
        output: Tensor = forward(*arguments).clone()
        output[0, 0] = value
        return output

    module.forward = broken  # type: ignore[method-assign]


PLACES: list[tuple[Callable[[], nn.Module], str, str]] = [
    (
        lambda: net_of("s5"),
        "cells.1._ops.7._ops.3.op.1",
        "cell 1 (reduce), edge 7, sep_conv_3x3",
    ),
    (lambda: net_of("s2"), "cells.0._ops.2._ops.0", "cell 0 (normal), edge 2, skip_connect"),
    (lambda: net_of("darts"), "cells.0._ops.13._ops.1.1", "cell 0 (normal), edge 13, max_pool_3x3"),
    (lambda: net_of("nasbench201"), "cells.2.edges.3<-1.3.op.1", "cell 2, edge 4, nor_conv_3x3"),
    (lambda: net_of("nasbench201"), "cells.1.conv_a", "cell 1"),
    (lambda: net_of("s5"), "cells.2.preprocess1", "cell 2 (reduce)"),
    (lambda: net_of("s5"), "stem.0", "stem.0"),
    (lambda: derived("DARTS_V2"), "cells.1._ops.3", "cell 1, edge 3, max_pool_3x3"),
    (lambda: derived(ARCH), "cells.2.layers.5.op.1", "cell 2, edge 5, nor_conv_3x3"),
]


@pytest.mark.parametrize(("build", "name", "words"), PLACES, ids=[name for _, name, _ in PLACES])
def test_the_first_output_is_found(build: Callable[[], nn.Module], name: str, words: str) -> None:
    net = build()
    breaks(net, name)
    with torch.no_grad():
        output = net(IMAGES)
    logits = output[0] if isinstance(output, tuple) else output
    assert not logits.isfinite().all()
    found = first_non_finite(net, lambda: net(IMAGES))
    told = f"{words}: {name}" if words != name else name
    assert found == f"the output of {told}"


def test_two_broken_operations_are_told_by_the_earlier_one() -> None:
    net = net_of("s5")
    breaks(net, "cells.1._ops.9._ops.4")
    breaks(net, "cells.1._ops.3._ops.5", math.inf)
    assert "cell 1 (reduce), edge 3, dil_conv_3x3" in first_non_finite(net, lambda: net(IMAGES))


def test_a_sum_that_overflows_is_told_by_what_reads_it() -> None:
    net = net_of("nasbench201")
    tables = {"cell": torch.full((6, 5), 3e38)}
    found = first_non_finite(net, lambda: net(IMAGES, weights=tables))
    assert found == "the input of cell 0, edge 2, none: cells.0.edges.2<-1.0"


def test_images_weights_and_alphas_are_looked_at_first() -> None:
    net = net_of("s5")
    assert first_non_finite(net, lambda: net(IMAGES * math.inf)) == "the images"
    with torch.no_grad():
        net.alphas_reduce[4, 3] = math.nan
    found = first_non_finite(net, lambda: net(IMAGES))
    assert found == "reduce cells, edge 4, sep_conv_3x3: alphas_reduce[4, 3], before the step"
    net = net_of("s5")
    with torch.no_grad():
        net.get_parameter("cells.0._ops.6._ops.3.op.1.weight")[0] = math.inf
        net.classifier.bias[1] = math.nan
    found = first_non_finite(net, lambda: net(IMAGES))
    assert found == (
        "cell 0 (normal), edge 6, sep_conv_3x3: cells.0._ops.6._ops.3.op.1.weight and 1 other "
        "tensors, before the step"
    )


def test_a_loss_of_finite_outputs_is_told() -> None:
    net = net_of("nasbench201")
    found = first_non_finite(net, lambda: net(IMAGES))
    assert found == "the loss itself; every output was finite when repeated"


def test_looking_changes_nothing() -> None:
    net = net_of("s4").train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    random = torch.get_rng_state()
    first_non_finite(net, lambda: net(IMAGES))
    assert torch.equal(torch.get_rng_state(), random)
    assert before
    assert all(torch.equal(before[name], buffer) for name, buffer in net.named_buffers())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_modules_in_no_cell_are_their_names() -> None:
    assert place(nn.Sequential(nn.Linear(1, 1)), "0.weight") == "0.weight"
    assert place(nn.Sequential(), "") == "the network"


# Gradients


def test_finite_gradients_are_clipped_as_torch_clips_them() -> None:
    nets = [net_of("nasbench201") for _ in range(2)]
    for net in nets:
        functional.cross_entropy(net(IMAGES), torch.tensor([1, 2])).backward()
    norm, where = clip_gradients(nets[0], 0.5)
    assert where is None
    assert norm == float(nn.utils.clip_grad_norm_(nets[1].parameters(), 0.5)) > 0.5
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_the_gradient_nearest_to_the_output_is_told() -> None:
    net = net_of("s5")
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    for name in ("stem.0.weight", "cells.1._ops.3._ops.4.op.5.weight"):
        net.get_parameter(name).grad.fill_(math.nan)  # type: ignore[union-attr]
    norm, where = clip_gradients(net, 1.0)
    assert math.isnan(norm)
    assert where == (
        "the gradient of cell 1 (reduce), edge 3, sep_conv_5x5: "
        "cells.1._ops.3._ops.4.op.5.weight and 1 other tensors"
    )
    assert net.classifier.bias.grad is not None
    assert torch.equal(net.classifier.bias.grad, torch.ones(10))  # nothing is clipped


def test_a_norm_that_overflows_clips_to_nothing() -> None:
    net = nn.Linear(4, 4)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    assert clip_gradients(net, 1.0) == (math.inf, None)
    assert not any(parameter.grad.any() for parameter in net.parameters())  # type: ignore[union-attr]


# In training


@pytest.mark.parametrize("tuning", [False, True])
@pytest.mark.parametrize("method", ["darts", "blank"])
def test_a_search_tells_where(method: str, tuning: bool) -> None:
    data = load_data("digits", limit=32)
    net = net_of("s5")
    trainer = Trainer(net, data, SearchConfig(batch_size=8, method=method))
    if tuning:
        trainer.start_tuning()
    alphas = [alpha.detach().clone() for alpha in net.arch_parameters()]

    def broken_after_a_step() -> None:
        breaks(net, "cells.2._ops.5._ops.2")

    with pytest.raises(NonFiniteLossError) as raised:
        trainer.run_epoch(Reporter(), broken_after_a_step)
    kind = "architecture" if method == "darts" else "training"
    assert re.fullmatch(
        rf"search: the {kind} loss must be finite, got nan in {'tuning ' * tuning}epoch 0, step 1; "
        r"first in the output of cell 2 \(reduce\), edge 5, skip_connect: .*cells\.2\._ops\.5"
        r"\._ops\.2; a smaller learning rate may help",
        str(raised.value),
    )
    assert all(alpha.isfinite().all() for alpha in net.arch_parameters())
    moved = [
        not torch.equal(alpha, old)
        for alpha, old in zip(net.arch_parameters(), alphas, strict=True)
    ]
    assert any(moved) == (method == "darts")


def test_a_gradient_that_is_not_finite_moves_no_weight() -> None:
    net = net_of("nasbench201")
    trainer = Trainer(
        net, load_data("digits", limit=32), SearchConfig(batch_size=8, method="blank")
    )
    weight = net.get_parameter("cells.0.edges.2<-1.2.op.1.weight")
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    message = (
        r"the gradient of the training loss must be finite, got (nan|inf) in epoch 0, step 0; "
        r"first in the gradient of cell 0, edge 2, nor_conv_1x1: cells\.0\.edges\.2<-1\.2\.op\.1"
    )
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.run_epoch(Reporter(), lambda: None)
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_a_derived_training_tells_where() -> None:
    net = derived("DARTS_V2")
    data = load_data("digits", limit=32)

    def broken_after_a_step(step: object) -> None:
        breaks(net, "cells.2._ops.6")

    training = NetworkTraining(
        net, data, TrainConfig(epochs=1, batch_size=8), progress=broken_after_a_step
    )
    message = (
        r"train_network: the loss must be finite, got nan at epoch 0, step 2 of 4; first in the "
        r"output of cell 2, edge 6, skip_connect: cells\.2\._ops\.6; a smaller learning rate than"
    )
    with pytest.raises(NonFiniteLossError, match=message):
        training.run()
    net = derived(ARCH)
    net.get_parameter("cells.0.layers.5.op.1.weight").register_hook(lambda g: g * math.nan)
    training = NetworkTraining(net, data, TrainConfig(epochs=1, batch_size=8))
    message = (
        r"the gradient of the loss must be finite, got nan at epoch 0, step 1 of 4; first in "
        r"the gradient of cell 0, edge 5, nor_conv_3x3"
    )
    with pytest.raises(NonFiniteLossError, match=message):
        training.run()


def test_weights_that_are_not_finite_are_not_saved() -> None:
    data = load_data("digits", limit=32)
    saved: list[object] = []

    class SaveAlways(Reporter):
        saving = True

    search = Search(
        net_of("nasbench201"),
        data,
        select="magnitude",
        method="blank",
        batch_size=8,
        reporter=SaveAlways(),
        checkpoint=saved.append,
    )
    trainer = search.trainer
    step = trainer.optimizer.step

    def overflow() -> None:
        step()
        if trainer.step == 1:
            with torch.no_grad():
                search.net.get_parameter("cells.0.edges.2<-1.2.op.1.weight")[0] = math.inf

    trainer.optimizer.step = overflow  # type: ignore[assignment]
    with pytest.raises(
        NonFiniteLossError,
        match=r"search: the weights must be finite to be saved, in epoch 0, step 2; first in cell "
        r"0, edge 2, nor_conv_1x1: cells",
    ):
        search.run()
    assert len(saved) == 1

    net = derived(ARCH)
    training = NetworkTraining(net, data, TrainConfig(epochs=1, batch_size=8))
    training.state_dict()
    with torch.no_grad():
        net.get_parameter("classifier.bias")[0] = math.nan
    message = (
        "train_network: the weights must be finite to be saved, at epoch 0, step 1 of 4; first"
    )
    with pytest.raises(NonFiniteLossError, match=message):
        training.state_dict()


def test_steps_that_are_finite_look_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*_: object) -> str:
        raise AssertionError

    monkeypatch.setattr("darts_fast.search.joint.first_non_finite", looked)
    monkeypatch.setattr("darts_fast.derive.train.first_non_finite", looked)
    monkeypatch.setattr("darts_fast.finite._listed", looked)
    data = load_data("digits", limit=32)
    trainer = Trainer(net_of("nasbench201"), data, SearchConfig(batch_size=8))
    assert 0 <= trainer.run_epoch(Reporter(), lambda: None) <= 100
    NetworkTraining(derived(ARCH), data, TrainConfig(epochs=1, batch_size=8)).run()
