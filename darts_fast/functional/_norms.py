# SPDX-License-Identifier: Apache-2.0
"""The names of the kinds of batch norm."""

from darts_fast import reference

_NORMS = {
    "none": reference.NORM_NONE,
    "batch": reference.NORM_BATCH,
    "running": reference.NORM_RUNNING,
}
