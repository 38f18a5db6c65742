# SPDX-License-Identifier: Apache-2.0
"""The networks that a genotype stands for; that of ``model_imagenet`` is `NetworkImageNet`."""

from darts_fast.derive.auxiliary import AuxiliaryHeadCIFAR as AuxiliaryHead
from darts_fast.derive.network import Cell, NetworkImageNet
from darts_fast.derive.network import NetworkCIFAR as Network

__all__ = ["AuxiliaryHead", "Cell", "Network", "NetworkImageNet"]
