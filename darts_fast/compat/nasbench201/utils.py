# SPDX-License-Identifier: Apache-2.0
"""Helpers of the training scripts."""

from darts_fast.compat.darts_pt.utils import *  # noqa: F403
from darts_fast.compat.darts_pt.utils import __all__ as __all__
