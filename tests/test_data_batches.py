# SPDX-License-Identifier: Apache-2.0
"""Batches: what an epoch holds, sampling, exact continuation, and the containers they draw from."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from darts_fast.data import Augmentation, Batches, Images, fixed_batches, split
from darts_fast.data.images import channel_statistics

PLAIN = Augmentation((0.0,) * 3, (1.0,) * 3, pad=0, flip=False)
RANDOM = Augmentation((0.5,) * 3, (0.2,) * 3, pad=1, cutout=2, cutout_prob=0.5)


def numbered(n: int) -> Images:
    """Image i is of the colour i and has the label i."""
    labels = torch.arange(n)
    return Images(labels.to(torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4), labels)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_an_epoch_is_a_pass_in_random_order(drop_last: bool, sizes: list[int]) -> None:
    batches = Batches(numbered(10), PLAIN, 4, seeded(), drop_last=drop_last)
    epochs = [list(batches) for _ in range(3)]
    orders = []
    for epoch in epochs:
        assert [len(y) for _, y in epoch] == sizes
        assert len(batches) == len(sizes)
        for x, y in epoch:
            assert torch.equal((x[:, 0, 0, 0] * 255).round(), y.float())  # they belong together
        orders.append(torch.cat([y for _, y in epoch]).tolist())
        assert len(set(orders[-1])) == sum(sizes)
    assert orders[0] != orders[1] != orders[2] != list(range(10))


def test_draw_takes_the_first_batch_of_a_fresh_permutation() -> None:
    batches = Batches(numbered(10), PLAIN, 4, seeded())
    twin = seeded()
    drawn = [batches.draw()[1] for _ in range(200)]
    for y in drawn:
        assert torch.equal(y, torch.randperm(10, generator=twin)[:4])
    # No image twice in a batch, and over the batches all of them with the same frequency.
    assert all(len(set(y.tolist())) == 4 for y in drawn)
    counts = torch.bincount(torch.cat(drawn), minlength=10)
    assert counts.min() > 50  # 80 expected, standard deviation 7


def test_an_epoch_with_replacement_is_a_series_of_draws() -> None:
    batches = Batches(numbered(10), RANDOM, 4, seeded(), replacement=True)
    twin = Batches(numbered(10), RANDOM, 4, seeded())
    epoch = list(batches)
    assert len(epoch) == len(batches) == 3
    for x, y in epoch:
        expected_x, expected_y = twin.draw()
        assert len(y) == 4
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)
    assert len(set(torch.cat([y for _, y in epoch]).tolist())) < 12


def saved(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_continuation_is_exact(replacement: bool, after: int) -> None:
    def make(seed: int) -> Batches:
        return Batches(numbered(10), RANDOM, 4, seeded(seed), replacement=replacement)

    batches = make(0)
    list(batches)
    rest = []
    state = saved(batches.state_dict()) if after == 0 else None
    for step, batch in enumerate(batches, start=1):
        if step > after:
            rest.append(batch)
        if step == after:
            state = saved(batches.state_dict())
    following = [*batches, batches.draw()]
    assert state is not None

    other = make(1)
    next(iter(other))
    other.load_state_dict(state)
    continued = list(other)
    assert len(continued) == len(rest) == 3 - after
    for ours, theirs in zip(continued, rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for ours, theirs in zip([*other, other.draw()], following, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_state_between_epochs_starts_a_new_epoch() -> None:
    batches = Batches(numbered(10), RANDOM, 4, seeded())
    list(batches)
    state = batches.state_dict()
    expected = list(batches)
    batches.load_state_dict(state)
    again = list(batches)
    assert len(again) == 3
    assert all(torch.equal(a[0], b[0]) for a, b in zip(again, expected, strict=True))


def test_only_the_first_iteration_after_loading_continues() -> None:
    batches = Batches(numbered(10), PLAIN, 4, seeded())
    next(iter(batches))
    batches.load_state_dict(batches.state_dict())
    next(iter(batches))
    assert len(list(batches)) == 3


def test_the_state_is_a_snapshot() -> None:
    batches = Batches(numbered(10), PLAIN, 4, seeded())
    iterator = iter(batches)
    next(iterator)
    state = batches.state_dict()
    expected = [y.tolist() for _, y in iterator]
    list(batches)
    batches.load_state_dict(state)
    assert [y.tolist() for _, y in batches] == expected
    batches.load_state_dict(state)
    assert [y.tolist() for _, y in batches] == expected


@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    images = Images(
        torch.randint(256, (300, 3, 32, 32), dtype=torch.uint8, generator=seeded()),
        torch.arange(300),
    )
    runs = []
    before = torch.get_num_threads()
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            runs.append(list(Batches(images, RANDOM, 128, seeded(5))))
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*runs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


def test_a_new_epoch_ends_the_one_before() -> None:
    batches = Batches(numbered(10), PLAIN, 4, seeded())
    first = iter(batches)
    next(first)
    second = iter(batches)
    assert len(next(second)[1]) == 4
    with pytest.raises(RuntimeError, match="ended by the start of another one"):
        next(first)
    assert len(list(second)) == 2


def test_a_state_of_another_set_is_refused() -> None:
    state = Batches(numbered(10), PLAIN, 4, seeded()).state_dict()
    with pytest.raises(ValueError, match=r"got \(10, 4, False\) for \(10, 5, False\)"):
        Batches(numbered(10), PLAIN, 5, seeded()).load_state_dict(state)
    with pytest.raises(ValueError, match=r"got \(10, 4, False\) for \(8, 4, True\)"):
        Batches(numbered(8), PLAIN, 4, seeded(), replacement=True).load_state_dict(state)


def test_batches_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Batches(numbered(3), PLAIN, 0, seeded())
    with pytest.raises(ValueError, match="got 3 images, batch_size=4, drop_last=True"):
        Batches(numbered(3), PLAIN, 4, seeded(), drop_last=True)
    with pytest.raises(ValueError, match="an epoch must have a batch, got 0 images"):
        Batches(numbered(1).subset(torch.tensor([], dtype=torch.int64)), PLAIN, 4, seeded())


def test_fixed_batches() -> None:
    batches = fixed_batches(numbered(10), PLAIN, 4)
    assert [y.tolist() for _, y in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for x, y in batches:
        assert torch.equal((x[:, 2, 3, 1] * 255).round(), y.float())
        assert x.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="must have no random part, got Augmentation"):
        fixed_batches(numbered(10), RANDOM, 4)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -1"):
        fixed_batches(numbered(10), PLAIN, -1)


def test_images_are_checked_and_kept_channels_last() -> None:
    pixels, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    images = Images(pixels, labels)
    assert images.images.is_contiguous(memory_format=torch.channels_last)
    assert len(images) == 2
    with pytest.raises(TypeError, match=r"got torch.float32 and torch.int64"):
        Images(pixels.float(), labels)
    with pytest.raises(TypeError, match=r"got torch.uint8 and torch.int32"):
        Images(pixels, labels.int())
    with pytest.raises(ValueError, match=r"images must be \[n, 3, H, W\], got \[2, 4, 4, 3\]"):
        Images(pixels.permute(0, 2, 3, 1), labels)
    with pytest.raises(ValueError, match=r"got labels \[1\] for 2 images"):
        Images(pixels, labels[:1])


def test_subset_take_and_split() -> None:
    images = numbered(9)
    chosen = images.subset(torch.tensor([7, 0, 7]))
    assert chosen.labels.tolist() == [7, 0, 7]
    assert chosen.images[:, 1, 2, 3].tolist() == [7, 0, 7]
    assert images.take(4).labels.tolist() == [0, 1, 2, 3]
    assert images.take(9).labels.tolist() == list(range(9))
    for n in (0, -1, 10):
        with pytest.raises(ValueError, match=rf"limit: .* 9 training images, got {n}"):
            images.take(n)
    first, second = split(images, 0.5)
    assert first.labels.tolist() == [0, 1, 2, 3]
    assert second.labels.tolist() == [4, 5, 6, 7, 8]
    for portion in (0.0, 0.1, 1.0, -0.5):
        with pytest.raises(ValueError, match=rf"got portion {portion} of 9 images"):
            split(images, portion)


def test_channel_statistics() -> None:
    pixels = torch.randint(256, (20, 3, 6, 6), dtype=torch.uint8, generator=seeded())
    pixels[:, 2] = 51
    mean, std = channel_statistics(Images(pixels, torch.zeros(20, dtype=torch.int64)))
    values = pixels.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-12)
    expected = values.std((0, 2, 3), correction=0).tolist()
    assert std == pytest.approx([*expected[:2], 1 / 255], abs=1e-12)
