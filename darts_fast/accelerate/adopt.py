# SPDX-License-Identifier: Apache-2.0
"""A supernet of another code base as one of this package, on the same convolutions and norms."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from darts_fast.accelerate.configuration import FoundCell, find_cells, network_of, refused
from darts_fast.accelerate.forward import stacked
from darts_fast.accelerate.verify import distance_and_norm, model_arguments, unchanged
from darts_fast.evaluation import kept_training
from darts_fast.nn import Network, TinyNetwork

_LEAVES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
# Norm of the difference in parts of the norm: rounding, which a batch norm may enlarge. The edge
# weights may be in single precision where the model is in double.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
# Of edge weights: those of the supernet are a softmax of logarithms.
_WEIGHT_TOLERANCE = 1e-6


def as_supernet(model: nn.Module, batch: Any = True) -> Network | TinyNetwork:
    """A supernet of `darts_fast.nn` that computes what a supernet of another code base computes.

    It is made of the model's own convolutions, batch norms and classifier: whatever trains, moves
    or loads one changes the other. So `darts_fast.selection` works on it: ``select(as_supernet(
    model), ...)``; `removal_scores` takes the model itself. The edge weights that the model gives
    its cells become its alphas (their logarithms) and decisions (rows with a single 1, and the
    edges that a node has dropped); later changes of the model's alphas do not reach it.

    Cells are recognised as by `accelerate`, which need not have been called; names of modules and
    the places of the reduction cells must be those of the DARTS or NAS-Bench-201 code bases. Both
    are run once on a batch in training mode, and must agree; buffers, gradients and the state of
    random numbers are afterwards what they were before.

    Args:
        model: a supernet whose cells are all of one of the two kinds.
        batch: the model's input, as `accelerate` takes it for `verify`; default 4 random images of
            32x32.

    Raises:
        ValueError: the model is not built like a `Network` or a `TinyNetwork`, its weights of an
            edge do not add up to 1, or it computes something else; the message says what differs.
    """
    if isinstance(model, (Network, TinyNetwork)):
        return model
    cells = find_cells(model)
    net = network_of(model, cells)
    _share(net, model)
    arguments = model_arguments(model, batch)
    with unchanged(model), torch.no_grad(), kept_training(model.modules()):
        model.train()
        with _recorded(cells) as tables:
            expected = model(*arguments)
    _take_weights(net, cells, tables)
    shared = set(model.modules())
    for module in net.modules():
        if module not in shared:
            module.training = model.training
    with unchanged(model), torch.no_grad(), kept_training(net.modules()):
        net.train()
        found = net(arguments[0])
    _check(model, found, expected)
    return net


def _share(net: nn.Module, model: nn.Module) -> None:
    """Put the model's modules with parameters or buffers where `net` has such."""
    own = {name: part for name, part in model.named_modules() if type(part) in _LEAVES}
    places = {name: part for name, part in net.named_modules() if type(part) in _LEAVES}
    for name in [*places, *own]:
        if type(own.get(name)) is not type(places.get(name)):
            raise refused(
                f"{name} must be a {type(places.get(name)).__name__}", type(own.get(name)).__name__
            )
    for name, part in places.items():
        if not _fits(part, own[name]):
            raise refused(f"{name} must be {part}", own[name])
        parent, _, leaf = name.rpartition(".")
        net.get_submodule(parent)._modules[leaf] = own[name]


def _fits(wanted: nn.Module, given: nn.Module) -> bool:
    """Whether they say the same of themselves, settings of batch norms aside, which are read."""
    if isinstance(wanted, nn.BatchNorm2d) and isinstance(given, nn.BatchNorm2d):
        return wanted.num_features == given.num_features
    return repr(wanted) == repr(given)


@contextmanager
def _recorded(cells: Sequence[FoundCell]) -> Iterator[dict[str, list[Tensor]]]:
    """The weights that calls inside give every cell."""
    found: dict[str, list[Tensor]] = {cell.name: [] for cell in cells}

    def look(cell: FoundCell) -> Any:
        signature = inspect.signature(type(cell.module).forward)

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            values = [*signature.bind(module, *args, **kwargs).arguments.values()]
            given, like = values[1 + cell.structure.first_weights], torch.empty(0).double()
            table = given if isinstance(given, Tensor) else stacked(given, like)
            if table is None or table.shape != cell.structure.shape:
                raise refused(
                    f"weights of {cell.name} must have shape {list(cell.structure.shape)}",
                    type(given).__name__ if table is None else list(table.shape),
                )
            found[cell.name].append(table.detach())

        return hook

    with ExitStack() as stack:
        for cell in cells:
            hook = cell.module.register_forward_pre_hook(look(cell), with_kwargs=True)
            stack.callback(hook.remove)
        yield found


def _take_weights(
    net: Network | TinyNetwork, cells: Sequence[FoundCell], tables: dict[str, list[Tensor]]
) -> None:
    """Make the edge weights of `net` those that the cells got."""
    parameter = next(net.parameters())
    given: dict[str, Tensor] = {}
    for cell in cells:
        if len(tables[cell.name]) != 1:
            raise refused(f"{cell.name} must run once", f"{len(tables[cell.name])} times")
        table = tables[cell.name][0].to(parameter.device)
        if not torch.equal(given.setdefault(cell.cell_type, table), table):
            raise refused(
                f"all {cell.cell_type} cells must get the same weights", f"others in {cell.name}"
            )
    for cell_type, name in net._alpha_names.items():
        wanted = given.get(cell_type)
        shape = (net.space.num_edges, net.space.num_ops)
        alpha = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        if wanted is not None:
            _decide(net, cell_type, wanted)
            positive = (wanted > 0).all(1)
            alpha[positive] = wanted[positive].double().log().to(alpha.dtype)
        net.register_parameter(name, nn.Parameter(alpha))
        if wanted is None:
            continue
        difference = (net._edge_weights(cell_type).detach() - wanted).abs().max().item()
        if not difference <= _WEIGHT_TOLERANCE:
            raise refused(
                f"weights of every {cell_type} edge must be positive and add up to 1, be a single "
                "1, or be zeros where a node keeps two edges",
                f"a difference of {difference:.3g} to such weights",
            )


def _decide(net: Network | TinyNetwork, cell_type: str, table: Tensor) -> None:
    """Decisions of a table: rows with a single 1, nodes that keep two edges."""
    rows = table.tolist()
    for edge, row in enumerate(rows):
        if sorted(row)[-1] == 1.0 and row.count(0.0) == len(row) - 1 and len(row) > 1:
            net.projection.project_op(cell_type, edge, row.index(1.0))
    for node in net.projection.undecided_nodes(cell_type):
        keep = [edge for edge in net.space.node_edges[node] if any(rows[edge])]
        if len(keep) == 2:
            net.projection.project_edges(cell_type, node, keep)


def _check(model: nn.Module, found: Tensor, expected: Any) -> None:
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        got = list(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise refused(f"{type(model).__name__} must give logits {list(found.shape)}", got)
    distance, norm = distance_and_norm(found, expected)
    if not distance <= _TOLERANCES.get(expected.dtype, 0.1) * norm:
        raise refused(
            f"{type(model).__name__} must compute in training mode what its cells, stem and "
            "classifier say (without drop-path)",
            f"a difference of norm {distance:.3g} to a norm of {norm:.3g}",
        )
