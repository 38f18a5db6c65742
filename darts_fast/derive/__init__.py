# SPDX-License-Identifier: Apache-2.0
"""Derived networks: what a search found, as a network to train."""

from darts_fast.derive.build import build_derived
from darts_fast.derive.nasbench201 import NasBench201Network
from darts_fast.derive.network import NetworkCIFAR, NetworkImageNet

__all__ = ["NasBench201Network", "NetworkCIFAR", "NetworkImageNet", "build_derived"]
