# SPDX-License-Identifier: Apache-2.0
"""From an architecture to a network that can be trained."""

from __future__ import annotations

from darts_fast.derive.nasbench201 import NasBench201Network
from darts_fast.derive.network import NetworkCIFAR
from darts_fast.spaces import Genotype, read_genotype


def build_derived(
    genotype: Genotype | str,
    *,
    channels: int,
    num_classes: int,
    layers: int,
    auxiliary: bool = False,
) -> NetworkCIFAR | NasBench201Network:
    """The network of an architecture, freshly initialised from torch's global generator.

    Args:
        genotype: a `Genotype`, or a string that `read_genotype` reads: a NAS-Bench-201
            architecture, a well-known name, a genotype as it is printed.
        channels: of the first cells.
        num_classes: outputs.
        layers: cells; for NAS-Bench-201 cells per stage.
        auxiliary: build the auxiliary classifier.

    Raises:
        ValueError: a NAS-Bench-201 network with an auxiliary head, or sizes that make no network.
    """
    if isinstance(genotype, str):
        genotype = read_genotype(genotype)
    if isinstance(genotype, Genotype):
        return NetworkCIFAR(channels, num_classes, layers, auxiliary, genotype)
    if auxiliary:
        raise ValueError(
            "build_derived: a NAS-Bench-201 network has no auxiliary head, got auxiliary=True"
        )
    return NasBench201Network(genotype, channels, layers, num_classes)
