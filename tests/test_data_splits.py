# SPDX-License-Identifier: Apache-2.0
"""Cuts of the training images, and what is said of their classes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_fast.data import Images, describe_classes, describe_halves, split
from darts_fast.data.splits import interleaved


def numbered(labels: list[int]) -> Images:
    """Image i is filled with i."""
    number = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return Images(number.expand(-1, 3, 2, 2).clone(), torch.tensor(labels))


def numbers(images: Images) -> list[int]:
    found: list[int] = images.images[:, 0, 0, 0].tolist()
    return found


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=200),
    portion=st.floats(0.01, 0.99),
)
def test_a_stratified_cut_is_a_partition_with_even_shares(
    labels: list[int], portion: float
) -> None:
    images = numbered(labels)
    size = int(portion * len(labels))
    if size == 0:
        with pytest.raises(ValueError, match="both parts must have an image, got portion"):
            split(images, portion, stratified=True)
        return
    first, rest = split(images, portion, stratified=True)
    plain, _ = split(images, portion)
    assert len(first) == len(plain) == size
    assert sorted(numbers(first) + numbers(rest)) == list(range(len(labels)))
    for part in (first, rest):
        assert numbers(part) == sorted(numbers(part))
        assert part.labels.tolist() == [labels[i] for i in numbers(part)]
    for label in set(labels):
        members = [i for i, value in enumerate(labels) if value == label]
        chosen = [i for i in numbers(first) if labels[i] == label]
        assert abs(len(chosen) - portion * len(members)) < 1
        assert chosen == members[: len(chosen)]
    again, _ = split(images, portion, stratified=True)
    assert numbers(again) == numbers(first)


def test_shares_that_only_rounding_makes_whole() -> None:
    # In floating point 0.29 * 100 is below 29 and 0.07 * 100 above 7.
    for portion, counts in ((0.29, [100, 100]), (0.07, [100, 100]), (0.7, [10] * 6), (0.1, [30])):
        labels = [c for c, count in enumerate(counts) for _ in range(count)]
        first, _ = split(numbered(labels), portion, stratified=True)
        found = torch.bincount(first.labels, minlength=len(counts)).tolist()
        assert sum(found) == int(portion * len(labels))
        for share, count in zip(found, counts, strict=True):
            assert abs(share - portion * count) < 1


def test_the_default_is_index_order_and_ties_go_to_smaller_labels() -> None:
    images = numbered([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert numbers(split(images, 0.5)[0]) == [0, 1, 2, 3]
    first, rest = split(images, 0.5, stratified=True)
    assert (numbers(first), numbers(rest)) == ([0, 1, 3, 6], [2, 4, 5, 7, 8])


def test_interleaved_is_a_fixed_fair_order() -> None:
    images = numbered([0] * 20 + [1] * 10)
    mixed = interleaved(images)
    assert sorted(numbers(mixed)) == list(range(30))
    assert torch.bincount(mixed.labels[:15]).tolist() == [10, 5]
    assert numbers(mixed) == numbers(interleaved(images))


NAMES = ("cat", "dog", "owl", "rat")


@pytest.mark.parametrize(
    ("labels", "line", "uneven"),
    [
        ([0, 1, 2, 3] * 5, "classes: 4, training images of each 5 to 5", False),
        (
            [0, 1, 2, 3] * 4 + [1, 2, 1, 2],
            "classes: 4, training images of each 4 to 6",
            False,
        ),
        (
            [0, 1, 2, 3] * 4 + [1, 2, 1, 2, 2],
            "classes: 4, training images of each 4 to 7: imbalanced 1.8 to 1, fewest of 'cat', "
            "most of 'owl'",
            True,
        ),
        (
            [0, 1, 0, 1],
            "classes: 4, training images of each 2 to 2; no image of 'owl', 'rat'",
            True,
        ),
    ],
)
def test_classes_are_described(labels: list[int], line: str, uneven: bool) -> None:
    assert describe_classes(numbered(labels), NAMES) == (line, uneven)


def test_long_lists_of_names_are_cut() -> None:
    line, uneven = describe_classes(numbered([0, 1]), [str(i) for i in range(20)])
    assert uneven
    assert line.endswith("; no image of '2', '3', '4', '5', '6' and 13 more")


def test_classes_that_a_cut_leaves_out_are_named() -> None:
    images = numbered([0, 0, 1, 1, 2, 2])
    parts = split(images, 0.5)
    assert describe_halves(*parts, NAMES) == (
        "the training half has no image of 'owl'; the validation half has no image of 'cat'; "
        "--stratified cuts each class alike"
    )
    assert describe_halves(*split(images, 0.5, stratified=True), NAMES) is None
