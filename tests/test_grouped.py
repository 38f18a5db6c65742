# SPDX-License-Identifier: Apache-2.0
"""Several architectures in one pass against one forward each."""

from __future__ import annotations

import pytest
import torch
from selection_cases import small_batches, small_net
from torch import Tensor
from torch.nn import functional

from darts_fast.nn import Supernet
from darts_fast.search.methods.grouped import GroupedForward

GROUPS = 3


def tables_of(net: Supernet) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Architecture samples ``[G, edges, ops]`` and their edge weights."""
    torch.manual_seed(3)
    samples = [
        torch.randn(GROUPS, *alpha.shape, dtype=alpha.dtype, requires_grad=True)
        for alpha in net.arch_parameters()
    ]
    weights = {
        name: sample.softmax(-1) for name, sample in zip(net.space.cell_types, samples, strict=True)
    }
    return samples, weights


def gradients(logits: list[Tensor], labels: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    loss = torch.stack([functional.cross_entropy(rows, labels) for rows in logits]).sum()
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("space", ["nasbench201", "s5", "s2"])
def test_it_equals_one_forward_each(space: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net(space).double().train(mode == "train")
    ((images, labels),) = small_batches(6)
    images = images.double()
    samples, tables = tables_of(net)
    leaves = [*samples, *net.parameters()]
    expected = [
        net(images, weights={name: table[g] for name, table in tables.items()})
        for g in range(GROUPS)
    ]
    slopes = gradients(expected, labels, leaves)
    samples, tables = tables_of(net)
    leaves[: len(samples)] = samples
    with monkeypatch.context() as patch:  # one pass, and none of the network's own
        patch.setattr(Supernet, "forward", None)
        found = GroupedForward(net)(images, tables)
    for rows, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(rows, wanted, rtol=1e-9, atol=1e-10)
    for slope, wanted in zip(gradients(found, labels, leaves), slopes, strict=True):
        torch.testing.assert_close(slope, wanted, rtol=1e-7, atol=1e-9)


def test_noise_takes_one_forward_each() -> None:
    net = small_net("s4")
    ((images, labels),) = small_batches(6)
    samples, tables = tables_of(net)
    torch.manual_seed(5)
    found = GroupedForward(net)(images, tables)
    torch.manual_seed(5)
    for g, rows in enumerate(found):
        weights = {name: table[g] for name, table in tables.items()}
        assert torch.equal(rows, net(images, weights=weights))
    assert all(slope.abs().sum() > 0 for slope in gradients(found, labels, samples))


def test_tables_that_do_not_fit() -> None:
    net = small_net("s5")
    ((images, _),) = small_batches(6)
    _, tables = tables_of(net)
    forward = GroupedForward(net)
    with pytest.raises(ValueError, match=r"reduce of shape \[groups, 14, 7\] .* got None"):
        forward(images, {"normal": tables["normal"]})
    with pytest.raises(ValueError, match=r"normal of shape .* got \(3, 14, 6\)"):
        forward(images, {**tables, "normal": tables["normal"][..., :6]})
    with pytest.raises(ValueError, match="one group or more"):
        forward(images, {name: table[:0] for name, table in tables.items()})
