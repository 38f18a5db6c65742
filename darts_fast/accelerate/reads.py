# SPDX-License-Identifier: Apache-2.0
"""What a proof took for granted of a user's code: attributes, globals, shapes of parameters."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from darts_fast import _C
from darts_fast.nn.code import METHODS, Code, code_of, content
from darts_fast.nn.entries import MISSING, Classes, Entries, is_plain, is_same
from darts_fast.nn.watch import INTERNAL, names_read

# How deep to look into lists, dictionaries and objects that attributes hold.
_DEPTH = 3


class Reads:
    """Notices when what the classes of some modules read is no longer what it was.

    Of modules whose class is not torch's, these are all plain attributes; of other values that the
    code names the identity, and what is inside of lists, dictionaries and objects. Tensors with
    decimals are left out: a proof puts random values there (`darts_fast.accelerate.draws`).

    Args: modules, those that a fused method stands in for.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._entries = Entries()
        self._lists: list[tuple[Any, tuple[Any, ...]]] = []
        self._tensors: list[tuple[Tensor, int]] = []
        self._seen: set[int] = set()
        parts = list(modules)
        kinds = dict.fromkeys(type(part) for part in parts)
        self._classes = Classes(kinds)
        for part in parts:
            if not type(part).__module__.startswith("torch."):
                self._add_attributes(part)
        for _, value in self._classes.items():
            if not inspect.isroutine(value) and not inspect.isdatadescriptor(value):
                self._add_inside(value, _DEPTH)
        codes = [code_of(kind) for kind in (*kinds, *self._classes.followed)]
        for code in codes:
            self._add_globals(code)
        self._cells = [(cell, value) for code in codes for cell, value in code.cells]
        self._codes = [pair for code in codes for pair in code.functions.items()]
        self._shaped = [
            part for part in parts if any(x is not None for x in part._parameters.values())
        ]
        self._shapes = [
            tuple(x.shape for x in part._parameters.values() if x is not None)
            for part in self._shaped
        ]

    def same(self) -> bool:
        return (
            _C.same_shapes(self._shaped, self._shapes)
            and self._entries.same()
            and self._classes.same()
            and all(content(cell) is value for cell, value in self._cells)
            and all(function.__code__ is code for function, code in self._codes)
            and all(is_same(tuple(items), before) for items, before in self._lists)
            and all(tensor._version == before for tensor, before in self._tensors)
        )

    def items(self) -> Iterator[tuple[str, object]]:
        """Names and values, in an order that is the same for a copy."""
        yield from self._entries.items()
        yield from self._classes.items()
        for _, value in self._cells:
            yield "", value
        for shapes in self._shapes:
            yield "", tuple(tuple(shape) for shape in shapes)
        for _, values in self._lists:
            for value in values:
                yield "", value

    def _add_attributes(self, part: nn.Module) -> None:
        attributes, read = vars(part), names_read(type(part))
        own = attributes.keys() - INTERNAL - {*METHODS}
        watched = [name for name in sorted(own) if name in read or is_plain(attributes[name])]
        self._entries.add(attributes, (*watched, *(name for name in read if name not in own)))
        for name in watched:
            self._add_inside(attributes[name], _DEPTH)
        for buffer in part._buffers.values():
            self._add_inside(buffer, 0)

    def _add_globals(self, code: Code) -> None:
        for table, name, value in code.globals.values():
            self._entries.add(table, (name,))
            if not isinstance(value, (ModuleType, type, FunctionType)):
                self._add_inside(value, _DEPTH)

    def _add_inside(self, value: Any, depth: int) -> None:
        """What may change in a value without its being replaced."""
        if is_plain(value) or id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                self._tensors.append((value, value._version))
        elif depth and not isinstance(value, (nn.Module, FunctionType, ModuleType, type)):
            self._seen.add(id(value))
            inside: Iterable[Any]
            if isinstance(value, dict):
                inside = value.values()
                self._lists.append((value.values(), tuple(inside)))
            elif isinstance(value, (list, tuple)):
                inside = value
                self._lists.append((value, tuple(inside)))
            elif hasattr(value, "__dict__"):
                inside = vars(value).values()
                self._entries.add(vars(value), sorted(vars(value)))
            else:
                return
            for item in inside:
                self._add_inside(item, depth - 1)


def digest(items: Iterable[tuple[str, object]]) -> str:
    """The same text for values that are the same, also in another process."""
    text = hashlib.sha256()
    for name, value in items:
        text.update(f"{name}={_word(value)};".encode())
    return text.hexdigest()


def _word(value: object) -> str:
    """A value as text that does not depend on where it lies in memory."""
    if is_plain(value):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"({','.join(map(_word, value))})"
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, FunctionType):
        return _code_word(value.__code__)
    if value is MISSING:
        return "?"
    kind = value if isinstance(value, (type, ModuleType)) else type(value)
    return str(getattr(kind, "__qualname__", kind.__name__))


def _code_word(code: CodeType) -> str:
    constants = (
        _code_word(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts
    )
    return f"{code.co_code.hex()}{code.co_names}{','.join(constants)}"
