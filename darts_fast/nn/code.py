# SPDX-License-Identifier: Apache-2.0
"""What the code of a module's class reads: names of attributes, and values of its globals.

Found in the compiled functions that a forward reaches, by their names; nothing is run.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from darts_fast import _C

# What Python and `nn.Module` look up to call a module, beside what the module's own code names.
CALL_NAMES = ("__call__", "__getattr__", "__getattribute__", "_call_impl", "_wrapped_call_impl")
METHODS = ("forward", "apply_weights")

_FOREIGN = frozenset((*sys.stdlib_module_names, "darts_fast", "numpy", "torch"))


@dataclass(eq=False)
class Code:
    """What functions read, and all functions that they reach."""

    kind: type
    """The class whose calls begin there."""
    names: set[str] = field(default_factory=set)
    """Attributes, globals and identifiers in quotes, as `getattr` takes them."""
    globals: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = field(default_factory=dict)
    """Table, key and value of each global variable and of each attribute of a Python module."""
    cells: list[tuple[CellType, Any]] = field(default_factory=list)
    """Variables of enclosing functions and what is in them."""
    functions: dict[FunctionType, CodeType] = field(default_factory=dict)
    """With the code that each had."""
    classes: dict[type, int] = field(default_factory=dict)
    """Those named, with their numbers. None of torch, numpy or the standard library."""

    def is_current(self) -> bool:
        """Whether everything that was followed is still there."""
        return (
            all(table.get(name, self) is value for table, name, value in self.globals.values())
            and all(content(cell) is value for cell, value in self.cells)
            and all(function.__code__ is code for function, code in self.functions.items())
            and _C.same_types([*self.classes], [*self.classes.values()])
        )

    def outside(self) -> set[str]:
        """Names that are found elsewhere than in the module."""
        return {name for _, name in self.globals} | {*vars(builtins)}


# Of each class with its number (`_C.type_versions`). Bounded, for processes that make classes
# without end.
_CODES: dict[type, tuple[int, Code]] = {}
_MAX_CODES = 4096


def code_of(kind: type) -> Code:
    """What calls of a module of this class read, as the code is now."""
    version, code = _CODES.get(kind, (0, None))
    now = versions([kind])[0]
    if code is None or now == 0 or version != now or not code.is_current():
        if len(_CODES) >= _MAX_CODES:
            _CODES.clear()
        code = Code(kind)
        for name in METHODS:
            _follow(code, kind, inspect.getattr_static(kind, name, None))
        code.names.update((*CALL_NAMES, *METHODS))
        _CODES[kind] = (now, code)
    return code


def versions(kinds: list[type]) -> list[int]:
    """`_C.type_versions`; classes without a number get one."""
    for kind in kinds:
        getattr(kind, "__call__", None)  # noqa: B004 - a look-up is what gives the number
    return _C.type_versions(kinds)


def content(cell: CellType) -> Any:
    """What is in a variable of an enclosing function, None before it is assigned."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _follow(code: Code, kind: type | None, value: Any) -> None:
    """Adds what a function reads, and what those functions read that it names."""
    for function in _functions(value):
        if function in code.functions:
            continue
        code.functions[function] = function.__code__
        for cell in function.__closure__ or ():
            code.cells.append((cell, content(cell)))
            _enter(code, content(cell), function)
        for name in _names(function.__code__):
            code.names.add(name)
            inherited = None if kind is None else inspect.getattr_static(kind, name, None)
            if inherited is not None and name not in vars(nn.Module):
                _follow(code, kind, inherited)
            if name in function.__globals__:
                _enter(code, _read(code, function.__globals__, name), function)


def _read(code: Code, table: dict[str, Any], name: str) -> Any:
    code.globals[id(table), name] = (table, name, table[name])
    return table[name]


def _enter(code: Code, value: Any, reader: FunctionType) -> None:
    """Follows what a function names: a function, a class, or a module and what is read of it."""
    if isinstance(value, ModuleType):
        for name in _names(reader.__code__):
            if name in vars(value):
                inside = _read(code, vars(value), name)
                if not isinstance(inside, ModuleType):
                    _enter(code, inside, reader)
    elif _is_foreign(value):
        return
    elif isinstance(value, type):
        if value not in code.classes:
            code.classes[value] = versions([value])[0]
            # Modules that are called are watched for themselves.
            for part in vars(value).values() if not issubclass(value, nn.Module) else ():
                _follow(code, value, part)
    else:
        _follow(code, None, value)


def _functions(value: Any) -> Iterator[FunctionType]:
    """The functions written in Python behind what a class or a Python module has under a name."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, functools.partial):
        value = value.func
    while isinstance(value, FunctionType):
        yield value
        value = getattr(value, "__wrapped__", None)


def _is_foreign(value: Any) -> bool:
    """Of torch, numpy, the standard library or this package: it counts, not what it reads."""
    return str(getattr(value, "__module__", None) or "").partition(".")[0] in _FOREIGN


def _names(code: CodeType) -> set[str]:
    """Names in a function and in the functions that are written inside it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            found.add(constant)
    return found
