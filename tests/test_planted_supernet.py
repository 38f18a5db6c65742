# SPDX-License-Identifier: Apache-2.0
"""Selection on a supernet whose best architecture is known (DARTS-PT's claim in miniature)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from planted import CLASSES, EDGES, WIDTH, planted
from torch import Tensor, nn

from darts_fast.nn import Supernet
from darts_fast.nn.operations import Noise
from darts_fast.selection import PerturbationConfig, score_tables, select
from darts_fast.spaces import Space


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


@dataclass(frozen=True)
class EdgeSpace(Space):
    """One edge like those of S4, which has noise beside something useful."""

    def genotype(self, weights: Mapping[str, Tensor]) -> str:  # type: ignore[override]
        return ("noise", "useful")[int(weights["cell"].argmax())]


class EdgeNet(Supernet):
    """``[N, WIDTH, 1, 1] -> [N, CLASSES]``: the mixture of noise and the linear map that labels are
    made of."""

    def __init__(self) -> None:
        super().__init__(
            EdgeSpace(
                name="edge",
                cell_types=("cell",),
                primitives={"cell": (("noise", "useful"),)},
                edges=((0, 1),),
                zero_rule="skip",
                select_topology=False,
            ),
            None,
        )
        self.noise, self.useful = Noise(1), nn.Conv2d(WIDTH, CLASSES, 1)
        self._register_alphas({"cell": "alphas"})
        with torch.no_grad():
            self.alphas.copy_(torch.tensor([[2.0, 0.0]]))

    def forward(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        (w,) = {**self.edge_weights(), **(weights or {})}["cell"]
        return (w[0] * self.noise(x[:, :CLASSES]) + w[1] * self.useful(x)).flatten(1)


@pytest.mark.parametrize("criterion", ["acc", "loss"])
def test_perturbation_prefers_the_useful_operation_to_the_noise_that_alpha_prefers(
    criterion: str,
) -> None:
    net, x = EdgeNet(), torch.randn(400, WIDTH, 1, 1)
    with torch.no_grad():
        labels = net.useful(x).flatten(1).argmax(1)
    batches = list(zip(x.split(100), labels.split(100), strict=True))
    assert select(net, method="magnitude").genotype == "noise"
    config = PerturbationConfig(proj_crit=criterion)
    assert select(net, batches, method="perturbation", config=config).genotype == "useful"
