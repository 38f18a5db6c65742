# SPDX-License-Identifier: Apache-2.0
"""A script that runs on plain modules gives the same on compat after its import lines change."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compat_cases import batch, with_args
from plain_networks import Network, PartialNetwork
from plain_scripts import stand_ins

SCRIPTS = Path(__file__).parent / "scripts"

# Import lines, as the tables of docs/compat.md change them.
DARTS = [
    (r"^import utils$", r"from darts_fast.compat.{} import utils"),
    (r"^from (architect|model_search) import", r"from darts_fast.compat.{}.\1 import"),
]
DARTS_PT = [
    (r"^import nasbench201\.utils as", "import darts_fast.compat.darts_pt.utils as"),
    (r"^from nasbench201\.architect_ig import", "from darts_fast.compat.darts_pt.architect import"),
    (r"^from (?:sota\.cnn|attacker)\.(\w+) import", r"from darts_fast.compat.darts_pt.\1 import"),
]
NASBENCH201 = [
    (r"^import nasbench201\.(\w+) as", r"import darts_fast.compat.nasbench201.\1 as"),
    (r"^from nasbench201\.(\w+) import", r"from darts_fast.compat.nasbench201.\1 import"),
]

# Script, package, import lines, network of the plain modules, settings, training batches.
CASES: dict[str, tuple[str, str, list[tuple[str, str]], Any, dict[str, Any], int]] = {
    "darts": ("darts_search", "darts", DARTS, Network, {}, 10),
    "darts unrolled": ("darts_search", "darts", DARTS, Network, {"unrolled": True}, 3),
    "pc_darts": ("darts_search", "pc_darts", DARTS, PartialNetwork, {"init_channels": 4}, 10),
    "darts_pt": ("darts_pt_search", "darts_pt", DARTS_PT, Network, {}, 7),
    "darts_pt sdarts": (
        *("darts_pt_search", "darts_pt", DARTS_PT, Network),
        *({"method": "sdarts-proj"}, 2),
    ),
    "nasbench201": ("nasbench201_search", "nasbench201", NASBENCH201, Network, {}, 7),
}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """Plain alphas have the default dtype, which `.double()` would not change."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def changed(text: str, lines: list[tuple[str, str]], package: str) -> str:
    """The script with other import lines, and only these."""
    for old, new in lines:
        text, count = re.subn(old, new.format(package), text, flags=re.MULTILINE)
        assert count
    return text


def run(path: Path, text: str, args: Namespace, count: int) -> Any:
    names: dict[str, Any] = {"__file__": str(path), "__name__": "script"}
    exec(compile(text, path, "exec"), names)
    train = [batch(seed) for seed in range(count)]
    valid = [batch(100 + seed) for seed in range(2)]
    return names["run"](args, train, valid)


def assert_close(mine: Any, theirs: Any, name: str) -> None:
    def say(message: str) -> str:
        return f"{name}: {message}"

    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9, msg=say)


@pytest.mark.parametrize("case", CASES)
def test_the_import_lines_are_all_that_changes(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, package, lines, network, settings, count = CASES[case]
    path = SCRIPTS / f"{script}.py"
    original = path.read_text()
    text = changed(original, lines, package)
    own, other = original.splitlines(), text.splitlines()
    touched = [a for a, b in zip(own, other, strict=True) if a != b]
    assert touched
    assert all(line.startswith(("import ", "from ")) for line in touched)
    common = {"init_channels": 2, "layers": 3, "steps": 2, "epochs": 2, "seed": 3}
    common |= {"unrolled": False, "search_space": "s5", "epsilon_alpha": 0.1}
    common |= {"edge_decision": "random", "proj_crit": {"normal": "acc", "reduce": "loss"}}
    with monkeypatch.context() as patched:
        for name, module in stand_ins(network).items():
            patched.setitem(sys.modules, name, module)
        args = with_args(**{**common, **settings, "save": str(tmp_path / "plain")})
        plain, _, expected, decisions = run(path, original, args, count)
    args = with_args(**{**common, **settings, "save": str(tmp_path / "compat")})
    model, again, found, own_decisions = run(path, text, args, count)

    assert type(model).__module__.startswith(f"darts_fast.compat.{package}")
    assert found == pytest.approx(expected, rel=1e-6)
    assert own_decisions == decisions
    state, wanted = model.state_dict(), plain.state_dict()
    # The order too: a file of an optimizer numbers the parameters.
    assert [*state] == [*wanted]
    for key, value in wanted.items():
        assert_close(state[key], value, key)
        assert torch.equal(again.state_dict()[key], state[key])
    for mine, theirs in zip(model.arch_parameters(), plain.arch_parameters(), strict=True):
        assert_close(mine.detach(), theirs.detach(), "alphas")
