# SPDX-License-Identifier: Apache-2.0
"""Helpers of the training scripts, as in DARTS."""

from darts_fast.compat.darts.utils import *  # noqa: F403
from darts_fast.compat.darts.utils import __all__ as __all__
