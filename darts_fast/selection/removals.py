# SPDX-License-Identifier: Apache-2.0
"""What can be removed from a supernet: operations, edges, and several of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from darts_fast.spaces import Space

__all__ = ["Place", "Removal", "every_removal", "parse_removal"]

Place = tuple[str, int, int | None]
"""Cell type, edge, operation; None for the whole edge."""


@dataclass(frozen=True)
class Removal:
    """Places whose weights become 0, with nothing renormalised.

    Attributes:
        places: what is removed together; empty of a table that was given as it is.
        name: for tables and plots, such as "normal 7 sep_conv_3x3" or "normal 2 + reduce 5".
    """

    places: tuple[Place, ...]
    name: str

    def table(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tables that differ, made from the network's own: cell type -> [edges, ops]."""
        changed: dict[str, Tensor] = {}
        for cell_type, edge, op in self.places:
            table = changed.setdefault(cell_type, weights[cell_type].detach().clone())
            if op is None:
                table[edge] = 0
            else:
                table[edge, op] = 0
        return changed


def every_removal(space: Space, cell_types: Sequence[str] | None = None) -> list[Removal]:
    """Each operation of each edge, cell type by cell type, edge by edge."""
    return [
        parse_removal(space, (cell_type, edge, op))
        for cell_type in (space.cell_types if cell_types is None else cell_types)
        for edge in range(space.num_edges)
        for op in range(len(space.primitives[cell_type][edge]))
    ]


def parse_removal(space: Space, given: object) -> Removal:
    """A removal from (cell type, edge, operation's index or name), (cell type, edge), or a list of
    those that are removed together.

    Raises ValueError for anything else and for what the space does not have.
    """
    if isinstance(given, Removal):
        given = given.places
    together = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
    if not together:
        raise _unknown(given)
    assert isinstance(given, Sequence)
    parts = [given] if isinstance(given[0], str) else given
    places = tuple(_place(space, part) for part in parts)
    return Removal(places, " + ".join(_name(space, place) for place in places))


def _place(space: Space, given: object) -> Place:
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) not in (2, 3):
        raise _unknown(given)
    cell_type, edge, op = (*given, None)[:3]
    if cell_type not in space.cell_types:
        known = ", ".join(space.cell_types)
        raise ValueError(f"removal_scores: cell_type must be one of {known}, got {cell_type!r}")
    if not isinstance(edge, int) or not 0 <= edge < space.num_edges:
        raise ValueError(f"removal_scores: edges must be in 0..{space.num_edges - 1}, got {edge!r}")
    names = space.primitives[cell_type][edge]
    if op is None or (isinstance(op, int) and 0 <= op < len(names)):
        return cell_type, edge, op
    if op in names:
        return cell_type, edge, names.index(op)
    raise ValueError(
        f"removal_scores: op must be in 0..{len(names) - 1} or one of {', '.join(names)}, "
        f"got {op!r}"
    )


def _name(space: Space, place: Place) -> str:
    cell_type, edge, op = place
    suffix = "" if op is None else f" {space.primitives[cell_type][edge][op]}"
    return f"{cell_type} {edge}{suffix}"


def _unknown(given: object) -> ValueError:
    return ValueError(
        "removal_scores: a removal must be (cell type, edge, op), (cell type, edge) or a list of "
        f"those, got {given!r}"
    )
