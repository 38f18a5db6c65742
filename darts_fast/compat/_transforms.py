# SPDX-License-Identifier: Apache-2.0
"""The originals' augmentation of single images, without torchvision.

The draws are torchvision's and the originals' in kind and order (crop and flip from torch, cutout
from NumPy's global generator), so that a seeded script sees the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class Compose:
    """The transforms one after the other; `transforms` may be appended to."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


def to_tensor(image: Any) -> Tensor:
    """An image from 0 to 255, PIL or uint8 array [H, W, 3] -> float32 [3, H, W] from 0 to 1.

    Raises TypeError for an array that is not uint8.
    """
    if isinstance(image, Tensor):
        return image
    array = np.array(image)
    if array.dtype != np.uint8:
        raise TypeError(f"to_tensor: images must be uint8, got {array.dtype}")
    if array.ndim == 2:
        array = array[:, :, None]
    return torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div_(255)


class RandomCrop:
    """A window of size x size of the image with `padding` black pixels on every side."""

    def __init__(self, size: int, padding: int) -> None:
        self.size = size
        self.padding = padding

    def __call__(self, image: Tensor) -> Tensor:
        padded = functional.pad(image, (self.padding,) * 4)
        rows, columns = (length - self.size for length in padded.shape[1:])
        top = int(torch.randint(0, rows + 1, (1,)))
        left = int(torch.randint(0, columns + 1, (1,)))
        return padded[:, top : top + self.size, left : left + self.size]


def random_horizontal_flip(image: Tensor) -> Tensor:
    """Mirrored with probability 1/2."""
    return image.flip(-1) if float(torch.rand(1)) < 0.5 else image


class Normalize:
    """(image - mean) / std per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


class Cutout:
    """Set a square of side 2 * (length // 2) around a uniform pixel to 0, where it lies inside.

    Changes the image [C, H, W] it is given (DeVries and Taylor 2017, arXiv 1708.04552).
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, img: Tensor) -> Tensor:
        half = self.length // 2
        # The originals' generator, so that their seed means the same.
        y, x = (int(np.random.randint(size)) for size in img.shape[1:])  # noqa: NPY002
        img[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0.0
        return img


def cifar_transforms(
    mean: Sequence[float], std: Sequence[float], cutout: Callable[[Tensor], Tensor] | None
) -> tuple[Compose, Compose]:
    """Of training and of evaluation for images of 32x32."""
    train = Compose([to_tensor, RandomCrop(32, 4), random_horizontal_flip, Normalize(mean, std)])
    if cutout is not None:
        train.transforms.append(cutout)
    return train, Compose([to_tensor, Normalize(mean, std)])
