# SPDX-License-Identifier: Apache-2.0
"""The networks that a genotype stands for, as in DARTS."""

from darts_fast.compat.darts.model import *  # noqa: F403
from darts_fast.compat.darts.model import __all__ as __all__
