# SPDX-License-Identifier: Apache-2.0
"""The search methods by name: those of this package, and those that others have registered."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any

from darts_fast.search.methods.balenas import BaLeNAS
from darts_fast.search.methods.base import Method
from darts_fast.search.methods.darts import Blank, Darts, DartsSecondOrder
from darts_fast.search.methods.idarts import IDarts
from darts_fast.search.methods.pc_darts import PCDarts
from darts_fast.search.methods.sdarts import SDARTSADV, SDARTSRS
from darts_fast.search.methods.sgas import SGAS

__all__ = ["GROUP", "METHODS", "method_options", "option_names", "register"]

GROUP = "darts_fast.methods"
BUILT_IN: tuple[type[Method], ...] = (
    Darts,
    DartsSecondOrder,
    Blank,
    PCDarts,
    SDARTSRS,
    SDARTSADV,
    SGAS,
    IDarts,
    BaLeNAS,
)


class Methods(Mapping[str, type[Method]]):
    """Name -> class. Entry points of other packages are loaded when it is first read; one that does
    not load, or takes a name that is taken, is left out with a RuntimeWarning.
    """

    def __init__(self) -> None:
        self._classes = {method.name: method for method in BUILT_IN}
        self._loaded = False

    def __getitem__(self, name: str) -> type[Method]:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def register(self, method: type[Method]) -> type[Method]:
        """Make a method known in this process; returns it, so it may be used as a decorator.

        Raises:
            ValueError: no subclass of `Method`, or the name is another one's.
        """
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise ValueError(f"register: a method must be a subclass of Method, got {method!r}")
        other = self._all().get(method.name)
        if other is not None and other is not method:
            raise ValueError(
                f"register: the name must be free, got {method.name!r} of {other.__qualname__}"
            )
        self._classes[method.name] = method
        return method

    def _all(self) -> dict[str, type[Method]]:
        if not self._loaded:
            self._loaded = True
            for point in entry_points(group=GROUP):
                try:
                    self.register(point.load())
                except Exception as error:  # whatever a foreign package raises
                    warnings.warn(
                        f"the search method {point.name!r} ({point.value}) cannot be used: {error}",
                        RuntimeWarning,
                        stacklevel=2,
                    )
        return self._classes


METHODS = Methods()
register = METHODS.register


def option_names(name: str) -> list[str]:
    """Names of the options of a method, in order; none for a method that is not known."""
    return [option.name for option in fields(METHODS[name].Options)] if name in METHODS else []


def method_options(name: str, values: Mapping[str, Any]) -> Any:
    """The ``Options`` of a method from values by name.

    Raises:
        ValueError: a value that the method does not have, or out of its range.
    """
    names = option_names(name)
    for key in values:
        if key not in names:
            raise ValueError(
                f"method {name}: options must be among {', '.join(names) or 'none'}, got {key}"
            )
    return METHODS[name].Options(**values)
