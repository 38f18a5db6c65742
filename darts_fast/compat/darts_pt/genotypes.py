# SPDX-License-Identifier: Apache-2.0
"""Genotypes; those that a run prints or a ``genotypes.py`` lists are read by `read_genotype`."""

from darts_fast.spaces import DARTS_PRIMITIVES, DARTS_V1, DARTS_V2, Genotype, read_genotype

__all__ = ["DARTS_V1", "DARTS_V2", "PRIMITIVES", "Genotype", "read_genotype"]

PRIMITIVES = ["none", "noise", *DARTS_PRIMITIVES[1:]]
