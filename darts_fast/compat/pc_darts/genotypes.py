# SPDX-License-Identifier: Apache-2.0
"""Genotypes of the DARTS and PC-DARTS papers; others are read by `read_genotype`."""

from darts_fast.compat.darts.genotypes import (
    DARTS_V1,
    DARTS_V2,
    PRIMITIVES,
    AmoebaNet,
    Genotype,
    NASNet,
    read_genotype,
)
from darts_fast.spaces.well_known import WELL_KNOWN

__all__ = [
    "DARTS_V1",
    "DARTS_V2",
    "PCDARTS",
    "PRIMITIVES",
    "AmoebaNet",
    "Genotype",
    "NASNet",
    "PC_DARTS_cifar",
    "PC_DARTS_image",
    "read_genotype",
]

PC_DARTS_cifar = WELL_KNOWN["PC_DARTS_CIFAR"]
PC_DARTS_image = WELL_KNOWN["PC_DARTS_IMAGE"]
PCDARTS = PC_DARTS_cifar
