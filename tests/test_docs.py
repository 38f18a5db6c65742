# SPDX-License-Identifier: Apache-2.0
"""What the pages in docs/ say is true: code runs, flags and messages exist, README links them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from darts_fast.cli import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TOP = [page for page in PAGES if page.parent.name == "docs"]

pytestmark = pytest.mark.skipif(not PAGES, reason="needs the checkout")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of every `darts-fast` command in shell blocks, from the subcommand on."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/darts-fast ")]


@pytest.mark.parametrize(
    ("page", "code"), [(page, code) for page in PAGES for code in blocks(page, "python")]
)
def test_python_examples_run(page: Path, code: str) -> None:
    exec(compile(code, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_commands_have_flags_that_exist(page: Path) -> None:
    for name, *arguments in commands(page):
        cli.commands[name].make_context(name, arguments)


def test_readme_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in TOP:
        assert f"(docs/{page.name})" in readme


def test_the_migration_guide_links_every_page() -> None:
    guide = ROOT / "docs" / "migration"
    text = (guide / "README.md").read_text()
    for page in guide.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in text


def test_messages_of_the_images_page_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "your-own-images.md").read_text()
    rows = re.findall(r"^\| `(.*?)` \|", text.partition("## What the messages mean")[2], re.M)
    assert len(rows) >= 15
    # String literals that the line length has parted are joined.
    code = "\n".join(path.read_text() for path in (ROOT / "darts_fast").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", code)
    joined = re.sub(r"\{[^{}]*\}", "...", joined)
    for row in rows:
        for part in row.split(" ... ") if " ... " in row else [row]:
            assert part.removeprefix("warning: ") in joined, row
