# SPDX-License-Identifier: Apache-2.0
"""compat.darts_pt.utils.EVLocalAvg: the window of eigenvalues and when it says stop."""

from __future__ import annotations

import pytest

from darts_fast.compat.darts_pt.utils import EVLocalAvg, gen_comb

EVERY = 2
VALUES = [0.30, 0.28, 0.31, 0.29, 0.33, 0.32, 0.36, 0.45, 0.60, 0.75, 0.90, 1.00]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def measured(count: int = len(VALUES), total: int = 50) -> EVLocalAvg:
    found = EVLocalAvg(window=5, ev_freq=EVERY, total_epochs=total)
    for i, value in enumerate(VALUES[:count]):
        found.update(EVERY * i, value, f"genotype {i}", numparam=i / 10)
    return found


def test_means_belong_to_the_middle_of_their_window() -> None:
    found = measured()
    # Nothing before half a window; then what there is; then five at a time.
    expected = [mean(VALUES[:n]) for n in (3, 4)]
    expected += [mean(VALUES[end - 5 : end]) for end in range(5, len(VALUES) + 1)]
    assert found.ev_local_avg == pytest.approx(expected)
    assert [found.la_epochs[EVERY * i] for i in range(4)] == [-1, -1, 0, 2]
    assert found.la_epochs[22] == 18
    assert found.stop_genotype == "genotype 11"


def test_after_the_last_epoch_the_window_shrinks() -> None:
    found = measured(total=23)
    rest = [mean(VALUES[start:]) for start in (7, 8, 9)]
    assert found.ev_local_avg[-3:] == pytest.approx(rest)
    assert len(found.ev_local_avg) == len(found.ev)


def test_it_stops_where_the_mean_has_grown() -> None:
    for count in range(1, len(VALUES) + 1):
        found = measured(count)
        epoch = EVERY * (count - 1)
        found.early_stop(epoch, factor=1.3, es_start_epoch=10, delta=2)
        # The mean two measurements earlier belongs to the epoch eight earlier: half a window, two.
        started = count >= 3 and epoch - 8 >= 10
        grown = started and mean(VALUES[count - 5 : count]) > 1.3 * mean(
            VALUES[count - 7 : count - 2]
        )
        assert found.stop_search == grown
        if grown:
            assert (found.stop_epoch, found.stop_genotype) == (epoch - 8, f"genotype {count - 5}")
            assert found.stop_numparam == pytest.approx((count - 5) / 10)
        else:
            assert (found.stop_epoch, found.stop_genotype) == (49, f"genotype {count - 1}")
    assert grown


def test_single_measurements_and_another_criterion() -> None:
    found = EVLocalAvg(ev_freq=1)
    for epoch, value in enumerate(VALUES):
        found.update(epoch, value, epoch)
    found.early_stop(11, factor=2.0, es_start_epoch=10, delta=4, criteria="exact")
    assert (found.stop_search, found.stop_epoch) == (VALUES[11] / VALUES[7] > 2.0, 7)
    found.reset()
    assert (found.ev, found.genotypes, found.la_epochs) == ([], {}, {})
    with pytest.raises(ValueError, match="must be local_avg or exact, got 'mean'"):
        found.early_stop(0, criteria="mean")


def test_pairs_of_edges() -> None:
    assert gen_comb([2, 5, 7]) == [(2, 5), (2, 7), (5, 7)]
