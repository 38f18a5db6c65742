# SPDX-License-Identifier: Apache-2.0
"""The architecture step: Adam on alphas and betas, first or second order, as in DARTS."""

from darts_fast.compat.darts.architect import Architect

__all__ = ["Architect"]
