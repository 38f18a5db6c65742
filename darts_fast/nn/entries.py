# SPDX-License-Identifier: Apache-2.0
"""Values that are to stay what they are: attributes, globals, and what classes have.

Both look at identities in native code, which takes nanoseconds a value; only where one is another
object are values compared.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from darts_fast import _C
from darts_fast.nn.code import code_of, versions

MISSING = object()
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)


class Entries:
    """Values under keys of dictionaries."""

    def __init__(self) -> None:
        self._tables: list[dict[str, Any]] = []
        self._keys: list[tuple[str, ...]] = []
        self._values: list[tuple[object, ...]] = []
        self._seen: _C.WrittenTables | None = None

    def add(self, table: dict[str, Any], keys: Iterable[str]) -> None:
        """What stands, or does not stand, in a table under some keys now."""
        names = tuple(keys)
        if names:
            self._tables.append(table)
            self._keys.append(names)
            self._values.append(_under(table, names))
            self._seen = None

    def same(self) -> bool:
        if self._seen is None:
            self._seen = _C.WrittenTables(self._tables)
        places = self._seen.written()
        if not places:
            return True
        # First: what is written from here on is found next time.
        self._seen.take(self._tables, places)
        if self._same_at(places):
            return True
        self._seen.forget(places)
        return False

    def _same_at(self, places: Sequence[int]) -> bool:
        tables = [self._tables[i] for i in places]
        keys = [self._keys[i] for i in places]
        values = [self._values[i] for i in places]
        if _C.same_entries(tables, keys, values, MISSING):
            return True
        now = [_under(*each) for each in zip(tables, keys, strict=True)]
        if not all(map(is_same, now, values)):
            return False
        for i, found in zip(places, now, strict=True):
            self._values[i] = found
        return True

    def items(self) -> Iterator[tuple[str, object]]:
        for names, values in zip(self._keys, self._values, strict=True):
            yield from zip(names, values, strict=True)


class Classes:
    """What classes have, themselves or inherited, under the names that calls of them read.

    Attributes:
        followed: classes beside those given that their code names.
    """

    def __init__(self, kinds: Iterable[type]) -> None:
        own = dict.fromkeys(kinds)
        named = dict.fromkeys(each for kind in own for each in code_of(kind).classes)
        self.followed = [kind for kind in named if kind not in own]
        self._kinds = [*own, *self.followed]
        names = [sorted(code_of(kind).names) for kind in own]
        self._names = names + len(self.followed) * [sorted({x for each in names for x in each})]
        self._versions = versions(self._kinds)
        self._values = self._now()

    def same(self) -> bool:
        if _C.same_types(self._kinds, self._versions):
            return True
        found = versions(self._kinds)
        if not is_same(self._now(), self._values):
            return False
        self._versions = found
        return True

    def items(self) -> Iterator[tuple[str, object]]:
        for names, values in zip(self._names, self._values, strict=True):
            yield from zip(names, values, strict=True)

    def _now(self) -> tuple[tuple[object, ...], ...]:
        return tuple(
            tuple(inspect.getattr_static(kind, name, MISSING) for name in names)
            for kind, names in zip(self._kinds, self._names, strict=True)
        )


def is_plain(value: object) -> bool:
    """Numbers, text, None, and tuples of them: equal ones are the same."""
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(map(is_plain, value)))


def is_same(value: object, other: object) -> bool:
    """Whether two are one object, equal and plain, or tuples of such."""
    if value is other:
        return True
    if type(value) is not type(other):
        return False
    if isinstance(value, tuple) and isinstance(other, tuple):
        return len(value) == len(other) and all(map(is_same, value, other))
    return isinstance(value, PLAIN) and value == other


def _under(table: dict[str, Any], names: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(table.get(name, MISSING) for name in names)
