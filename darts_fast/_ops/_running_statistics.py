# SPDX-License-Identifier: Apache-2.0
"""move_running_statistics: writes its arguments, and has no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from darts_fast import _extension as _extension  # registers the schemas

__all__ = ["move_running_statistics"]

move_running_statistics = torch.ops.darts_fast.move_running_statistics.default


@torch.library.register_fake("darts_fast::move_running_statistics")
def _fake(
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    tracked: Sequence[Tensor],
    mean: Tensor,
    var: Tensor,
    momenta: Sequence[float],
    count: int,
) -> None:
    return None
