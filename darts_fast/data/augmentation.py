# SPDX-License-Identifier: Apache-2.0
"""Random crop, flip, cutout and normalisation of a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of the DARTS family, on a batch of uint8 images.

    In this order, each image with its own draws:

    1. crop: pad with `pad` black pixels on every side, cut a window of the original size at a
       uniform position;
    2. flip left-right with probability 1/2, if `flip`;
    3. normalise: (x / 255 - mean) / std;
    4. cutout: with probability `cutout_prob`, a square of side 2 * (cutout // 2) centred on a
       uniform pixel is set to 0 (the mean colour) where it lies inside the image (DeVries and
       Taylor 2017, arXiv 1708.04552; the clipping of the DARTS code).

    mean, std: per channel, scale 0 to 1. pad=0, flip=False and cutout=0 turn a part off.
    Raises ValueError for parameters out of range.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: int = 4
    flip: bool = True
    cutout: int = 0
    cutout_prob: float = 1.0

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(
                "Augmentation: mean and std must have 3 values and std must be positive, "
                f"got mean={self.mean}, std={self.std}"
            )
        if self.pad < 0:
            raise ValueError(f"Augmentation: pad must be at least 0, got {self.pad}")
        if self.cutout < 0 or self.cutout == 1:
            raise ValueError(f"Augmentation: cutout must be 0 or at least 2, got {self.cutout}")
        if not 0 <= self.cutout_prob <= 1:
            raise ValueError(
                f"Augmentation: cutout_prob must be from 0 to 1, got {self.cutout_prob}"
            )

    @property
    def random(self) -> bool:
        """Whether anything is drawn."""
        return self.pad > 0 or self.flip or self.cutout > 0

    @property
    def plain(self) -> Augmentation:
        """The same normalisation and nothing random."""
        return replace(self, pad=0, flip=False, cutout=0)

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        *,
        share: tuple[slice, int] | None = None,
    ) -> Tensor:
        """Augment a batch.

        images: uint8 [b, 3, H, W], any layout (channels_last is the fast one).
        generator: source of all draws; they do not depend on the images' device.
        share: which part of a batch the images are, and the size of that batch: they get what they
            would get in it, and the generator ends where it would.
        Returns float32 [b, 3, H, W], channels_last, on the images' device.
        Raises TypeError for another dtype, ValueError for another shape or where a generator is
        needed and missing.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"Augmentation: images must be uint8, got {images.dtype}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Augmentation: images must be [b, 3, H, W], got {list(images.shape)}")
        if self.random and generator is None:
            raise ValueError(
                "Augmentation: a generator is needed for random parts, got None with "
                f"pad={self.pad}, flip={self.flip}, cutout={self.cutout}"
            )
        own, count = share or (slice(None), len(images))
        pixels = images.permute(0, 2, 3, 1).contiguous()  # [b, H, W, 3]
        if count and generator is not None and (self.pad or self.flip):
            pixels = self._crop_and_flip(pixels, generator, own, count)
        x = self._normalise(pixels)
        if count and generator is not None and self.cutout:
            self._cut_out(x, generator, own, count)
        return x.permute(0, 3, 1, 2)

    def _crop_and_flip(
        self, pixels: Tensor, generator: torch.Generator, own: slice, count: int
    ) -> Tensor:
        """uint8 [b, H, W, 3] -> the same; draws the windows' rows and columns, then the flips, for
        all `count` images of the batch.
        """
        batch, height, width, _ = pixels.shape
        pad, device = self.pad, pixels.device
        if pad:
            top, left = _integers(2 * pad + 1, (2, count), generator, device)[:, own]
        else:
            top = left = torch.zeros(batch, dtype=torch.int64, device=device)
        flipped = _uniform(count, generator, device)[own] < 0.5 if self.flip else None
        if batch == 0:
            return pixels

        # Plane 0 holds the padded images and plane 1 their mirror images, in which the window that
        # starts at column `left` starts at column `2 * pad - left`. So every row of the result,
        # flipped or not, is one run of 3 * width bytes.
        planes = pixels.new_zeros(1 + self.flip, batch, height + 2 * pad, width + 2 * pad, 3)
        inner = planes[:, :, pad : pad + height, pad : pad + width]
        inner[0] = pixels
        image = torch.arange(batch, device=device)
        if flipped is not None:
            inner[1] = pixels.flip(2)
            left = torch.where(flipped, 2 * pad - left, left)
            image = torch.where(flipped, image + batch, image)
        row = (image * (height + 2 * pad) + top)[:, None] + torch.arange(height, device=device)
        start = row * (width + 2 * pad) + left[:, None]  # [b, H], in pixels
        runs = planes.as_strided((planes.numel() // 3 - width + 1, 3 * width), (3, 1))
        return runs.index_select(0, start.flatten()).view_as(pixels)

    def _normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [b, H, W, 3] -> float32; by whole rows, whose length keeps the inner loop long."""
        batch, height, width, _ = pixels.shape
        scale = [1 / (255 * s) for s in self.std]
        shift = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        affine = torch.tensor([scale * width, shift * width], device=pixels.device)
        x = pixels.view(batch * height, 3 * width).to(torch.float32)
        return x.mul_(affine[0]).add_(affine[1]).view(batch, height, width, 3)

    def _cut_out(self, x: Tensor, generator: torch.Generator, own: slice, count: int) -> None:
        """In place on float32 [b, H, W, 3]; draws the centres' rows, columns, then whether, for all
        `count` images of the batch.
        """
        batch, height, width, _ = x.shape
        half, device = self.cutout // 2, x.device
        row = _integers(height, (count,), generator, device)[own]
        column = _integers(width, (count,), generator, device)[own]
        if self.cutout_prob < 1:
            chosen = _uniform(count, generator, device)[own] < self.cutout_prob
            row = torch.where(chosen, row, height + half)  # a square below the image
        # Row c of `keep` is the factor of an image row cut around column c; the last row is all 1.
        offset = (
            torch.arange(width, device=device) - torch.arange(width + 1, device=device)[:, None]
        )
        cut = (offset >= -half) & (offset < half)
        cut[width] = False
        keep = (~cut).to(x.dtype).repeat_interleave(3, dim=1)
        offset = torch.arange(height, device=device) - row[:, None]
        choice = torch.where((offset >= -half) & (offset < half), column[:, None], width)
        x.view(batch * height, 3 * width).mul_(keep.index_select(0, choice.flatten()))


# Drawn on the generator's device, so that a seed gives the same numbers wherever the images are.
def _integers(
    high: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=generator.device).to(device)


def _uniform(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device).to(device)
