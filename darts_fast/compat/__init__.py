# SPDX-License-Identifier: Apache-2.0
"""The original code bases' names and signatures on this package's fused modules.

`darts` is quark0/darts ``cnn``, so that an existing script changes its import lines and nothing
else. What differs from the originals is in docs/compat.md.
"""

from darts_fast.compat import convert, darts, darts_pt, nasbench201

__all__ = ["convert", "darts", "darts_pt", "nasbench201"]
