# SPDX-License-Identifier: Apache-2.0
"""What is found out once about modules, and again when they are no longer the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from darts_fast import _C


class Watch:
    """Notices when modules, or those below them, are replaced, change their class, or get hooks.

    It compares identities only: a cell has hundreds of modules and is looked at in every forward.

    Attributes:
        modules: all of them, in the order of `Module.modules` for each root.
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        self._roots = list(roots)
        self.modules = [module for root in self._roots for module in _all_modules(root)]
        self._types = [type(module) for module in self.modules]
        self._children = [
            list(module._modules.values()) if module._modules else None for module in self.modules
        ]

    def same(self, roots: Iterable[nn.Module]) -> bool:
        """Whether these and all modules below are those that were there at the start."""
        return list(roots) == self._roots and _C.same_modules(
            self.modules, self._types, self._children
        )

    def untouched(self, *replaced: type) -> bool:
        """Whether calling any of the modules does no more than its class's forward.

        Args: replaced, types of instance attributes `forward` that compute what the class's does.
        """
        return _C.untouched_modules(self.modules, replaced)


def _all_modules(root: nn.Module) -> list[nn.Module]:
    """`root.modules()` without its recursion, which passes a module through every level."""
    found: dict[nn.Module, None] = {}
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting.extend(reversed(children_of(module)))
    return list(found)


_Made = TypeVar("_Made")
Store = WeakKeyDictionary[nn.Module, tuple[Watch, _Made | None]]


def children_of(module: nn.Module) -> list[nn.Module]:
    """What stands right below a module, as `Module.children`, with repetitions."""
    return [child for child in module._modules.values() if child is not None]


def current(
    store: Store[_Made],
    owner: nn.Module,
    roots: list[nn.Module],
    build: Callable[[], _Made | None],
) -> _Made | None:
    """What `build` makes of modules: once, and again when they are replaced.

    Args: store, where it is kept for `owner`, which must not be below itself among the `roots`, or
    it would never be freed. Returns None if there is none, or while a module has hooks.
    """
    watch, made = store.get(owner, (None, None))
    if watch is None or not watch.same(roots):
        watch, made = Watch(roots), build()
        store[owner] = (watch, made)
    return made if made is not None and watch.untouched() else None
