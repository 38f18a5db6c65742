# SPDX-License-Identifier: Apache-2.0
"""Batched augmentation against a slow oracle that handles one image at a time."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from darts_fast.data import Augmentation

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def oracle(augmentation: Augmentation, images: Tensor, generator: torch.Generator) -> np.ndarray:
    """float64 [b, 3, H, W]: the documented draws, then one image and one step after the other."""
    a, (batch, _, height, width) = augmentation, images.shape
    top = left = [0] * batch
    flips, cutouts = [False] * batch, [a.cutout > 0] * batch
    rows = columns = [0] * batch
    if a.pad:
        top, left = torch.randint(2 * a.pad + 1, (2, batch), generator=generator).tolist()
    if a.flip:
        flips = (torch.rand(batch, generator=generator) < 0.5).tolist()
    if a.cutout:
        rows = torch.randint(height, (batch,), generator=generator).tolist()
        columns = torch.randint(width, (batch,), generator=generator).tolist()
        if a.cutout_prob < 1:
            cutouts = (torch.rand(batch, generator=generator) < a.cutout_prob).tolist()
    result = np.empty(images.shape)
    for i in range(batch):
        padded = np.zeros((3, height + 2 * a.pad, width + 2 * a.pad))
        padded[:, a.pad : a.pad + height, a.pad : a.pad + width] = images[i].numpy()
        image = padded[:, top[i] : top[i] + height, left[i] : left[i] + width]
        if flips[i]:
            image = image[:, :, ::-1]
        for c in range(3):
            result[i, c] = (image[c] / 255 - a.mean[c]) / a.std[c]
        if cutouts[i]:
            half = a.cutout // 2
            y = np.clip([rows[i] - half, rows[i] + half], 0, height)
            x = np.clip([columns[i] - half, columns[i] + half], 0, width)
            result[i, :, y[0] : y[1], x[0] : x[1]] = 0
    return result


def random_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "parts",
    [
        {"pad": 0, "flip": False},
        {"pad": 4, "flip": False},
        {"pad": 0, "flip": True},
        {"pad": 4, "flip": True},
        {"pad": 1, "flip": True, "cutout": 4},
        {"pad": 4, "flip": True, "cutout": 16},
        {"pad": 4, "flip": True, "cutout": 16, "cutout_prob": 0.5},
        {"pad": 0, "flip": False, "cutout": 5},
        {"pad": 2, "flip": True, "cutout": 100},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (5, 3, 8, 12), (1, 3, 7, 5), (3, 3, 1, 1)])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_equals_the_oracle(parts: dict, shape: tuple[int, ...], layout: str) -> None:
    augmentation = Augmentation(MEAN, STD, **parts)
    images = random_images(*shape)
    if layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    x = augmentation(images, torch.Generator().manual_seed(3))
    expected = oracle(augmentation, images, torch.Generator().manual_seed(3))
    # Values reach 2.2 and three roundings of float32 are 4e-7 of them; one grey level is 0.015.
    np.testing.assert_allclose(x.numpy(), expected, rtol=0, atol=2e-6)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_draws_are_uniform() -> None:
    # One white column in the middle row tells the offset, its colour order the flip.
    images = torch.zeros(20_000, 3, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 255
    images[:, 0, 2, 1] = 255  # red on the left
    augmentation = Augmentation((0.0,) * 3, (1.0,) * 3, pad=1, flip=True)
    x = augmentation(images, torch.Generator().manual_seed(0))
    position = x[:, 1].flatten(1).argmax(1)
    row, column = position // 5, position % 5
    left = x[torch.arange(len(x)), 0, row, column - 1] > 0.5
    # 0.02 is more than 5 standard deviations of a share of 1/3 of 20,000.
    for offset in (1, 2, 3):
        assert abs((row == offset).double().mean() - 1 / 3) < 0.02
        assert abs((column == offset).double().mean() - 1 / 3) < 0.02
        assert abs(left[row == offset].double().mean() - 0.5) < 0.05
    assert abs(left.double().mean() - 0.5) < 0.02


def test_cutout_probability() -> None:
    images = torch.full((5_000, 3, 4, 4), 255, dtype=torch.uint8)
    augmentation = Augmentation(
        (0.5,) * 3, (1.0,) * 3, pad=0, flip=False, cutout=2, cutout_prob=0.3
    )
    x = augmentation(images, torch.Generator().manual_seed(0))
    share = (x == 0).flatten(1).any(1).double().mean().item()
    assert abs(share - 0.3) < 0.04


@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    augmentation = Augmentation(MEAN, STD, cutout=16, cutout_prob=0.5)
    images = random_images(256, 3, 32, 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = augmentation(images, torch.Generator().manual_seed(1))
        torch.set_num_threads(threads)
        many = augmentation(images, torch.Generator().manual_seed(1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, many)


def test_seed_decides() -> None:
    augmentation, images = Augmentation(MEAN, STD), random_images(16, 3, 8, 8)
    runs = [augmentation(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_plain_draws_nothing_and_an_empty_batch_stays_empty() -> None:
    augmentation = Augmentation(MEAN, STD, cutout=4)
    assert augmentation.random
    assert not augmentation.plain.random
    images = random_images(4, 3, 8, 8)
    expected = oracle(augmentation.plain, images, torch.Generator())
    np.testing.assert_allclose(augmentation.plain(images).numpy(), expected, rtol=0, atol=2e-6)
    empty = augmentation(random_images(0, 3, 8, 8), torch.Generator())
    assert empty.shape == (0, 3, 8, 8)
    assert empty.dtype == torch.float32


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pad": -1}, r"Augmentation: pad must be at least 0, got -1"),
        ({"cutout": -2}, r"Augmentation: cutout must be 0 or at least 2, got -2"),
        ({"cutout": 1}, r"Augmentation: cutout must be 0 or at least 2, got 1"),
        ({"cutout_prob": 1.5}, r"Augmentation: cutout_prob must be from 0 to 1, got 1.5"),
        ({"std": (0.1, 0.0, 0.1)}, r"std must be positive, got mean=.*std=\(0.1, 0.0, 0.1\)"),
        ({"mean": (0.1, 0.2)}, r"mean and std must have 3 values"),
    ],
)
def test_parameters_are_checked(parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**{"mean": MEAN, "std": STD, **parts})


def test_input_is_checked() -> None:
    augmentation, generator = Augmentation(MEAN, STD), torch.Generator()
    with pytest.raises(TypeError, match=r"images must be uint8, got torch.float32"):
        augmentation(torch.zeros(1, 3, 4, 4), generator)
    with pytest.raises(ValueError, match=r"must be \[b, 3, H, W\], got \[1, 4, 4, 3\]"):
        augmentation(random_images(1, 4, 4, 3), generator)
    with pytest.raises(ValueError, match="a generator is needed for random parts, got None"):
        augmentation(random_images(1, 3, 4, 4))


def test_no_python_loop_over_images() -> None:
    # 16 times the images in far less than 16 times the time: a loop over images would show.
    augmentation = Augmentation(MEAN, STD, cutout=4)
    generator = torch.Generator().manual_seed(0)

    def best(images: Tensor) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            augmentation(images, generator)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(random_images(256, 3, 4, 4)) < 4 * best(random_images(16, 3, 4, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives() -> None:
    augmentation = Augmentation(MEAN, STD, cutout=16, cutout_prob=0.5)
    images = random_images(64, 3, 32, 32)
    here = augmentation(images, torch.Generator().manual_seed(1))
    there = augmentation(images.cuda(), torch.Generator().manual_seed(1))
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=2e-6)


@pytest.mark.parametrize("cutout_prob", [0.5, 1.0])
@pytest.mark.parametrize("flip", [False, True])
def test_a_share_of_a_batch_gets_what_it_would_get_in_it(flip: bool, cutout_prob: float) -> None:
    augmentation = Augmentation(
        (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), pad=2, flip=flip, cutout=4, cutout_prob=cutout_prob
    )
    images = torch.randint(256, (7, 3, 8, 8), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(3)
    whole = augmentation(images, generator)
    for own in (slice(0, 4), slice(4, 7), slice(7, 7)):
        again = torch.Generator().manual_seed(3)
        part = augmentation(images[own], again, share=(own, 7))
        assert torch.equal(part, whole[own])
        assert torch.equal(again.get_state(), generator.get_state())
