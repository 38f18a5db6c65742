# SPDX-License-Identifier: Apache-2.0
"""How many images each class has, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from darts_fast.data.images import Images

__all__ = ["IMBALANCE", "class_counts", "describe_classes", "describe_halves", "some"]

IMBALANCE = 1.5  # most over fewest images of a class from which on it is worth a warning


def class_counts(images: Images, classes: int) -> list[int]:
    """Images of each class."""
    counts: list[int] = torch.bincount(images.labels.cpu(), minlength=classes).tolist()
    return counts


def describe_classes(images: Images, class_names: Sequence[str]) -> tuple[str, bool]:
    """One line on the classes of the training images, and whether it is a warning.

    It is one where a class has no image, or the largest has more than `IMBALANCE` times the images
    of the smallest; the line names them.
    """
    counts = class_counts(images, len(class_names))
    filled = [(count, name) for count, name in zip(counts, class_names, strict=True) if count]
    (fewest, rare), (most, common) = (pick(filled, key=lambda pair: pair[0]) for pick in (min, max))
    ratio = most / fewest
    line = f"classes: {len(class_names)}, training images of each {fewest} to {most}"
    if ratio > IMBALANCE:
        line += f": imbalanced {ratio:.1f} to 1, fewest of {some([rare])}, most of {some([common])}"
    empty = [name for count, name in zip(counts, class_names, strict=True) if not count]
    if empty:
        line += f"; no image of {some(empty)}"
    return line, ratio > IMBALANCE or bool(empty)


def describe_halves(train: Images, valid: Images, class_names: Sequence[str]) -> str | None:
    """What a cut for the search has left without images of a class that the other part has."""
    parts = {"training": train, "validation": valid}
    counts = [class_counts(part, len(class_names)) for part in parts.values()]
    missing = []
    for part, ours, theirs in zip(parts, counts, reversed(counts), strict=True):
        absent = [name for name, n, m in zip(class_names, ours, theirs, strict=True) if m and not n]
        if absent:
            missing.append(f"the {part} half has no image of {some(absent)}")
    if not missing:
        return None
    return f"{'; '.join(missing)}; --stratified cuts each class alike"


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    listed = sorted(names) if isinstance(names, (set, frozenset)) else list(names)
    text = ", ".join(f"'{name}'" for name in listed[:limit])
    return text if len(listed) <= limit else f"{text} and {len(listed) - limit} more"
