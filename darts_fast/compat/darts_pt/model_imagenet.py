# SPDX-License-Identifier: Apache-2.0
"""The networks that a genotype stands for on ImageNet, as in DARTS."""

from darts_fast.derive.auxiliary import AuxiliaryHeadImageNet
from darts_fast.derive.network import Cell, NetworkImageNet

__all__ = ["AuxiliaryHeadImageNet", "Cell", "NetworkImageNet"]
