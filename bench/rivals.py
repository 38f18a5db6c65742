# SPDX-License-Identifier: Apache-2.0
"""The rivals of every case, in the order of the table."""

from __future__ import annotations

import torch

RIVALS = ("eager", "eager-channels_last", "fused")


def layout(rival: str) -> torch.memory_format:
    """Memory layout of a rival's weights and images; the originals run in NCHW."""
    return torch.contiguous_format if rival == "eager" else torch.channels_last


def backend(rival: str) -> str:
    """The backend of a rival; "reference" is the originals' own sequence of modules."""
    return "fused" if rival == "fused" else "reference"
