# SPDX-License-Identifier: Apache-2.0
"""What is found out once about modules, and again when they are no longer the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from torch import nn

from darts_fast import _C
from darts_fast.nn.code import CALL_NAMES, METHODS, code_of
from darts_fast.nn.entries import Classes, Entries, is_plain

# What every module has: its values, its hooks, and whether it trains.
INTERNAL = frozenset(vars(nn.Module()))


def names_read(kind: type) -> dict[str, bool]:
    """Names of attributes that a call of a module of this class may read in the instance; whether
    the class has one of that name, which an attribute of the instance would hide."""
    code = code_of(kind)
    names = code.names - INTERNAL - {*METHODS, *CALL_NAMES, *vars(nn.Module)}
    hiding = {name for name in names if hasattr(kind, name)}
    return {name: name in hiding for name in sorted(hiding | names - code.outside())}


class Watch:
    """Notices when modules, or those below them, are replaced, change their class, get hooks, or
    would compute something else: by a setting that their class reads, such as a stride, by a
    parameter where there was none, or by a class that got another forward.

    Of batch norms settings are not watched: whoever plans with them reads them at every call.

    Args:
        without: modules that may become anything, as long as they stay where they are.
        kinds: classes to watch beside those of the modules.

    Attributes:
        modules: all others, in the order of `Module.modules` for each root.
        settings: of the modules.
        classes: of the modules.
    """

    def __init__(
        self,
        roots: Iterable[nn.Module],
        *,
        without: Collection[nn.Module] = (),
        kinds: Iterable[type] = (),
    ) -> None:
        self._roots = list(roots)
        self.modules = [
            module for root in self._roots for module in _all_modules(root) if module not in without
        ]
        self._types = [type(module) for module in self.modules]
        self._children = [
            list(module._modules.values()) if module._modules else None for module in self.modules
        ]
        self._attributes = [vars(module) for module in self.modules]
        self._seen = _C.WrittenModules(self.modules)
        self.classes = Classes((*self._types, *kinds))
        self.settings = Entries()
        read = {kind: names_read(kind) for kind in dict.fromkeys(self._types)}
        for module in self.modules:
            if type(module) is not nn.BatchNorm2d:
                own, names = vars(module), read[type(module)].items()
                self.settings.add(
                    own, (x for x, hides in names if (is_plain(own[x]) if x in own else hides))
                )
                absent = (name for name, value in module._parameters.items() if value is None)
                self.settings.add(cast(dict[str, Any], module._parameters), absent)

    def same(self, roots: Iterable[nn.Module]) -> bool:
        """Whether these and all modules below are those that were there at the start."""
        return (
            list(roots) == self._roots
            and self._same_modules()
            and self.classes.same()
            and self.settings.same()
        )

    def _same_modules(self) -> bool:
        places = self._seen.written(self.modules)
        if not places:
            return True
        # First: what is written from here on is found next time.
        self._seen.take(self.modules, places)
        modules = [self.modules[i] for i in places]
        types = [self._types[i] for i in places]
        children = [self._children[i] for i in places]
        # Settings are looked up in the dictionaries that were there at the start.
        if _C.same_modules(modules, types, children) and all(
            vars(self.modules[i]) is self._attributes[i] for i in places
        ):
            return True
        self._seen.forget(places)
        return False

    def items(self) -> Iterator[tuple[str, object]]:
        """Classes, and values by name, in an order that is the same for a copy."""
        for kind in self._types:
            yield "", kind
        yield from self.settings.items()
        yield from self.classes.items()

    def untouched(self, *replaced: type) -> bool:
        """Whether calling any of the modules does no more than its class's forward.

        Args: replaced, types of instance attributes `forward` that compute what the class's does.
        """
        return self._seen.untouched(self.modules, replaced)


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
        watch, made = Watch(roots, kinds=[type(owner)]), build()
        store[owner] = (watch, made)
    return made if made is not None and watch.untouched() else None
