# SPDX-License-Identifier: Apache-2.0
"""The flags of the search methods, made from their ``Options``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Any

import click

from darts_fast.cli.options import Decorator
from darts_fast.search.methods import METHODS

__all__ = ["method_flags"]

_KINDS: Mapping[str, Any] = {"bool": bool, "int": int, "float": float, "str": str}


def method_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """One flag per option of any method; those that share a name share it. A flag that is not given
    is None: the method's default. An option that is another flag's name, or differs in type between
    methods, is left out with a RuntimeWarning.
    """
    owners: dict[str, list[str]] = {}
    options: dict[str, Field[Any]] = {}
    taken = {option.name for option in getattr(command, "__click_params__", ())}
    for method, kind in METHODS.items():
        for option in fields(kind.Options):
            known = options.setdefault(option.name, option)
            if option.name in taken or _kind(known) is not _kind(option):
                warnings.warn(
                    f"the option {option.name!r} of search method {method!r} cannot be a flag: "
                    "the name is taken",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            owners.setdefault(option.name, []).append(method)
    for name in reversed(owners):
        command = _flag(options[name], owners[name])(command)
    return command


def _kind(option: Field[Any]) -> Any:
    """Type of an option; annotations are text."""
    name = option.type if isinstance(option.type, str) else option.type.__name__
    return _KINDS[name]


def _flag(option: Field[Any], methods: list[str]) -> Decorator:
    choices = option.metadata.get("choices")
    kind = _kind(option)
    shown = f"--{option.name}/--no_{option.name}" if kind is bool else f"--{option.name}"
    return click.option(
        shown,
        type=click.Choice(choices) if choices else kind,
        default=None,
        help=f"{option.metadata.get('help', '')} Of {', '.join(methods)}.  "
        f"[default: {option.default}]".lstrip(),
    )
