# SPDX-License-Identifier: Apache-2.0
"""What ``--arch`` takes, and the published cells behind its names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from darts_fast.cli.architecture import read_architecture
from darts_fast.cost import count
from darts_fast.derive import build_derived
from darts_fast.spaces import (
    DARTS_V1,
    DARTS_V2,
    WELL_KNOWN,
    arch_from_index,
    make_genotype,
    write_genotype,
)

RANGED = DARTS_V2._replace(normal_concat=range(2, 6), reduce_concat=range(2, 6))


def nested(cell: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    return [cell[first : first + 2] for first in range(0, len(cell), 2)]


@pytest.mark.parametrize(
    "text",
    [
        write_genotype(RANGED),
        write_genotype(
            RANGED._replace(normal=nested(RANGED.normal), reduce=nested(RANGED.reduce))  # type: ignore[arg-type]
        ),
        f"CELLS = {write_genotype(RANGED)}",
        f"11/24 06:01:37 AM genotype = {write_genotype(RANGED)}",
    ],
)
def test_strings_and_files_of_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_architecture(text) == RANGED
    Path("found.txt").write_text(text + "\n")
    Path("run").mkdir()
    Path("run/genotype.txt").write_text(text + "\n")
    assert read_architecture("found.txt") == read_architecture("run") == RANGED


def test_json_and_nasbench201_files(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    path.write_text(json.dumps(DARTS_V1._asdict()))
    assert read_architecture(str(path)) == DARTS_V1
    arch = arch_from_index(1462)
    (tmp_path / "arch").write_text(arch)
    assert read_architecture(str(tmp_path / "arch")) == read_architecture(arch) == arch


def test_one_of_several_genotypes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "genotypes.py"
    path.write_text(
        "from collections import namedtuple\n"
        "Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')\n"
        f"A = {write_genotype(DARTS_V1)}\nB = {write_genotype(DARTS_V2)}\nDARTS = B\n"
    )
    assert read_architecture(f"{path}:A") == DARTS_V1
    assert read_architecture(f"{path}:DARTS") == DARTS_V2
    with pytest.raises(ValueError, match="several genotypes, name one of A, B"):
        read_architecture(str(path))
    with pytest.raises(ValueError, match="name must be one of A, B, DARTS, got 'C'"):
        read_architecture(f"{path}:C")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing/genotype.txt", "--arch: no such file: missing/genotype.txt"),
        ("genotypes.py:DARTS", "--arch: no such file: genotypes.py"),
        ("tests", "--arch: no genotype.txt in the directory tests"),
        ("DARTS_V3", r"expected Genotype\(\.\.\.\), JSON, .* PC_DARTS, .* got 'DARTS_V3'"),
        ("|nor_conv_3x3~0|", "an architecture must read"),
    ],
)
def test_what_is_no_architecture_is_named(
    monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(ValueError, match=message):
        read_architecture(source)


def test_names_may_be_spelled_as_in_the_papers() -> None:
    assert read_architecture("PC-DARTS") is WELL_KNOWN["PC_DARTS_CIFAR"]
    assert read_architecture("pc_darts_image") is WELL_KNOWN["PC_DARTS_IMAGE"]
    assert read_architecture("PDARTS") is read_architecture("P-DARTS") is WELL_KNOWN["P_DARTS"]
    assert read_architecture("AmoebaNet") is WELL_KNOWN["AMOEBANET"]


@pytest.mark.parametrize("name", sorted(WELL_KNOWN))
def test_published_cells_are_possible(name: str) -> None:
    assert make_genotype(WELL_KNOWN[name]._asdict()) == WELL_KNOWN[name]


@pytest.mark.parametrize(
    ("name", "millions"),
    # As published for 36 channels and 20 layers on CIFAR-10.
    [("DARTS_V1", 3.2), ("DARTS_V2", 3.3), ("P_DARTS", 3.4), ("PC_DARTS", 3.6)],
)
def test_published_cells_have_the_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        net = build_derived(name, channels=36, num_classes=10, layers=20)
    assert round(sum(weight.numel() for weight in net.parameters()) / 1e6, 1) == millions


def test_multiply_adds_of_p_darts_are_the_published_ones() -> None:
    with torch.device("meta"):
        net = build_derived("P_DARTS", channels=36, num_classes=10, layers=20)
    assert round(count(net, (3, 32, 32)).macs / 1e6) == 532
