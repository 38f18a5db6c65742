# SPDX-License-Identifier: Apache-2.0
"""The candidate operations, ``OPS[name](C, stride, affine)``, as in DARTS."""

from darts_fast.compat.darts.operations import *  # noqa: F403
from darts_fast.compat.darts.operations import __all__ as __all__
