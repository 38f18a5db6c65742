# SPDX-License-Identifier: Apache-2.0
"""What all supernets share: architecture parameters, edge weights, decisions, checkpoints.

The alphas are `nn.Parameter`s with the originals' treatment: they are in `named_parameters()`, so
`.to()`, `.double()`, deepcopy, pickle and DistributedDataParallel see them, but `parameters()`
leaves them out (an optimizer or a gradient norm over the weights must not touch them; `zero_grad()`
and `requires_grad_()` do not either), and `state_dict()` has no keys for them. A wrapper module
does not know that rule: give an optimizer `net.parameters()`, never those of a wrapper around it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from darts_fast.nn.mixed_op import check_weights
from darts_fast.nn.projection import Projection
from darts_fast.spaces import Genotype, Space

INITIAL_STD = 1e-3

_Forward = TypeVar("_Forward", bound=Callable[..., Tensor])


def renamed_forward(forward: _Forward) -> _Forward:
    """Mark a forward of a subclass as `Supernet.forward` under other names of its arguments.

    What knows how to run a supernet in parts may then do so in place of calling it.
    """
    # The function itself: a wrapper that copies its attributes is another function.
    vars(forward)["_renames"] = forward
    return forward


def is_base_forward(forward: Callable[..., Any]) -> bool:
    """Whether a forward is `Supernet.forward`, or marked as it by `renamed_forward`."""
    return forward is Supernet.forward or getattr(forward, "_renames", None) is forward


class Supernet(nn.Module):
    """Base of `Network` and `TinyNetwork`.

    A subclass calls `_register_alphas` at the end of its constructor (after its weights, as the
    originals draw their random numbers), sets `_halvings` and implements `_features`.

    Args: space; criterion, the loss that `_loss` applies, default cross entropy.
    """

    global_pooling: nn.Module
    classifier: nn.Module
    # How many times in a row the network halves height and width.
    _halvings: int
    _zero: str

    def __init__(self, space: Space, criterion: nn.Module | None) -> None:
        super().__init__()
        self.space = space
        self.projection = Projection(space)
        self._criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        self._alpha_names: dict[str, str] = {}

    def _register_alphas(self, names: Mapping[str, str]) -> None:
        """Draw alphas [edges, ops]; names: cell type -> attribute."""
        for cell_type in self.space.cell_types:
            self._register_architecture(
                names[cell_type], (self.space.num_edges, self.space.num_ops)
            )
        self._alpha_names = dict(names)

    def _register_architecture(self, name: str, shape: tuple[int, ...]) -> None:
        """Draw an architecture parameter from 1e-3 * N(0, 1)."""
        self.register_parameter(name, nn.Parameter(INITIAL_STD * torch.randn(shape)))

    def _architecture(self) -> dict[str, nn.Parameter]:
        """The architecture parameters by the names they have in a `full_state_dict`."""
        return self.alpha_tables()

    def _architecture_names(self) -> list[str]:
        """Their names as attributes."""
        return list(self._alpha_names.values())

    def _features(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """x [N, 3, H, W] and weights of every cell type -> the last map [N, C, H', W']."""
        raise NotImplementedError

    def new(self) -> Supernet:
        """A freshly initialised network of the same configuration with these alphas, decisions,
        dtype and device."""
        raise NotImplementedError

    @property
    def zero_rule(self) -> str:
        """What an edge weight of exactly 0 means (see `mixed_op`): "skip" or "multiply"."""
        return self._zero

    def alpha_tables(self) -> dict[str, nn.Parameter]:
        """The alphas, [edges, ops], of each cell type in the order of `space.cell_types`."""
        return {name: getattr(self, self._alpha_names[name]) for name in self.space.cell_types}

    def arch_parameters(self) -> list[nn.Parameter]:
        """All architecture parameters: the alphas, and what a subclass has beside them."""
        return list(self.alpha_tables().values())

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The weights: every parameter but the alphas (see the module)."""
        alphas = {id(alpha) for alpha in self.arch_parameters()}
        return (p for p in super().parameters(recurse) if id(p) not in alphas)

    def edge_weights(self) -> dict[str, Tensor]:
        """For each cell type softmax(alpha), [edges, ops], with decided rows replaced.

        A row fixed to an operation is one-hot, a dropped row is zeros; the gradient of their
        alphas is exactly 0.
        """
        return {name: self._edge_weights(name) for name in self.space.cell_types}

    def _relaxed(self, cell_type: str) -> Tensor:
        """The weights that the alphas of a cell type stand for, [edges, ops], undecided."""
        alpha: Tensor = getattr(self, self._alpha_names[cell_type])
        return alpha.softmax(dim=-1)

    def _edge_weights(self, cell_type: str) -> Tensor:
        return self.projection.apply(cell_type, self._relaxed(cell_type))

    def check_image_size(self, h: int, w: int) -> None:
        """Raise ValueError unless h and w are even at each reduction of this network."""
        unit = 2**self._halvings
        if h < unit or w < unit or h % unit or w % unit:
            raise ValueError(
                f"{type(self).__name__}: height and width must be even at each of the "
                f"{self._halvings} reductions, that is multiples of {unit}, got {h}x{w}"
            )

    def forward(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Images [N, 3, H, W] -> logits [N, classes].

        Args: weights, cell type -> [edges, ops], used as they are in place of `edge_weights()`;
        cell types that are missing use their own. Raises ValueError for an image size that does
        not fit, an unknown cell type or a wrong shape, TypeError for weights that are no tensor.
        """
        name = type(self).__name__
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"{name}: images must be [N, 3, H, W], got {list(x.shape)}")
        self.check_image_size(x.shape[2], x.shape[3])
        given = {} if weights is None else weights
        for cell_type, table in given.items():
            if cell_type not in self.space.cell_types:
                raise ValueError(
                    f"{name}: weights must be for {', '.join(self.space.cell_types)}, "
                    f"got {cell_type!r}"
                )
            check_weights(f"{name} {cell_type}", table, (self.space.num_edges, self.space.num_ops))
        # Alphas may live on another device than a replica of the weights.
        used = {
            cell_type: (
                given[cell_type] if cell_type in given else self._edge_weights(cell_type)
            ).to(x.device)
            for cell_type in self.space.cell_types
        }
        features = self.global_pooling(self._features(x, used))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits

    def _loss(self, x: Tensor, target: Tensor) -> Tensor:
        """The criterion of the logits of x; the name is the originals'."""
        loss: Tensor = self._criterion(self(x), target)
        return loss

    def genotype_of(self, weights: Mapping[str, Tensor]) -> Genotype | str:
        """The architecture that edge weights stand for (`Space.genotype`)."""
        return self.space.genotype(self.strengths(weights))

    def strengths(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What a genotype ranks operations and edges by: here the edge weights themselves."""
        return weights

    def genotype(self) -> Genotype | str:
        """The architecture that the present edge weights stand for."""
        with torch.no_grad():
            return self.genotype_of(self.edge_weights())

    def full_state_dict(self) -> dict[str, Any]:
        """Weights, alphas and decisions; saved, it loads with `weights_only=True`.

        Like those of `state_dict()` the tensors are the network's own, not copies.
        """
        return {
            "space": self.space.name,
            "state_dict": self.state_dict(),
            "alphas": {
                name: parameter.detach() for name, parameter in self._architecture().items()
            },
            "projection": self.projection.state_dict(),
        }

    def load_full_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `full_state_dict()` gave, strictly.

        Raises ValueError if it is incomplete, of another space, or its alphas or decisions do not
        fit (nothing is loaded then), RuntimeError as `load_state_dict` does.
        """
        name = type(self).__name__
        parts = ("space", "state_dict", "alphas", "projection")
        if not {*parts} <= {*state}:
            raise ValueError(f"{name}: state must have {', '.join(parts)}, got {', '.join(state)}")
        if state["space"] != self.space.name:
            raise ValueError(
                f"{name}: state must belong to space {self.space.name!r}, got {state['space']!r}"
            )
        alphas = self._architecture()
        for cell_type, alpha in alphas.items():
            loaded = state["alphas"].get(cell_type)
            if loaded is None or loaded.shape != alpha.shape:
                got = None if loaded is None else list(loaded.shape)
                raise ValueError(
                    f"{name}: state must have {cell_type} alphas of shape {list(alpha.shape)}, "
                    f"got {got}"
                )
        projection = Projection(self.space)
        projection.load_state_dict(state["projection"])
        self.load_state_dict(state["state_dict"])
        with torch.no_grad():
            for cell_type, alpha in alphas.items():
                alpha.copy_(state["alphas"][cell_type])
        self.projection.load_state_dict(state["projection"])

    def _save_to_state_dict(
        self, destination: OrderedDict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._architecture_names():
            destination.pop(prefix + name, None)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        missing: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        alphas = {prefix + name for name in self._architecture_names()}
        missing_keys.extend(key for key in missing if key not in alphas)

    def _copy_architecture_to(self, other: Supernet) -> None:
        """Give `other`, a network of the same configuration, this one's alphas, decisions, dtype
        and device."""
        own = self.arch_parameters()
        other.to(own[0])
        with torch.no_grad():
            for target, source in zip(other.arch_parameters(), own, strict=True):
                target.copy_(source)
        other.projection.load_state_dict(self.projection.state_dict())
