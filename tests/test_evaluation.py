# SPDX-License-Identifier: Apache-2.0
"""evaluate: value, batch size, modes, outputs with an auxiliary head, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from darts_fast.data import Augmentation, Images
from darts_fast.evaluation import evaluate, logits_of

PLAIN = Augmentation((0.0,) * 3, (1.0,) * 3, pad=0, flip=False)


class Reader(nn.Module):
    """Reads its prediction from the pixels: red is the logit of class 0, green of class 1."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.output = output
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.frozen = nn.Dropout(0.5)
        self.frozen.eval()
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        assert not torch.is_grad_enabled()
        self.modes.append(self.training or self.norm.training)
        logits = x[:, :2, 0, 0] + 0 * self.norm(x)[:, :2, 0, 0]
        if self.output == "logits":
            return logits
        return (logits, None) if self.output == "none" else (logits, -logits)


def images(n: int = 10) -> Images:
    """Class 0 has the logits (1, 0), class 1 (0, 1); every fifth image looks like the other."""
    labels = torch.arange(n) % 2
    looks = torch.where(torch.arange(n) % 5 == 0, 1 - labels, labels)
    pixels = torch.zeros(n, 3, 4, 4, dtype=torch.uint8)
    pixels[torch.arange(n), looks] = 255
    return Images(pixels, labels)


@pytest.mark.parametrize("output", ["logits", "none", "both"])
@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_value_and_modes(output: str, batch_size: int) -> None:
    net = Reader(output)
    net.train()
    net.frozen.eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    accuracy, loss = evaluate(net, images(), PLAIN, batch_size)
    assert accuracy == 80.0
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert loss == pytest.approx(0.8 * right + 0.2 * wrong, abs=1e-6)
    assert net.modes == [False] * -(-10 // batch_size)
    assert (net.training, net.norm.training, net.frozen.training) == (True, True, False)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error() -> None:
    net = Reader("logits").train()
    with pytest.raises(IndexError):
        evaluate(net, images(), lambda x: x[0], 5)
    assert net.training
    assert net.norm.training


def test_logits_of() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert logits_of(a) is a
    assert logits_of((a, b)) is a
    assert logits_of((a, None)) is a


def test_arguments_are_checked() -> None:
    net = Reader("logits")
    with pytest.raises(ValueError, match=r"evaluate: .* got 10 images, batch_size=0"):
        evaluate(net, images(), PLAIN, 0)
    with pytest.raises(ValueError, match=r"evaluate: .* got 0 images, batch_size=4"):
        evaluate(net, images(0), PLAIN, 4)
    with pytest.raises(ValueError, match="a generator is needed"):
        evaluate(net, images(), Augmentation((0.0,) * 3, (1.0,) * 3), 4)
