# SPDX-License-Identifier: Apache-2.0
"""Where results of fused methods must lie in memory as those of the originals do.

A native call gives channels_last maps. That changes no value, but random numbers that are drawn in
the shape of a map follow its layout: a dropout behind would drop other values.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from darts_fast.accelerate.examine import Finding, once
from darts_fast.accelerate.proof import layouts_of
from darts_fast.nn.code import code_of

# Functions that draw a number per value of a map, and those that do so where the map is one that
# one of _LIKE has made.
_DRAW = frozenset(("alpha_dropout", "dropout", "rand_like", "randint_like", "randn_like", "rrelu"))
_DRAW_INTO = frozenset(("bernoulli", "bernoulli_", "exponential_", "normal_", "uniform_"))
_LIKE = frozenset(("empty_like", "full_like", "ones_like", "zeros_like"))
_LAYERS = (nn.AlphaDropout, nn.Dropout, nn.RReLU)


def keep_layouts(model: nn.Module, findings: Sequence[Finding]) -> None:
    """Has the fused methods of a model lay out what they give as their modules would, if something
    in it may draw by the layout: an operation that runs as its module, or code that is not
    replaced.
    """
    keep = any(any(finding.op_reasons) for finding in findings) or any(
        _draws(part) for part in model.modules()
    )
    for finding in findings:
        method = finding.method
        if method is not None and keep and not method.layouts:
            find = functools.partial(layouts_of, method.module, method.structure, method.neutral)
            method.layouts = once("layouts", finding.module, find)


def _draws(part: nn.Module) -> bool:
    if isinstance(part, _LAYERS):
        return True
    if type(part).__module__.startswith("torch."):
        return False
    names = code_of(type(part)).names
    return bool(names & _DRAW or (names & _DRAW_INTO and names & _LIKE))
