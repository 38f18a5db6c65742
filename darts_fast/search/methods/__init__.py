# SPDX-License-Identifier: Apache-2.0
"""Search methods, one file each; docs/adding-a-method.md shows how to add one."""

from darts_fast.search.methods.base import Method, NoOptions
from darts_fast.search.methods.registry import (
    GROUP,
    METHODS,
    method_options,
    option_names,
    register,
)

__all__ = ["GROUP", "METHODS", "Method", "NoOptions", "method_options", "option_names", "register"]
