# SPDX-License-Identifier: Apache-2.0
"""Which network of this package is built as a model of another code base is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from darts_fast.accelerate.examine import Finding, examine
from darts_fast.accelerate.structure import (
    CELL,
    MIXED_OPERATION,
    NASBENCH201_CELL,
    Structure,
    describe_by_structure,
)
from darts_fast.nn import Network, TinyNetwork
from darts_fast.nn.plan import Parts
from darts_fast.spaces import Space


@dataclass(frozen=True)
class FoundCell:
    """A cell of the model."""

    name: str
    module: nn.Module
    structure: Structure
    zero: str
    parts: tuple[Parts, ...]

    @property
    def kind(self) -> str:
        return self.structure.kind

    @property
    def reduction(self) -> bool:
        return any(parts.stride == 2 for parts in self.parts)

    @property
    def cell_type(self) -> str:
        if self.kind == NASBENCH201_CELL:
            return "cell"
        return "reduce" if self.reduction else "normal"

    @property
    def primitives(self) -> tuple[tuple[str, ...], ...]:
        """Names of the operations by edge."""
        width = len(self.structure.edges[0].ops)
        names = [_NAMES[self.kind].get((p.kind, p.kernel, p.dilation)) for p in self.parts]
        for name, parts in zip(names, self.parts, strict=True):
            if name is None:
                raise refused(
                    f"operations of {self.name} must be of a DARTS space",
                    f"{parts.kind} with kernel {parts.kernel} and dilation {parts.dilation}",
                )
        found = [name for name in names if name is not None]
        return tuple(tuple(found[i : i + width]) for i in range(0, len(found), width))


# Kind, kernel and dilation of an operation, and its name in the space of each kind of cell.
_SKIPS = {
    ("identity", 0, 0): "skip_connect",
    ("factorized_reduce", 0, 0): "skip_connect",
    ("none", 0, 0): "none",
    ("avg_pool", 0, 0): "avg_pool_3x3",
}
_NAMES = {
    CELL: {
        **_SKIPS,
        ("max_pool", 0, 0): "max_pool_3x3",
        **{("separable_twice", k, 1): f"sep_conv_{k}x{k}" for k in (3, 5, 7)},
        **{("separable", k, 2): f"dil_conv_{k}x{k}" for k in (3, 5)},
    },
    NASBENCH201_CELL: {**_SKIPS, **{("dense", k, 1): f"nor_conv_{k}x{k}" for k in (1, 3)}},
}


def refused(rule: str, got: object) -> ValueError:
    return ValueError(f"as_supernet: {rule}, got {got}")


def find_cells(model: nn.Module) -> list[FoundCell]:
    """The cells in the order of the model's modules, all of one kind. Raises ValueError."""
    findings = [each for each in examine(model) if each.structure.kind != MIXED_OPERATION]
    if not findings:
        raise refused(
            "model must have cells that accelerate recognises (see darts_fast.explain)",
            f"none in {type(model).__name__}",
        )
    for finding in findings:
        if finding.method is None:
            raise refused(f"{finding.name} must be a cell of native operations", finding.reason)
        if finding.structure.method != "forward":
            raise refused(f"{finding.name} must compute its nodes in forward", "another method")
    kinds = sorted({finding.structure.kind for finding in findings})
    if len(kinds) > 1:
        raise refused("cells must be of one kind", " and ".join(kinds))
    return [_as_found(finding) for finding in findings]


def _as_found(finding: Finding) -> FoundCell:
    method = finding.method
    assert method is not None
    parts = [describe_by_structure(op) for op in finding.structure.ops]
    found = tuple(each for each in parts if each is not None)
    return FoundCell(finding.name, finding.module, finding.structure, method.zero, found)


def _space(cells: Sequence[FoundCell], cell_types: tuple[str, ...], topology: bool) -> Space:
    """The space that the cells span; a cell type that no cell has gets the names of the others."""
    primitives: dict[str, tuple[tuple[str, ...], ...]] = {}
    for cell in cells:
        if primitives.setdefault(cell.cell_type, cell.primitives) != cell.primitives:
            raise refused(
                f"all {cell.cell_type} cells must have the same operations",
                f"others in {cell.name}",
            )
    rules = sorted({cell.zero for cell in cells})
    if len(rules) > 1:
        raise refused("cells must have one rule for weights of 0", " and ".join(rules))
    some = next(iter(primitives.values()))
    return Space(
        name="adopted",
        cell_types=cell_types,
        primitives={name: primitives.get(name, some) for name in cell_types},
        edges=tuple((edge.source, edge.node) for edge in cells[0].structure.edges),
        zero_rule=rules[0],
        select_topology=topology,
    )


def network_of(model: nn.Module, cells: Sequence[FoundCell]) -> Network | TinyNetwork:
    """A network of the model's configuration on the meta device. Raises ValueError."""
    return _network(model, cells) if cells[0].kind == CELL else _tiny_network(model, cells)


def _network(model: nn.Module, cells: Sequence[FoundCell]) -> Network:
    structure, layers = cells[0].structure, len(cells)
    wanted = [i in (layers // 3, 2 * layers // 3) for i in range(layers)]
    if [cell.reduction for cell in cells] != wanted:
        places = [i for i, cell in enumerate(cells) if cell.reduction]
        expected = sorted({layers // 3, 2 * layers // 3})
        raise refused(f"reduction cells must be {expected} of {layers}", places)
    first = cells[0].module.get_submodule(structure.preprocess[0])
    parts = describe_by_structure(first)
    assert parts is not None
    assert parts.channels is not None
    stem, channels = parts.channels
    space = _space(cells, ("normal", "reduce"), topology=True)
    with torch.device("meta"):
        return Network(
            channels,
            _classes(model),
            layers,
            getattr(model, "_criterion", None),
            structure.nodes,
            structure.multiplier,
            stem // channels,
            space=space,
        )


def _tiny_network(model: nn.Module, cells: Sequence[FoundCell]) -> TinyNetwork:
    space = _space(cells, ("cell",), topology=False)
    widths = [parts.channels for parts in cells[0].parts if parts.kind == "dense"]
    if not widths or widths[0] is None or len(cells) % 3:
        raise refused("cells must be convolutional and in three stages of one size", len(cells))
    norms = [norm for parts in cells[0].parts for norm in parts.norms if norm is not None]
    with torch.device("meta"):
        return TinyNetwork(
            widths[0][0],
            len(cells) // 3,
            _classes(model),
            getattr(model, "_criterion", None),
            space=space,
            affine=norms[0].affine,
            track_running_stats=norms[0].track_running_stats,
        )


def _classes(model: nn.Module) -> int:
    classifier = getattr(model, "classifier", None)
    if not isinstance(classifier, nn.Linear):
        raise refused("model must have a linear classifier", type(classifier).__name__)
    return classifier.out_features
