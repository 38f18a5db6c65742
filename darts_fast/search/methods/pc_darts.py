# SPDX-License-Identifier: Apache-2.0
"""PC-DARTS (Xu et al., ICLR 2020, arXiv 1907.05737).

Read: notes on the authors' repository (names, shapes, defaults); its code has no licence and was
not copied. Written from the paper: partial channels and edge normalisation are in the supernets of
`darts_fast.nn.partial_channels` and, for NAS-Bench-201, which the paper does not search, of
`darts_fast.nn.partial_nasbench201`. The authors search CIFAR-10 with batches of 256, learning rates
0.1 to 0 for the weights and 6e-4 for the architecture, which are settings of the search here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from darts_fast.nn import Supernet
from darts_fast.nn.partial_channels import PartialNetwork
from darts_fast.nn.partial_nasbench201 import PartialTinyNetwork
from darts_fast.search.loop import Loop
from darts_fast.search.methods.darts import Darts, DartsOptions
from darts_fast.spaces import Space, get_space

__all__ = ["PCDarts", "PCDartsOptions"]


@dataclass(frozen=True)
class PCDartsOptions(DartsOptions):
    """Args: begin, epoch of the first architecture step (15, on ImageNet 35); partial, k: one k-th
    of the channels is mixed (4, on ImageNet 2). ValueError for values out of range.
    """

    begin: int = field(default=15, metadata={"help": "Epoch of the first architecture step."})
    partial: int = field(default=4, metadata={"help": "Mix one so-manieth of the channels."})

    def __post_init__(self) -> None:
        if self.begin < 0 or self.partial < 1:
            raise ValueError(
                "pc-darts: begin must be 0 or more and partial 1 or more, "
                f"got {self.begin} and {self.partial}"
            )


class PCDarts(Darts):
    """DARTS on a supernet that mixes part of the channels and learns weights of its edges; the
    architecture rests for the first epochs (section 3.2: the weights are warmed up).
    """

    name = "pc-darts"
    Options = PCDartsOptions

    @classmethod
    def build_supernet(
        cls,
        space: str | Space,
        *,
        channels: int,
        num_classes: int,
        layers: int,
        options: PCDartsOptions,
    ) -> Supernet:
        """A `PartialNetwork`, or on NAS-Bench-201 a `PartialTinyNetwork` (see `build_supernet`)."""
        space = get_space(space)
        if space.cell_types == ("cell",):
            return PartialTinyNetwork(channels, layers, num_classes, space=space, k=options.partial)
        return PartialNetwork(channels, num_classes, layers, space=space, k=options.partial)

    def gradient(self, loop: Loop) -> tuple[float, list[Tensor]] | None:
        if not loop.tuning and loop.epoch < self.options.begin:
            return None
        return super().gradient(loop)
