# SPDX-License-Identifier: Apache-2.0
"""What reaches the kernels of a native op, from wherever it was called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from darts_fast import _ops

_KEY = torch._C.DispatchKey.BackendSelect


@contextmanager
def observed(name: str, see: Callable[..., None]) -> Iterator[None]:
    """`see` gets what the kernel returns and was given in every call, behind autocast and autograd.

    Args: name, of an op in `_ops`.
    """
    op = getattr(_ops, name)
    library = torch.library.Library("darts_fast", "IMPL")

    def kernel(keys: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        outputs = op.redispatch(keys.remove(_KEY), *arguments)
        see(outputs, *arguments)
        return outputs

    library.impl(name, kernel, "BackendSelect", with_keyset=True)
    try:
        yield
    finally:
        library._destroy()
