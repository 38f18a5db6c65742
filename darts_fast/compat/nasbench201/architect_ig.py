# SPDX-License-Identifier: Apache-2.0
"""The first-order architecture step of DARTS-PT, or none at all ("blank")."""

from darts_fast.compat.darts_pt.architect import Architect

__all__ = ["Architect"]
