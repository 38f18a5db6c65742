# SPDX-License-Identifier: Apache-2.0
"""Selection on a supernet whose best architecture is known (DARTS-PT's claim in miniature)."""

from __future__ import annotations

import pytest
import torch
from planted import CLASSES, EDGES, planted

from darts_fast.selection import PerturbationConfig, score_tables, select


def accuracy_of(genotype: str, seed: int) -> float:
    net, batches = planted(seed=seed)
    one_hot = torch.zeros(EDGES, 3)
    for edge, name in enumerate(genotype.split("|")):
        one_hot[edge, net.space.primitives["cell"][edge].index(name)] = 1
    return score_tables(net, batches, [{"cell": one_hot}]).score(0).accuracy


@pytest.mark.parametrize("seed", range(3))
def test_magnitude_picks_noise_and_is_at_chance(seed: int) -> None:
    net, _ = planted(seed=seed)
    genotype = select(net, method="magnitude").genotype
    assert genotype == "|".join(["noise"] * EDGES)
    assert accuracy_of(genotype, seed) == pytest.approx(100 / CLASSES, abs=5)


@pytest.mark.parametrize("criterion", ["acc", "loss"])
@pytest.mark.parametrize("mode", ["paired", "compat"])
@pytest.mark.parametrize("seed", range(3))
def test_perturbation_finds_the_rotation_on_every_edge(
    seed: int, mode: str, criterion: str
) -> None:
    torch.manual_seed(seed)
    net, batches = planted(seed=seed)
    source = batches if mode == "paired" else lambda: iter(batches)
    config = PerturbationConfig(mode=mode, proj_crit=criterion, seed=seed)
    selection = select(net, source, method="perturbation", config=config)
    assert selection.genotype == "|".join(["rotation"] * EDGES)
    assert sorted(decision.place for decision in selection.decisions) == list(range(EDGES))
    assert score_tables(net, batches, [{}]).score(0).accuracy == 100


def test_alphas_stay_where_they_were() -> None:
    net, batches = planted()
    before = net.alphas.detach().clone()
    select(net, batches, method="perturbation")
    assert torch.equal(net.alphas, before)
