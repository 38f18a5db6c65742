# SPDX-License-Identifier: Apache-2.0
"""The networks that a genotype stands for."""

from darts_fast.derive.auxiliary import AuxiliaryHeadCIFAR, AuxiliaryHeadImageNet
from darts_fast.derive.network import Cell, NetworkCIFAR, NetworkImageNet

__all__ = ["AuxiliaryHeadCIFAR", "AuxiliaryHeadImageNet", "Cell", "NetworkCIFAR", "NetworkImageNet"]
