# SPDX-License-Identifier: Apache-2.0
"""The rivals of every case, in the order of the table."""

RIVALS = ("eager", "eager-channels_last", "fused")
