# SPDX-License-Identifier: Apache-2.0
"""Images of any kind and size as 8-bit RGB, by Pillow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from darts_fast.data.images import DataError
from darts_fast.data.readers.checks import one_line

__all__ = ["as_rgb", "read_rgb", "stack"]

# Formats that decode in process: Pillow would hand an .eps file to an interpreter.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")


def read_rgb(path: Path) -> Image.Image:
    """The image in a file, turned as EXIF says, the first one of an animation.

    Raises DataError that names the file.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            image.load()
            return _rgb(ImageOps.exif_transpose(image), str(path))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{path}: the file must be an image ({', '.join(_FORMATS)}), got something else"
        ) from None
    # A corrupt file makes Pillow and its codecs raise nearly anything.
    except Exception as error:
        raise DataError(
            f"{path}: the file must be a complete image, got {one_line(error)}"
        ) from None


def as_rgb(image: Any, place: str) -> Image.Image:
    """A Pillow image, array or tensor as an RGB image.

    image: uint8, or float from 0 to 1; [H, W], [H, W, C] or [C, H, W] with C of 1 or 3. Where both
    readings fit, a tensor's channels are first and an array's last.
    place: begins the message of a DataError.
    """
    if isinstance(image, Image.Image):
        return _rgb(image, place)
    if isinstance(image, Tensor):
        plain = image.detach().cpu()
        pixels = (plain.double() if plain.is_floating_point() else plain).numpy()
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise DataError(
            f"{place}: the image must be a Pillow image, an array or a tensor, "
            f"got {type(image).__name__}"
        )
    pixels = _channels_last(pixels, (0, 2) if isinstance(image, Tensor) else (2, 0), place)
    return Image.fromarray(np.ascontiguousarray(_bytes(pixels, place))).convert("RGB")


def _channels_last(pixels: np.ndarray, axes: tuple[int, int], place: str) -> np.ndarray:
    """[H, W] or [H, W, 3]; the channels are on the first of `axes` that has 1 or 3."""
    if pixels.size and pixels.ndim == 2:
        return pixels
    if pixels.size and pixels.ndim == 3:
        for axis in axes:
            if pixels.shape[axis] == 1:
                return pixels.squeeze(axis)
            if pixels.shape[axis] == 3:
                return np.moveaxis(pixels, axis, 2)
    raise DataError(
        f"{place}: the image must be [H, W], [H, W, C] or [C, H, W] with C of 1 or 3, "
        f"not empty, got {list(pixels.shape)}"
    )


def _bytes(pixels: np.ndarray, place: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise DataError(f"{place}: pixels must be uint8 or float, got {pixels.dtype}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"{place}: float pixels must be from 0 to 1, got {low:g} to {high:g}; the transform "
            "must not normalise, darts_fast does"
        )
    rounded: np.ndarray = np.rint(pixels * 255).astype(np.uint8)
    return rounded


def _rgb(image: Image.Image, place: str) -> Image.Image:
    """Grey is repeated, a palette looked up, transparency dropped."""
    if image.mode not in _MODES:
        raise DataError(
            f"{place}: the image must have 8 bits per channel and a mode of {', '.join(_MODES)}, "
            f"got mode {image.mode}"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB Pillow warns
    return image.convert("RGB")


def stack(images: Iterable[tuple[str, Image.Image]], count: int, image_size: int | None) -> Tensor:
    """`count` pairs of place and RGB image as uint8 [n, 3, H, W].

    image_size: resize each image's short side to this, with Pillow's antialiased bilinear filter,
    and keep the centre square; None demands that all have the same size, DataError otherwise.
    Raises ValueError for an image_size below 1.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size: must be at least 1, got {image_size}")
    pixels = np.empty(0, np.uint8)
    first, shape = "", (0, 0)
    for i, (place, image) in enumerate(images):
        if image_size is not None:
            image = _centre_square(image, image_size)
        size = image.height, image.width
        if i == 0:
            first, shape = place, size
            pixels = np.empty((count, *size, 3), np.uint8)
        elif size != shape:
            raise DataError(
                f"{place}: all images must have one size, got {size[0]}x{size[1]} where {first} "
                f"has {shape[0]}x{shape[1]}; image_size (--image_size) makes them equal"
            )
        pixels[i] = np.asarray(image)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _centre_square(image: Image.Image, side: int) -> Image.Image:
    """Resizing and cutting in one step: at the edges the filter sees what is cut."""
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    return image.resize(
        (side, side), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short)
    )
