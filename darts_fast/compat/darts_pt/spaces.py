# SPDX-License-Identifier: Apache-2.0
"""The search spaces as dictionaries: ``primitives_normal`` and ``primitives_reduct`` list, for each
of the 14 edges, the names of its candidates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from darts_fast.spaces import SPACES, Space

__all__ = [
    "PRIMITIVES",
    "primitives_1",
    "primitives_2",
    "primitives_3",
    "primitives_4",
    "primitives_5",
    "spaces_dict",
]

Primitives = Mapping[str, Sequence[Sequence[str]]]

_KEYS = {"normal": "primitives_normal", "reduce": "primitives_reduct"}


def _primitives(space: Space) -> OrderedDict[str, list[list[str]]]:
    return OrderedDict(
        (key, [list(names) for names in space.primitives[cell_type]])
        for cell_type, key in _KEYS.items()
    )


spaces_dict = {name: _primitives(SPACES[name]) for name in ("s1", "s2", "s3", "s4", "s5")}
primitives_1, primitives_2, primitives_3, primitives_4, primitives_5 = spaces_dict.values()
PRIMITIVES = primitives_5["primitives_normal"][0]


def space_of(primitives: Primitives) -> Space:
    """The `Space` of such a dictionary, one of the published ones or one called "custom".

    Raises ValueError if the lists do not fill the 14 edges or differ in length.
    """
    for name, known in spaces_dict.items():
        if all([*map(list, primitives[key])] == known[key] for key in known):
            return SPACES[name]
    return Space(
        name="custom",
        cell_types=tuple(_KEYS),
        primitives={
            cell_type: tuple(tuple(names) for names in primitives[key])
            for cell_type, key in _KEYS.items()
        },
        edges=SPACES["s5"].edges,
        zero_rule="skip",
        select_topology=True,
    )
