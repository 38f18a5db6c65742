# SPDX-License-Identifier: Apache-2.0
"""A whole perturbation-based selection from an s5 supernet: every edge, every node, and an epoch
of tuning between projections, as `darts_fast.search.Search` runs it.

A small configuration: 5 cells, 8 channels, 64 images to score on and 64 to tune on, 32x32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from bench_search_epoch import Case
from rivals import RIVALS

from darts_fast.backend import use_backend
from darts_fast.search import Search, SearchResult
from darts_fast.selection import PerturbationConfig

CHANNELS, LAYERS, SMOKE_LAYERS = 8, 5, 3


class SelectionCase(Case):
    """A supernet that no search has trained, and a batch to score on and one to tune on."""

    def __init__(
        self, rival: str, batch: int, channels: int, layers: int, space: str = "s5"
    ) -> None:
        super().__init__(rival, batch, channels, layers, space=space, steps=1)
        with torch.no_grad():
            for alpha in self.net.arch_parameters():
                alpha.normal_(std=0.3)

    def select(self, tuning_epochs: int = 1) -> SearchResult:
        """Of a network that keeps what it became: the next call needs another one."""
        with use_backend(self._backend):
            return Search(
                self.net,
                self.data,
                selection=PerturbationConfig(proj_crit="loss", proj_intv=tuning_epochs),
                epochs=0,
                batch_size=self.batch,
                valid_freq=0,
            ).run()


@functools.cache
def assert_equal_decisions(rival: str) -> None:
    """Without tuning, so that the networks stay the same, all rivals decide alike."""
    eager, other = (SelectionCase(name, 8, 4, 3, "s2").select(0) for name in ("eager", rival))
    assert other.genotype == eager.genotype
    for found, expected in zip(other.decisions, eager.decisions, strict=True):
        assert found.chosen == expected.chosen
        for losses, wanted in zip(found.loss, expected.loss, strict=True):
            torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
def test_selection(measure: Callable[..., None], smoke: bool, rival: str, batch: int) -> None:
    assert_equal_decisions(rival)
    channels, layers = (4, SMOKE_LAYERS) if smoke else (CHANNELS, LAYERS)
    rounds = 3 if rival == "fused" and not smoke else 1
    # A selection uses its network up.
    cases = [SelectionCase(rival, batch, channels, layers) for _ in range(rounds)]
    measure(
        lambda: cases.pop().select(),
        group=f"selection of an architecture, {len(cases[0].net.space.cell_types)} x 17 "
        f"projections with tuning, batch {batch}",
        rival=rival,
        rounds=rounds,
        warmup=0,
        headline=True,
    )
