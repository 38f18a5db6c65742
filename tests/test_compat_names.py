# SPDX-License-Identifier: Apache-2.0
"""Every public name of the originals is there, with its parameters and attributes."""

from __future__ import annotations

import importlib
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compat_cases import ARGS, names
from original_names import ATTRIBUTES, TABLE, entries
from torch import nn

from darts_fast.compat import darts, darts_pt, nasbench201, pc_darts

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compat.md"


def supernet(kind: Any, C: int = 2) -> Any:
    return kind(C, 5, 3, nn.CrossEntropyLoss(), 1, 1)


def supernet_of_pt(kind: Any) -> Any:
    space = darts_pt.spaces_dict["s2"]
    return kind(2, 5, 3, nn.CrossEntropyLoss(), space, ARGS)


def tiny(kind: Any) -> Any:
    space = nasbench201.cell_operations.NAS_BENCH_201
    return kind(2, 1, 4, 5, nn.CrossEntropyLoss(), space, ARGS)


def derived() -> Any:
    return darts.NetworkCIFAR(2, 5, 3, True, darts.genotypes.DARTS)


BUILDERS: dict[str, Callable[[], Any]] = {
    "darts": lambda: supernet(darts.Network),
    "darts cell": lambda: supernet(darts.Network).cells[0],
    "darts architect": lambda: darts.Architect(supernet(darts.Network), ARGS),
    "derived": derived,
    "derived cell": lambda: derived().cells[0],
    "pc_darts": lambda: supernet(pc_darts.Network, 4),
    "pc_darts edge": lambda: pc_darts.model_search_imagenet.MixedOp(4, 1),
    "pc_darts imagenet": lambda: supernet(pc_darts.model_search_imagenet.Network),
    "darts_pt": lambda: supernet_of_pt(darts_pt.Network),
    "darts_pt proj": lambda: supernet_of_pt(darts_pt.DartsNetworkProj),
    "darts_pt sdarts proj": lambda: supernet_of_pt(darts_pt.SDartsNetworkProj),
    "darts_pt architect": lambda: darts_pt.Architect(supernet_of_pt(darts_pt.Network), ARGS),
    "nasbench201": lambda: tiny(nasbench201.TinyNetwork),
    "nasbench201 proj": lambda: tiny(nasbench201.TinyNetworkDartsProj),
    "nasbench201 cell": lambda: tiny(nasbench201.TinyNetwork).cells[0],
    "nasbench201 block": lambda: tiny(nasbench201.TinyNetwork).cells[1],
    "eigenvalues": lambda: darts_pt.utils.EVLocalAvg(),
}


@pytest.mark.parametrize("module", TABLE)
def test_names_and_parameters(module: str) -> None:
    """Imported by the module's own path, as the line of a script is changed to."""
    found = importlib.import_module(f"darts_fast.compat.{module}")
    for name, parameters in entries(TABLE[module]):
        value = operator.attrgetter(name)(found)
        if parameters is None:
            continue
        own = names(value)
        assert len(own) >= len(parameters), name
        expected = [mine if p == "_" else p for p, mine in zip(parameters, own, strict=False)]
        assert own[: len(expected)] == expected, name


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attributes(kind: str) -> None:
    built = BUILDERS[kind]()
    assert [name for name in ATTRIBUTES[kind].split() if not hasattr(built, name)] == []


@pytest.mark.skipif(not PAGE.exists(), reason="needs the checkout")
def test_the_import_lines_of_the_page_work() -> None:
    rows = re.findall(r"^\| .* \| `((?:from|import) darts_fast\..*?)`", PAGE.read_text(), re.M)
    assert len(rows) > 20
    for line in rows:
        exec(line, {})


def test_the_table_has_every_module() -> None:
    for package in (darts, darts_pt, nasbench201, pc_darts):
        prefix = package.__name__.removeprefix("darts_fast.compat.")
        own = {key.split(".")[1] for key in TABLE if key.startswith(f"{prefix}.")}
        for name in package.__all__:
            if type(getattr(package, name)) is type(importlib):
                assert name in own
