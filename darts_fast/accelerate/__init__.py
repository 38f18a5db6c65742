# SPDX-License-Identifier: Apache-2.0
"""Fused forwards for supernets of other code bases, in place.

`accelerate` finds the cells and mixed operations of a model by their children, proves on copies
which of them the native calls compute, and replaces the method of those instances. Parameters,
buffers, state_dict keys and alphas are the model's own and stay where they are.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from torch import nn

from darts_fast.accelerate.adopt import as_supernet
from darts_fast.accelerate.examine import NATIVE_FORWARDS, Finding, examine
from darts_fast.accelerate.explain import Explanation, explain
from darts_fast.accelerate.forward import accelerated, put, take_away
from darts_fast.accelerate.layouts import keep_layouts
from darts_fast.accelerate.verify import AccelerateError, verify_model

__all__ = [
    "AccelerateError",
    "Explanation",
    "accelerate",
    "accelerated",
    "as_supernet",
    "explain",
    "restore",
]

_log = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=nn.Module)

_LOOKED_FOR = (
    "mixed operations, forward(x, weights) = sum(w * op(x)) over a ModuleList of at least two "
    "operations, one of them with a native form (`darts_fast.functional.Candidate`); cells of "
    "DARTS, forward(s0, s1, weights) with two preprocessing children and a ModuleList of such "
    "operations; cells of NAS-Bench-201, forward(x, weights) with a ModuleDict whose keys are "
    "node<-source"
)


def accelerate(model: _Model, *, verify: Any = False) -> _Model:
    """Make the mixed operations and cells of a supernet native calls, in place.

    Outputs, gradients, running statistics, parameters and state_dict stay what they are. It acts on
    modules that compute ``sum(w * op(x))`` over a ModuleList, with or without the partial channels
    of PC-DARTS, on cells ``forward(s0, s1, weights, ...)`` with two preprocessing children and a
    list of such modules, and on NAS-Bench-201 cells ``forward(x, weights)``. They are found by
    their children, not by class names. Each is first run on a copy in float64 next to its own
    forward, with weights of either sign, small ones and zeros, in training and in evaluation:
    outputs, gradients and running statistics must agree. This also tells what a weight of 0 means
    to it (see `darts_fast.nn.mixed_op`). An operation that has no native form, has hooks or
    parametrizations, or computes something else than its parts runs as the module it is, beside the
    native call for the rest of its edge. What does not pass is left alone and named in the log;
    `explain` tells all of it.

    An accelerated cell calls its own forward where the fused one does not apply: with drop-path or
    other arguments than those proven, with hooks in it, or with a node that nothing enters; its
    edges are then native calls one by one. On another device than the CPU, in another dtype than
    float32 and float64 (and bfloat16 under autocast in bfloat16), under other autocasts, inside
    `torch.compile`, `torch.func` and modes of torch functions, and once anything is no longer what
    was proven, modules run as they did before.

    Looked at in every call are: submodules, hooks and classes; strides, paddings and all other
    settings; shapes of parameters; and what the code of a class reads by name: attributes of the
    instance and of the class, globals, variables of the functions around it, functions and classes
    that it calls, what lies in lists, dictionaries and objects up to three levels deep, and
    torch's own functions. Where one of them has changed, `explain` tells what is now left alone and
    a second `accelerate` proves anew. An operation that runs as its module may change at will.
    Tensors that a class holds are given random values in the proof, so that a mask of ones does not
    pass for none. Not seen is a change of what code finds in other ways: names put together at run
    time, files and environment variables, arrays of numpy, objects without ``__dict__``, and the
    inside of functions of torch and other libraries. `verify` finds such a change if it was made
    before and matters for the batch.

    Where a model draws random numbers in the shape of maps (an operation that runs as its module, a
    dropout, ``randn_like`` in its code) fused results have the memory format of the original's, on
    which the draws depend; elsewhere they are channels_last.

    Copies by `copy.deepcopy` or pickle are accelerated models of their own. A shallow copy, as
    `nn.DataParallel` makes, is not: `restore` first.

    Args:
        model: changed in place; networks of `darts_fast.nn` need no change. A second call looks at
            what has changed since the first.
        verify: a batch (see `darts_fast.accelerate.verify.verify_model`), or True for random
            images: also run it both ways and compare, module by module.

    Returns:
        The model.

    Raises:
        ValueError: it has nothing to accelerate.
        AccelerateError: with `verify`, a module gives something else than its own forward; the
            message names it, and the model is restored.
    """
    findings = examine(model)
    keep_layouts(model, findings)
    for finding in findings:
        if finding.method is None:
            take_away(finding.module)
        else:
            put(finding.module, finding.method)
    _warn(model, findings)
    native = any(type(module).forward in NATIVE_FORWARDS for module in model.modules())
    if not native and all(finding.method is None for finding in findings):
        raise ValueError(
            f"accelerate: model must have {_LOOKED_FOR}; got none in {type(model).__name__}"
            + "".join(f"; {_name(finding, model)}: {finding.reason}" for finding in findings[:1])
        )
    if verify is not False:
        try:
            verify_model(model, verify)
        except AccelerateError:
            restore(model)
            raise
    return model


def restore(model: _Model) -> _Model:
    """Undo `accelerate`: every module of `model` runs its own forward again. Returns the model."""
    for module in model.modules():
        take_away(module)
    return model


def _warn(model: nn.Module, findings: list[Finding]) -> None:
    left: dict[str, list[str]] = {}
    for finding in findings:
        if finding.method is None:
            left.setdefault(finding.reason, []).append(_name(finding, model))
    for reason, names in left.items():
        _log.warning(
            "accelerate: %d modules left alone (%s, ...): %s", len(names), names[0], reason
        )


def _name(finding: Finding, model: nn.Module) -> str:
    return finding.name or type(model).__name__
