# SPDX-License-Identifier: Apache-2.0
"""Architectures of cells in the form of NAS-Bench-201 (Dong and Yang, ICLR 2020)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

__all__ = [
    "AllConv1x1_CODE",
    "AllConv3x3_CODE",
    "AllFull_CODE",
    "AllIdentity_CODE",
    "ResNet_CODE",
    "Structure",
    "architectures",
    "get_combination",
]

_Node = tuple[tuple[str, int], ...]


def get_combination(space: Sequence[str], num: int) -> list[list[tuple[str, int]]]:
    """Every way to give the inputs 0 to num - 1 one operation each, the last changing fastest."""
    return [list(zip(ops, range(num), strict=True)) for ops in itertools.product(space, repeat=num)]


class Structure:
    """A cell: for each node after the input its (operation, node it reads) pairs.

    `Structure.str2structure` and `tostr` read and write ``|op~0|+|op~0|op~1|+...``. Raises
    ValueError for a node without inputs, or one that reads itself or a later one.
    """

    def __init__(self, genotype: Sequence[Iterable[tuple[str, int]]]) -> None:
        self.nodes: list[_Node] = [tuple((op, source) for op, source in node) for node in genotype]
        self.node_num = len(self.nodes) + 1
        self.node_N = [len(node) for node in self.nodes]
        for number, node in enumerate(self.nodes):
            if not node or any(not 0 <= source <= number for _, source in node):
                raise ValueError(
                    f"Structure: node {number + 1} must read some of 0 to {number}, got {node}"
                )

    def tolist(self, remove_str: str | None) -> tuple[list[_Node] | None, bool]:
        """(the nodes in order of their inputs without the operation `remove_str`, True), or
        (None, False) if a node then has no input.
        """
        kept = [
            tuple(sorted((p for p in node if p[0] != remove_str), key=lambda p: (p[1], p[0])))
            for node in self.nodes
        ]
        return (kept, True) if all(kept) else (None, False)

    def node(self, index: int) -> _Node:
        """The inputs of a node, the first one after the input being 0."""
        return self.nodes[index]

    def tostr(self) -> str:
        """``|op~0|+|op~0|op~1|+...``"""
        return "+".join(
            "|" + "|".join(f"{op}~{source}" for op, source in node) + "|" for node in self.nodes
        )

    def check_valid(self) -> bool:
        """Whether the output depends on the input."""
        reached = [True]
        for node in self.nodes:
            reached.append(any(op != "none" and reached[source] for op, source in node))
        return reached[-1]

    def check_valid_op(self, op_names: Sequence[str]) -> bool:
        """Whether all operations are of these."""
        return all(op in op_names for node in self.nodes for op, _ in node)

    def to_unique_str(self, consider_zero: bool | None = False) -> str:
        """A name that cells share which differ in the order of inputs and in skip connections.

        consider_zero: also write what is zero as ``#``; None treats skips as any operation.
        """
        names = ["0"]
        for node in self.nodes:
            terms = []
            for op, source in node:
                if consider_zero and (op == "none" or names[source] == "#"):
                    terms.append("#")
                elif op == "skip_connect" and consider_zero is not None:
                    terms.append(names[source])
                else:
                    terms.append(f"({names[source]})@{op}")
            names.append("+".join(sorted(terms)))
        return names[-1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.node_num} nodes with {self.tostr()})"

    def __len__(self) -> int:
        return len(self.nodes) + 1

    def __getitem__(self, index: int) -> _Node:
        return self.nodes[index]

    @staticmethod
    def str2structure(xstr: str) -> Structure:
        """Read ``|op~0|+|op~0|op~1|+...``. Raises ValueError for another form."""
        return Structure(_read(xstr))

    @staticmethod
    def str2fullstructure(xstr: str, default_name: str = "none") -> Structure:
        """As `str2structure`, with the operation `default_name` on the inputs that a node does not
        name, and inputs in order.

        A node of number i, the first being 0, is completed by the inputs 0 to i - 1, as in the
        original: not by the node just before it.
        """
        nodes = []
        for number, pairs in enumerate(_read(xstr)):
            named = {source for _, source in pairs}
            missing = [(default_name, source) for source in range(number) if source not in named]
            nodes.append(sorted(pairs + missing, key=lambda pair: (pair[1], pair[0])))
        return Structure(nodes)

    @staticmethod
    def gen_all(
        search_space: Sequence[str], num: int, return_ori: bool
    ) -> list[Structure] | list[list[_Node]]:
        """Every cell of `num` nodes in which each reads all earlier ones; with return_ori as lists.

        Raises ValueError for fewer than two nodes.
        """
        if num < 2:
            raise ValueError(f"Structure: a cell must have at least 2 nodes, got {num}")
        choices = [
            [tuple(pairs) for pairs in get_combination(search_space, node)]
            for node in range(1, num)
        ]
        cells = [list(nodes) for nodes in itertools.product(*choices)]
        return cells if return_ori else [Structure(nodes) for nodes in cells]


def _read(text: str) -> list[list[tuple[str, int]]]:
    """The (operation, node it reads) pairs of every node."""
    nodes = []
    for part in text.strip().split("+"):
        pairs = [pair.split("~") for pair in part.strip().split("|") if pair]
        if any(len(pair) != 2 or not pair[1].isdigit() for pair in pairs):
            raise ValueError(f"Structure: inputs must read |op~0|..., got {part!r}")
        nodes.append([(op, int(source)) for op, source in pairs])
    return nodes


def _all_of(*ops: str) -> Structure:
    """Four nodes, each of which reads all earlier ones by all these operations."""
    return Structure(
        [[(op, source) for source in range(node) for op in ops] for node in range(1, 4)]
    )


ResNet_CODE = Structure(
    [
        [("nor_conv_3x3", 0)],
        [("nor_conv_3x3", 1)],
        [("skip_connect", 0), ("skip_connect", 2)],
    ]
)
AllConv3x3_CODE = _all_of("nor_conv_3x3")
AllConv1x1_CODE = _all_of("nor_conv_1x1")
AllIdentity_CODE = _all_of("skip_connect")
AllFull_CODE = _all_of("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

architectures = {
    "resnet": ResNet_CODE,
    "all_c3x3": AllConv3x3_CODE,
    "all_c1x1": AllConv1x1_CODE,
    "all_idnt": AllIdentity_CODE,
    "all_full": AllFull_CODE,
}
