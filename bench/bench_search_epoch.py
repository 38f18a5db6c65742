# SPDX-License-Identifier: Apache-2.0
"""One epoch of `darts_fast.search.Search`, end to end: data, architecture and weight steps.

Same supernet as bench_supernet.py, batch 64, images of CIFAR-10's shape with its augmentation, a
few steps. Eager gets its batches in NCHW, eager-channels_last and fused as the search makes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from rivals import RIVALS, backend, layout
from torch import Tensor

from darts_fast.backend import use_backend
from darts_fast.data import Augmentation, Dataset, Images
from darts_fast.nn import Supernet, build_supernet
from darts_fast.search import Search

CHANNELS, SIZE, CLASSES, STEPS = 16, 32, 10, 2


@dataclass(frozen=True)
class InLayout(Augmentation):
    """The augmentation, its batches in the layout of a rival."""

    layout: torch.memory_format = torch.contiguous_format

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return super().__call__(images, generator).contiguous(memory_format=self.layout)


class Case:
    """A supernet, and images for so many weight steps and as many architecture steps an epoch."""

    def __init__(
        self,
        rival: str,
        batch: int,
        channels: int,
        layers: int,
        *,
        space: str = "s5",
        steps: int = STEPS,
    ) -> None:
        torch.manual_seed(0)
        count = 2 * steps * batch
        pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8)
        images = Images(pixels, torch.arange(count) % CLASSES)
        names = tuple(map(str, range(CLASSES)))
        augmentation = InLayout((0.49, 0.48, 0.45), (0.25, 0.24, 0.26), layout=layout(rival))
        self.data = Dataset("random", images, images.take(batch), names, augmentation)
        self.net: Supernet = build_supernet(
            space, channels=channels, num_classes=CLASSES, layers=layers
        )
        self.net.to(memory_format=layout(rival))
        self.batch = batch
        self._backend = backend(rival)

    def epoch(self) -> None:
        with use_backend(self._backend):
            search = Search(
                self.net,
                self.data,
                select="magnitude",
                epochs=1,
                batch_size=self.batch,
                valid_freq=0,
            )
            search.run()


@functools.cache
def assert_equal_results(rival: str) -> None:
    eager, other = Case("eager", 8, 4, 3), Case(rival, 8, 4, 3)
    eager.epoch()
    other.epoch()
    pairs = zip(other.net.arch_parameters(), eager.net.arch_parameters(), strict=True)
    for actual, expected in pairs:
        # Adam has moved every alpha by up to 3e-4 a step.
        torch.testing.assert_close(actual, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
def test_search_epoch(measure: Callable[..., None], rival: str, batch: int) -> None:
    assert_equal_results(rival)
    case = Case(rival, batch, CHANNELS, 8)
    fused = rival == "fused"
    measure(
        case.epoch,
        group=f"search epoch of {STEPS} steps, batch {batch}",
        rival=rival,
        rounds=5 if fused else 2,
        warmup=int(fused),  # an eager epoch takes far longer than what its first call does once
        headline=True,
    )
