# SPDX-License-Identifier: Apache-2.0
"""Finds the mixed operations and cells of a model and proves what can be fused."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from darts_fast.accelerate.forward import FusedForward, fused_method
from darts_fast.accelerate.proof import Proof, prove, prove_operation
from darts_fast.accelerate.signature import signature
from darts_fast.accelerate.structure import (
    CELL,
    MIXED_OPERATION,
    NASBENCH201_CELL,
    NotTheSameError,
    Structure,
    as_in,
    describe_by_structure,
    read,
    variants,
)
from darts_fast.nn.cell import Cell
from darts_fast.nn.mixed_op import MixedOp
from darts_fast.nn.nasbench201 import NAS201SearchCell

# The modules of this package, which run fused by themselves.
NATIVE_FORWARDS = {
    Cell.forward: CELL,
    MixedOp.forward: MIXED_OPERATION,
    NAS201SearchCell.forward: NASBENCH201_CELL,
}


@dataclass
class Finding:
    """A module that looks like a mixed operation or a cell."""

    name: str
    module: nn.Module
    structure: Structure
    method: FusedForward | None
    """What may stand in for the module's own method; None where nothing was proven."""
    reason: str
    """Why the method is None."""
    op_reasons: tuple[str, ...]
    """Of each operation, why it runs as its module; "" of those with a proven native form."""


def examine(model: nn.Module) -> list[Finding]:
    """All findings in the order of `model.named_modules()`. Changes nothing.

    What `accelerate` has put into a module, and what still holds of it, is found as it is.
    """
    own: set[nn.Module] = set()
    for module in model.modules():
        if type(module).forward in NATIVE_FORWARDS:
            own.update(module.modules())
    found = []
    # Edges before the cells that hold them.
    for name, module in reversed([*model.named_modules()]):
        structure = None if module in own else read(module)
        if structure is not None:
            finding = _of(name, module, structure)
            if finding is not None:
                found.append(finding)
    return found[::-1]


# What proofs found, by signature. Bounded, for processes that build networks without end.
_PROOFS: dict[Hashable, Any] = {}
_MAX_PROOFS = 4096


def _of(name: str, module: nn.Module, structure: Structure) -> Finding | None:
    """None for a module that is neither, such as a cell's list or an operation."""
    candidates = list(variants(module, structure))
    if not candidates:
        return None
    before = fused_method(module)
    if before is not None and before.is_current():
        return Finding(name, module, before.structure, before, "", before.op_reasons)
    reasons = tuple(_why_module(op) for op in structure.ops)
    finding = Finding(name, module, structure, None, "", reasons)
    native = [not reason for reason in reasons]
    if before is None and any(each.method in vars(module) for each in candidates):
        finding.reason = "its forward was set on the instance"
    elif not any(native):
        # A list of cells or stages is no list of operations.
        if any(read(part) is not None for op in structure.ops for part in op.modules()):
            return None
        finding.reason = "none of its operations has a native form"
    elif structure.kind == CELL and not all(native):
        finding.reason = "some of its operations run as modules"
    else:
        proof = once("unit", module, lambda: _first_proof(module, candidates, native))
        if isinstance(proof, str):
            finding.reason = proof
        else:
            finding.structure = as_in(module, proof.method, proof.parts, proof.pool)
            finding.method = FusedForward(
                module,
                finding.structure,
                reasons,
                zero=proof.zero,
                neutral=proof.neutral,
                lists=proof.lists,
            )
    return finding


def _why_module(op: nn.Module) -> str:
    """Why an operation runs as its module, or "" if its native form is proven."""
    if any(parametrize.is_parametrized(part) for part in op.modules()):
        return "has parametrizations"
    if describe_by_structure(op) is None:
        return "has no native form"
    return str(once("operation", op, lambda: _refusal(op)))


def once(question: str, module: nn.Module, prove: Callable[[], Any]) -> Any:
    """What was found for a module like this one, or is found now."""
    known = signature(module)
    if known is None:
        return prove()
    key = (question, known)
    if key not in _PROOFS:
        if len(_PROOFS) >= _MAX_PROOFS:
            _PROOFS.clear()
        _PROOFS[key] = prove()
    return _PROOFS[key]


def _refusal(op: nn.Module) -> str:
    try:
        prove_operation(op)
    except NotTheSameError as error:
        return f"computes something else than its parts: {error}"
    return ""


def _first_proof(
    module: nn.Module, candidates: Sequence[Structure], native: Sequence[bool]
) -> Proof | str:
    """The proof of the first candidate that has one, else why the likeliest has none."""
    reasons = []
    for structure in candidates:
        try:
            return prove(module, structure, native)
        except NotTheSameError as error:
            reasons.append(str(error))
    return reasons[0]
