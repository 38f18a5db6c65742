# SPDX-License-Identifier: Apache-2.0
"""A table of results of NAS-Bench-201 that tells which architecture was looked up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from darts_fast.spaces import NASBENCH201_PRIMITIVES, arch_from_index, get_space, ops_from_arch


def write_index_table(path: Path) -> Path:
    """After 200 epochs the test accuracy of an architecture is its index / 100, on all data
    sets."""
    every = range(15_625)
    names = NASBENCH201_PRIMITIVES
    ops = [[names.index(op) for op in ops_from_arch(arch_from_index(index))] for index in every]
    columns = {f"{name}_test_200": np.array(every) / 100 for name in ("c10", "c100", "in16")}
    np.savez(
        path,
        ops=np.array(ops),
        op_names=np.array(names),
        edges=np.array(get_space("nasbench201").edges),
        **columns,
    )
    return path
