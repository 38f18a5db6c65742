# SPDX-License-Identifier: Apache-2.0
"""Genotypes as text: what the originals print, what people have in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from darts_fast.spaces import (
    DARTS_V1,
    DARTS_V2,
    Genotype,
    arch_from_index,
    get_space,
    make_genotype,
    random_genotype,
    read_genotype,
    write_genotype,
)

# As the original code logs it: the concatenation is a range object.
PRINTED = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)
RANGED = DARTS_V2._replace(normal_concat=range(2, 6), reduce_concat=range(2, 6))


def test_write_prints_as_the_originals_do() -> None:
    assert write_genotype(RANGED) == PRINTED
    assert write_genotype(DARTS_V2) == PRINTED.replace("range(2, 6)", "[2, 3, 4, 5]")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["darts", "s1", "s4"])
def test_what_is_written_is_read_back(name: str, seed: int) -> None:
    genotype = random_genotype(get_space(name), torch.Generator().manual_seed(seed))
    assert isinstance(genotype, Genotype)
    read = read_genotype(write_genotype(genotype))
    assert read == genotype
    assert isinstance(read, Genotype)
    assert read.normal_concat == range(2, 6)


def test_reads_what_the_originals_print() -> None:
    assert read_genotype(PRINTED) == RANGED
    assert read_genotype(f"  {PRINTED}\n") == RANGED
    assert read_genotype(PRINTED.replace("Genotype(", "genotypes.Genotype(")) == RANGED


def test_positional_fields_are_read() -> None:
    text = f"Genotype({DARTS_V1.normal}, range(2, 6), {DARTS_V1.reduce}, [2, 3])"
    assert read_genotype(text) == Genotype(DARTS_V1.normal, range(2, 6), DARTS_V1.reduce, [2, 3])


def test_reads_the_nested_form() -> None:
    def nested(cell: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
        return [cell[i : i + 2] for i in range(0, len(cell), 2)]

    text = repr(RANGED._replace(normal=nested(RANGED.normal), reduce=nested(RANGED.reduce)))
    assert "[[(" in text
    assert read_genotype(text) == RANGED


def test_reads_json() -> None:
    text = json.dumps(DARTS_V2._asdict(), indent=2)
    assert read_genotype(text) == DARTS_V2


def test_reads_well_known_names() -> None:
    assert read_genotype("DARTS_V1") is DARTS_V1
    assert read_genotype("DARTS_V2") is read_genotype("DARTS") is DARTS_V2
    assert [op for op, _ in DARTS_V1.normal].count("skip_connect") == 3
    assert ("dil_conv_3x3", 2) in DARTS_V2.normal


def test_reads_the_last_genotype_of_a_log() -> None:
    other = write_genotype(DARTS_V1)
    log = (
        f"11/24 05:53:01 AM epoch 0 lr 2.5e-02\n11/24 05:53:02 AM genotype = {other}\n"
        f"11/24 05:59:02 AM genotype = {PRINTED}\n11/24 06:01:02 AM train_acc 91.2 Genotype(cut"
    )
    assert read_genotype(log) == RANGED


MODULE = f"""
from collections import namedtuple
Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')
PRIMITIVES = ['none', 'skip_connect']
FIRST = {write_genotype(DARTS_V1)}
SECOND = {PRINTED}
BEST = SECOND
"""


def test_reads_a_module_of_genotypes(tmp_path: Path) -> None:
    path = tmp_path / "genotypes.py"
    path.write_text(MODULE, encoding="utf-8")
    for source in (path, str(path), MODULE):
        assert read_genotype(source, "FIRST") == DARTS_V1
        assert read_genotype(source, "SECOND") == RANGED
        assert read_genotype(source, name="BEST") == RANGED
    with pytest.raises(ValueError, match="one of FIRST, SECOND, BEST, got 'THIRD'"):
        read_genotype(path, "THIRD")
    with pytest.raises(ValueError, match="several genotypes, name one of FIRST, SECOND"):
        read_genotype(path)
    with pytest.raises(ValueError, match="assigns no genotype, got name 'FIRST'"):
        read_genotype("x = 3", "FIRST")
    assert read_genotype(f"ONLY = {PRINTED}") == RANGED


def test_reads_files_and_architecture_strings(tmp_path: Path) -> None:
    path = tmp_path / "genotype.txt"
    path.write_text(PRINTED + "\n", encoding="utf-8")
    assert read_genotype(path) == read_genotype(str(path)) == RANGED
    arch = arch_from_index(1462)
    path.write_text(arch + "\n", encoding="utf-8")
    assert read_genotype(path) == read_genotype(arch) == arch
    with pytest.raises(FileNotFoundError):
        read_genotype(tmp_path / "missing.txt")


def test_nothing_is_evaluated(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    text = PRINTED.replace("range(2, 6)", f"__import__('pathlib').Path({str(victim)!r}).touch()", 1)
    with pytest.raises(ValueError, match=r"lists, tuples, strings, integers and range\(\), got"):
        read_genotype(text)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected Genotype\(\.\.\.\), JSON, .* DARTS_V1, DARTS_V2, DARTS, .*, got ''"),
        ("DARTS_V9", r"expected Genotype\(\.\.\.\), .* got 'DARTS_V9'"),
        ("no such file.txt", r"expected Genotype\(\.\.\.\), .* got 'no such file.txt'"),
        ("Genotype(normal=[", r"expected Genotype\(\.\.\.\), .* got 'Genotype\(normal=\['"),
        ("|nor_conv_3x3~0|", "an architecture must read .* got"),
        ("Genotype(normal=[])", "the fields normal, .*, got normal$"),
        ("{}", "the fields normal, .*, got none of them"),
        ('{"normal": [], "steps": 4}', "the fields normal, .*, got normal, steps"),
        (PRINTED.replace("range(2, 6)", "range(2, 'a')", 1), "integers and range"),
        (PRINTED.replace("range(2, 6)", "range(2, 6, 0)", 1), "must not be zero, got"),
        (PRINTED.replace("range(2, 6)", "sum", 1), "integers and range"),
    ],
)
def test_text_that_is_no_genotype_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_genotype(text)


GOOD = DARTS_V2._asdict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normal": [("sep_conv_9x9", 0), ("noise", 1)]}, "must be out of .*, got 'sep_conv_9x9'"),
        ({"normal": [("noise", 0), ("noise", 2)]}, "normal node 2 reads states 0 to 1, got 2"),
        ({"reduce": [("noise", 0), ("noise", -1)]}, "reduce node 2 reads states 0 to 1, got -1"),
        ({"normal": [("noise", 0)]}, "two inputs for every node, got 1 entries"),
        ({"normal": []}, "two inputs for every node, got 0 entries"),
        ({"normal": [[("noise", 0)], [("noise", 0), ("noise", 1)]]}, "for every node, got 1$"),
        ({"normal": "skip"}, r"must be a list of \(operation, state\), got \"'skip'\""),
        ({"normal": [("noise", 0), ("noise", "1")]}, "must be a list of"),
        ({"normal": [("noise", 0), ("noise", True)]}, "must be a list of"),
        ({"normal_concat": [2, 6]}, r"must name nodes 2 to 5, got \[2, 6\]"),
        ({"reduce_concat": range(1, 5)}, r"must name nodes 2 to 5, got range\(1, 5\)"),
        ({"reduce_concat": []}, r"must name nodes 2 to 5, got \[\]"),
        ({"reduce_concat": 4}, "must name nodes 2 to 5, got 4"),
    ],
)
def test_impossible_genotypes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_genotype({**GOOD, **change})


def test_cells_may_have_other_numbers_of_nodes_and_read_a_state_twice() -> None:
    genotype = make_genotype(
        {
            "normal": [("avg_pool_3x3", 0), ("avg_pool_3x3", 0)],
            "normal_concat": (2,),
            "reduce": [("conv_7x1_1x7", 0), ("noise", 1), ("sep_conv_7x7", 2), ("none", 2)],
            "reduce_concat": [3],
        }
    )
    assert genotype.normal_concat == [2]
    assert len(genotype.reduce) == 4
