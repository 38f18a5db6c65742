# SPDX-License-Identifier: Apache-2.0
"""Small folders of image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 6, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_classes(root: Path, counts: dict[str, int], **size: int) -> Path:
    """Image i of class number c is picture(100 * c + i)."""
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write(root / name / f"{i:03d}.png", picture(100 * c + i, **size))
    return root
