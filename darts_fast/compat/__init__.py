# SPDX-License-Identifier: Apache-2.0
"""The original code bases' names and signatures on this package's fused modules.

`darts` is quark0/darts ``cnn``, `darts_pt` and `nasbench201` the two halves of ruocwang/darts-pt,
`pc_darts` the code of PC-DARTS: an existing script changes its import lines and nothing else.
`convert` takes checkpoints from one to the other. What differs from the originals is in
docs/compat.md.
"""

from darts_fast.compat import convert, darts, darts_pt, nasbench201, pc_darts

__all__ = ["convert", "darts", "darts_pt", "nasbench201", "pc_darts"]
