# SPDX-License-Identifier: Apache-2.0
"""compat.pc_darts against plain modules that say what the paper says."""

from __future__ import annotations

import eager_supernets
import pytest
import torch
from torch import Tensor, nn

from darts_fast.compat import darts
from darts_fast.compat.pc_darts import MixedOp, Network, model_search_imagenet


class PlainMixedOp(nn.Module):
    """The first quarter of the channels is mixed; channels then go in turns from four groups."""

    def __init__(self, C: int, stride: int, names: object) -> None:
        super().__init__()
        self.stride = stride
        self._ops = eager_supernets.MixedOp(C // 4, stride, eager_supernets.DARTS)._ops

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        quarter = x.shape[1] // 4
        mixed = sum(w * op(x[:, :quarter]) for w, op in zip(weights, self._ops, strict=True))
        rest = x[:, quarter:]
        rest = rest if self.stride == 1 else nn.functional.max_pool2d(rest, 2, 2)
        out = torch.cat([mixed, rest], 1)
        order = [group * quarter + i for i in range(quarter) for group in range(4)]
        return out[:, order]


class PlainCell(eager_supernets.Cell):
    mixed_op = PlainMixedOp

    def forward(self, s0: Tensor, s1: Tensor, both: tuple[Tensor, Tensor]) -> Tensor:
        weights, betas = both
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edge = 0
        for _ in range(self._steps):
            share = betas[edge : edge + len(states)].softmax(0)
            terms = [
                share[i] * self._ops[edge + i](x, weights[edge + i]) for i, x in enumerate(states)
            ]
            edge += len(states)
            states.append(sum(terms))
        return torch.cat(states[-self._multiplier :], 1)


def pair() -> tuple[Network, eager_supernets.Network, list[Tensor]]:
    plain = eager_supernets.Network(4, 5, 3, "multiply", cell=PlainCell, steps=2).double()
    net = Network(4, 5, 3, nn.CrossEntropyLoss(), 2, 2).double()
    net.load_state_dict(plain.state_dict())
    net.set_arch_parameters([torch.randn_like(p) for p in net.arch_parameters()])
    return net, plain, [p.detach().clone().requires_grad_() for p in net.arch_parameters()]


def run(plain: eager_supernets.Network, architecture: list[Tensor], x: Tensor) -> Tensor:
    normal, reduce, betas_normal, betas_reduce = architecture
    s0 = s1 = plain.stem(x)
    for cell in plain.cells:
        alphas, betas = (reduce, betas_reduce) if cell.reduction else (normal, betas_normal)
        s0, s1 = s1, cell(s0, s1, (alphas.softmax(-1), betas))
    return plain.classifier(s1.mean((2, 3)))


def test_state_dict_and_attributes() -> None:
    net = Network(16, 10, 8, nn.CrossEntropyLoss())
    eight = darts.Network(16, 10, 8, nn.CrossEntropyLoss())
    assert [*net.state_dict()] == [*eight.state_dict()]
    assert len(net.state_dict()) == 4186
    assert sum(p.numel() for p in net.parameters()) == 299_578
    assert not any("alphas" in name or "betas" in name for name, _ in net.named_parameters())
    assert [tuple(p.shape) for p in net.arch_parameters()] == [(14, 8), (14, 8), (14,), (14,)]
    assert net.arch_parameters()[2] is net.betas_normal
    edge = net.cells[0]._ops[0]
    assert isinstance(edge, MixedOp)
    assert (edge.k, type(edge.mp)) == (4, nn.MaxPool2d)
    with pytest.raises(ValueError, match="k must divide"):
        MixedOp(6, 1)


def test_the_genotype_weighs_operations_with_their_edges() -> None:
    net, _, architecture = pair()
    normal, _, betas, _ = (p.detach() for p in architecture)
    with torch.no_grad():
        net.betas_normal[2:] = torch.tensor([-9.0, 3.0, 2.0])
    assert {state for _, state in net.genotype().normal[2:]} == {1, 2}
    best = normal[3, 1:].argmax()
    name = eager_supernets.DARTS[1 + int(best)]
    assert (name, 1) in net.genotype().normal[2:]
    other = net.new()
    assert torch.equal(other.betas_normal, net.betas_normal)
    assert betas.shape == (5,)


def test_imagenet_network() -> None:
    kind = model_search_imagenet.Network
    assert len(kind(16, 10, 8, nn.CrossEntropyLoss()).state_dict()) == 4199
    net = kind(4, 5, 3, nn.CrossEntropyLoss(), 1, 1)
    assert net.cells[0]._ops[0].k == model_search_imagenet.MixedOp(4, 1).k == 2
    # Both stems have stem_multiplier * C channels, as the first cell's inputs.
    shapes = [tuple(w.shape[:2]) for w in net.state_dict().values() if w.ndim == 4][:3]
    assert shapes == [(6, 3), (12, 6), (12, 12)]
    assert net.cells[0].preprocess0.conv_1.weight.shape[1] == 12
    logits = net(torch.randn(2, 3, 64, 32))
    logits.sum().backward()
    assert logits.shape == (2, 5)
    assert all(p.grad is not None for p in net.stem0.parameters())
    assert net.new().state_dict().keys() == net.state_dict().keys()
    with pytest.raises(ValueError, match="multiples of 32"):
        net(torch.randn(2, 3, 48, 48))
