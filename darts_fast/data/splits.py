# SPDX-License-Identifier: Apache-2.0
"""Fixed divisions of labelled images: validation halves, held-out tests, fair orders."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from darts_fast.data.images import Images

__all__ = ["held_out_split", "interleaved", "split"]


def split(images: Images, portion: float, *, stratified: bool = False) -> tuple[Images, Images]:
    """Cut into floor(portion * n) images and the rest, both in index order.

    By default the first part is the first images, as DARTS cuts. With stratified=True it is the
    first images of each class: portion * n_c of them, rounded down, and up for the classes with the
    largest remainders (ties: the smaller label), so that the sizes of the parts stay the same.

    Raises ValueError where a part would be empty.
    """
    first = int(portion * len(images))
    if not 0 < first < len(images):
        raise ValueError(
            f"split: both parts must have an image, got portion {portion} of {len(images)} images"
        )
    if stratified:
        chosen = _first_of_each_class(images.labels.cpu(), portion, first)
        return images.subset(chosen.nonzero().flatten()), images.subset(
            (~chosen).nonzero().flatten()
        )
    both = images.images, images.labels
    head, tail = (t[:first] for t in both), (t[first:] for t in both)
    return Images(*head), Images(*tail)


def _first_of_each_class(labels: Tensor, portion: float, total: int) -> Tensor:
    """Of labels, int64 [n], a mask of `total` images."""
    values, counts = labels.unique(return_counts=True)
    # Exact shares: a float product may round up to an integer and the quotas exceed the total.
    shares = [Fraction(portion) * int(count) for count in counts]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda c: (quotas[c] - shares[c], c))
    for c in by_remainder[: total - sum(quotas)]:
        quotas[c] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for value, quota in zip(values, quotas, strict=True):
        chosen[(labels == value).nonzero().flatten()[:quota]] = True
    return chosen


def interleaved(images: Images) -> Images:
    """The same images in a fixed order in which the classes are interleaved evenly."""
    order, _ = held_out_split(images.labels, 0)
    return images.subset(order)


def held_out_split(labels: Tensor, test_share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Fixed random training and test indices; each class gives round(test_share * n) to the test.

    labels: int64 [n]. The same labels give the same split at every time and place: the stream of
    NumPy's RandomState is frozen (NEP 19). In both parts the classes are interleaved evenly, so
    that every prefix is a fair sample.
    """
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    shuffled = labels.cpu()[order]
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    position = torch.zeros(len(labels), dtype=torch.float64)  # within its class, from 0 to 1
    for label in shuffled.unique():
        members = (shuffled == label).nonzero().flatten()
        count = round(test_share * len(members))
        for part in (members[:count], members[count:]):
            position[part] = (torch.arange(len(part), dtype=torch.float64) + 0.5) / len(part)
        in_test[members[:count]] = True
    interleaved = position.argsort(stable=True)
    in_test, order = in_test[interleaved], order[interleaved]
    return order[~in_test], order[in_test]
