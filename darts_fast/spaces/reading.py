# SPDX-License-Identifier: Apache-2.0
"""Reading genotypes from text and files; the text is parsed as a syntax tree, never evaluated."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from darts_fast.spaces.genotype import Genotype
from darts_fast.spaces.nasbench201 import ops_from_arch
from darts_fast.spaces.tables import DARTS_OPERATIONS
from darts_fast.spaces.well_known import WELL_KNOWN, well_known

_FIELDS = Genotype._fields


def read_genotype(source: str | Path, name: str | None = None) -> Genotype | str:
    """Read an architecture.

    ``source`` is a path, or text in one of these forms:

    - what the original code prints, ``Genotype(normal=[('sep_conv_3x3', 0), ...],
      normal_concat=range(2, 6), ...)``, alone or in the lines of a log (the last one counts);
    - the nested form of pt.darts, where every node has its own list of two entries;
    - the text of a ``genotypes.py`` with assignments; ``name`` says which one if there are several;
    - JSON, an object with the four fields;
    - a well-known name, such as ``DARTS_V2`` or ``PC-DARTS`` (`darts_fast.spaces.WELL_KNOWN`);
    - a NAS-Bench-201 architecture string, which is returned as it is.

    Args:
        source: a `Path`, or a string: the name of an existing file, else the text itself.
        name: which assignment of a ``genotypes.py``.

    Raises:
        FileNotFoundError: ``source`` is a `Path` that does not exist.
        ValueError: no genotype, or not a possible one; the message says what is wrong.
    """
    text = _text_of(source).strip()
    known = well_known(text) if name is None else None
    if known is not None:
        return known
    if name is None and text.startswith("|"):
        ops_from_arch(text)
        return text
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return _genotype(_last_call(text))

    named = {
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and _is_genotype(statement.value)
    }
    aliases = {
        target.id: statement.value.id
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    if name is not None:
        wanted = aliases.get(name, name)
        if wanted not in named:
            raise ValueError(
                f"read_genotype: name must be one of {', '.join([*named, *aliases])}, got {name!r}"
                if named
                else f"read_genotype: the text assigns no genotype, got name {name!r}"
            )
        return _genotype(named[wanted])
    if len(named) > 1:
        raise ValueError(
            f"read_genotype: the text has several genotypes, name one of {', '.join(named)}"
        )
    expressions = [s.value for s in tree.body if isinstance(s, ast.Expr) and _is_genotype(s.value)]
    found = [*named.values(), *expressions]
    if not found:
        raise ValueError(
            "read_genotype: expected Genotype(...), JSON, a NAS-Bench-201 string or one of "
            f"{', '.join(WELL_KNOWN)}, got {_short(text)}"
        )
    return _genotype(found[-1])


def _text_of(source: str | Path) -> str:
    if isinstance(source, Path):
        return source.read_text(encoding="utf-8")
    try:
        if Path(source).is_file():
            return Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError):
        # Too long for a file name, or with a null character: the text itself.
        return source
    return source


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _is_genotype(node: ast.expr) -> bool:
    if isinstance(node, ast.Dict):
        return True
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return called == "Genotype"


def _last_call(text: str) -> ast.expr:
    """The last complete ``Genotype(...)`` in text that is not Python, such as a log."""
    for match in reversed(list(re.finditer(r"\bGenotype\(", text))):
        depth = 0
        for end in range(match.end() - 1, len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                try:
                    return ast.parse(text[match.start() : end + 1], mode="eval").body
                except SyntaxError:
                    break
    raise ValueError(
        "read_genotype: expected Genotype(...), JSON, a NAS-Bench-201 string or one of "
        f"{', '.join(WELL_KNOWN)}, got {_short(text)}"
    )


def _value(node: ast.expr) -> Any:
    """Literals and ``range(...)`` of integers; nothing else is understood."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        arguments = [_value(argument) for argument in node.args]
        if not node.keywords and all(type(argument) is int for argument in arguments):
            try:
                return range(*arguments)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"read_genotype: {error}, got {_short(ast.unparse(node))}"
                ) from None
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(element) for element in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(
            "read_genotype: a genotype consists of lists, tuples, strings, integers and range(), "
            f"got {_short(ast.unparse(node))}"
        ) from None


def _genotype(node: ast.expr) -> Genotype:
    fields: dict[str, Any] = {}
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                fields[str(key.value)] = _value(value)
    elif isinstance(node, ast.Call):
        fields.update(zip(_FIELDS, (_value(argument) for argument in node.args), strict=False))
        fields.update({k.arg: _value(k.value) for k in node.keywords if k.arg is not None})
    if set(fields) != set(_FIELDS):
        raise ValueError(
            f"read_genotype: a genotype has the fields {', '.join(_FIELDS)}, "
            f"got {', '.join(fields) or 'none of them'}"
        )
    return make_genotype(fields)


def make_genotype(fields: Mapping[str, Any]) -> Genotype:
    """A checked `Genotype` from its four fields; cells may be flat or nested (pt.darts).

    Raises:
        ValueError: an operation is unknown, a state does not exist yet, a node does not have two
            inputs, or an output names no node.
    """
    cells: dict[str, Any] = {}
    for cell_type in ("normal", "reduce"):
        cell = _flat(cell_type, fields[cell_type])
        nodes = len(cell) // 2
        if not cell or len(cell) % 2:
            raise ValueError(
                f"genotype: {cell_type} needs two inputs for every node, got {len(cell)} entries"
            )
        for position, (op, state) in enumerate(cell):
            if op not in DARTS_OPERATIONS:
                raise ValueError(
                    f"genotype: {cell_type} operations must be out of "
                    f"{', '.join(DARTS_OPERATIONS)}, got {op!r}"
                )
            if not 0 <= state < 2 + position // 2:
                raise ValueError(
                    f"genotype: {cell_type} node {2 + position // 2} reads states 0 to "
                    f"{1 + position // 2}, got {state}"
                )
        concat = fields[f"{cell_type}_concat"]
        if (
            not isinstance(concat, (list, tuple, range))
            or not concat
            or any(type(state) is not int or not 2 <= state < 2 + nodes for state in concat)
        ):
            raise ValueError(
                f"genotype: {cell_type}_concat must name nodes 2 to {1 + nodes}, got {concat!r}"
            )
        cells[cell_type] = cell
        cells[f"{cell_type}_concat"] = concat if isinstance(concat, range) else list(concat)
    return Genotype(**cells)


def _flat(cell_type: str, cell: Any) -> list[tuple[str, int]]:
    def is_entry(item: Any) -> bool:
        return (
            isinstance(item, (list, tuple))
            and len(item) == 2
            and isinstance(item[0], str)
            and type(item[1]) is int
        )

    if isinstance(cell, (list, tuple)):
        if all(is_entry(item) for item in cell):
            return [(op, state) for op, state in cell]
        if all(isinstance(node, (list, tuple)) and all(map(is_entry, node)) for node in cell):
            wrong = [len(node) for node in cell if len(node) != 2]
            if wrong:
                raise ValueError(
                    f"genotype: {cell_type} needs two inputs for every node, got {wrong[0]}"
                )
            return [(op, state) for node in cell for op, state in node]
    raise ValueError(
        f"genotype: {cell_type} must be a list of (operation, state), got {_short(repr(cell))}"
    )
