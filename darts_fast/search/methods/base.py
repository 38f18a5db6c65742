# SPDX-License-Identifier: Apache-2.0
"""What a search method is: an architecture gradient, a perturbation of the edge weights, and a
schedule of decisions. Loop, data, logging, checkpoints and resuming are the search's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from darts_fast.nn import Supernet, build_supernet
from darts_fast.spaces import Space

if TYPE_CHECKING:  # the configuration names the methods
    from darts_fast.search.config import SearchConfig
    from darts_fast.search.loop import Loop

__all__ = ["Method", "NoOptions"]


@dataclass(frozen=True)
class NoOptions:
    """Of a method without options of its own."""


class Method:
    """Base of all search methods; a method overrides what its paper changes about DARTS.

    In every step the search asks for `gradient`, applies it with `update`, asks for `edge_weights`
    and takes the weight step with them. `begin_epoch` and `end_epoch` are called in the epochs of
    the search, the others in the tuning of a selection as well (``loop.tuning``).

    Args:
        net: the supernet of the search.
        config: of the search.
        options: an instance of the class's ``Options``.

    Attributes:
        name: what ``--method`` takes; ``Options``: a frozen dataclass whose fields, with defaults,
            are flags of the command line (bool, int, float or str; ``metadata={"help": ...}``) and
            keyword arguments of `Search`. It raises ValueError for values out of range.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions

    def __init__(self, net: Supernet, config: SearchConfig, options: Any) -> None:
        self.net = net
        self.config = config
        self.options = options

    @classmethod
    def build_supernet(
        cls, space: str | Space, *, channels: int, num_classes: int, layers: int, options: Any
    ) -> Supernet:
        """The supernet that the method trains, as `darts_fast.nn.build_supernet`."""
        return build_supernet(space, channels=channels, num_classes=num_classes, layers=layers)

    def gradient(self, loop: Loop) -> tuple[float, list[Tensor]] | None:
        """A validation loss and the gradient of every tensor of ``net.arch_parameters()``, or None
        where there is no architecture step now.

        Running statistics do not move inside. The weights must be bitwise as they were afterwards
        (`darts_fast.search.methods.numeric.restored`).
        """
        raise NotImplementedError

    def update(self, loop: Loop, gradients: list[Tensor]) -> None:
        """Move the architecture parameters; default one step of ``loop.arch_optimizer``, Adam.

        It is not called where the loss is not finite.
        """
        for parameter, gradient in zip(self.net.arch_parameters(), gradients, strict=True):
            parameter.grad = gradient
        loop.arch_optimizer.step()

    def edge_weights(self, loop: Loop) -> Mapping[str, Tensor] | None:
        """Edge weights ``[edges, ops]`` by cell type that the weight step takes in place of the
        network's own, as constants; None for none. Random draws come from torch's global generator,
        which all processes of a search have alike.
        """
        return None

    def begin_epoch(self, loop: Loop) -> None:
        """An epoch of the search begins, ``loop.epoch``."""

    def end_epoch(self, loop: Loop) -> None:
        """The steps of ``loop.epoch`` are done: the place for decisions."""

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers, in tensors and plain values (``weights_only=True``)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
