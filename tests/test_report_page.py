# SPDX-License-Identifier: Apache-2.0
"""The page of a report: what it says and what it leaves out, its files, and a real browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run as Call

from darts_fast.history import append_event
from darts_fast.report import graphviz
from darts_fast.report.graphviz import dot_source, draw_with_graphviz
from darts_fast.report.page import write_report
from darts_fast.report.run import open_runs
from darts_fast.spaces import DARTS_V2, arch_from_index, get_space, random_genotype

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EPOCHS = 3


def events_of_a_search(space_name: str, *, decided: int | None = None) -> list[dict[str, Any]]:
    """The history of a search as `Search` records it, with scores drawn at random."""
    space = get_space(space_name)
    random = torch.Generator().manual_seed(1)
    genotype = random_genotype(space, random)
    text = genotype if isinstance(genotype, str) else repr(genotype)
    arguments = ["search", "--space", space_name, "--save", "a <b>&run"]
    events: list[dict[str, Any]] = [
        {"event": "process", "arguments": arguments, "environment": {"torch": "2"}}
    ]
    for epoch in range(EPOCHS):
        alphas = {
            kind: torch.randn(space.num_edges, space.num_ops, generator=random).tolist()
            for kind in space.cell_types
        }
        events.append(
            {
                "event": "epoch",
                "phase": "search",
                "epoch": epoch,
                "epochs": EPOCHS,
                "steps": 4,
                "seconds": 2.0,
                "train_loss": 2.0 - epoch / 2,
                "train_acc": 20.0 + epoch,
                "valid_loss": 2.1,
                "valid_acc": 21.0,
                "alphas": alphas,
                "genotype": text,
            }
        )
    events.append({"event": "phase", "phase": "search", "seconds": 6.5, "cpu_seconds": 6.0})
    edges = [(kind, edge) for edge in range(space.num_edges) for kind in space.cell_types]
    for index, (kind, edge) in enumerate(edges[:decided]):
        losses = (1 + torch.rand(space.num_ops, generator=random)).tolist()
        events.append(
            {
                "event": "decision",
                "index": index,
                "seconds": 0.25,
                "genotype": text,
                "epoch": index,
                "kind": "op",
                "cell_type": kind,
                "place": edge,
                "chosen": [losses.index(max(losses))],
                "candidates": [list(range(space.num_ops))],
                "loss": [losses],
                "accuracy": [[50.0] * space.num_ops],
                "loss_stderr": [[0.125] * space.num_ops],
                "accuracy_stderr": [[1.5] * space.num_ops],
                "images": 64,
                "images_used": [[64] * space.num_ops],
                "outcomes": ["full"],
                "strengths": [],
            }
        )
    return events


def write_run(
    path: Path,
    space: str = "nasbench201",
    *,
    events: list[dict[str, Any]] | None = None,
    results: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A run directory with a search's configuration."""
    path.mkdir(parents=True)
    config = {
        "command": "search",
        "space": space,
        "method": "darts",
        "select": "perturbation",
        "proj_crit": "loss",
        "data": "digits",
        "seed": 3,
        "epochs": EPOCHS,
        "derive": False,
        **settings,
    }
    (path / "config.json").write_text(json.dumps(config))
    for event in events_of_a_search(space) if events is None else events:
        append_event(path / "history.jsonl", event)
    if results is not None:
        (path / "results.json").write_text(json.dumps(results))
        if "genotype" in results:
            (path / "genotype.txt").write_text(results["genotype"])
    return path


def finished(space: str = "nasbench201", **more: Any) -> dict[str, Any]:
    """The results of a run that has trained its networks."""
    text = arch_from_index(1462) if space == "nasbench201" else repr(DARTS_V2)
    rows = [
        {
            "selection": label,
            "genotype": text,
            "test_accuracy": accuracy,
            "best_test_accuracy": 91.5,
            "parameters": 123456,
            "seconds": 30.0,
        }
        for label, accuracy in (("perturbation", 91.25), ("magnitude", 88.5), ("random", 87.75))
    ]
    return {
        "genotype": text,
        "magnitude_genotype": text,
        "derived": rows,
        "seconds": {"search": 60.0, "select": 20.0},
        **more,
    }


class Elements(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(out: Path, *runs: Path, **options: Any) -> Elements:
    options.setdefault("formats", ())
    options.setdefault("cells", "own")
    return Elements(write_report(open_runs(runs), out, **options).read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one finished run, with all its files."""
    folder = tmp_path_factory.mktemp("plain")
    run = write_run(folder / "nb", results=finished())
    report(folder / "out", run, formats=("png", "svg", "pdf"))
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs of the same name, with the cells of Graphviz where there is one."""
    folder = tmp_path_factory.mktemp("pair")
    runs = (
        write_run(folder / "one" / "run", results=finished()),
        write_run(folder / "two" / "run", "s5", results=finished("s5")),
    )
    report(folder / "out", *runs, cells="auto")
    return folder / "out" / "report.html"


def test_the_result_comes_first_and_then_how_it_came_about(plain: Path) -> None:
    page = Elements(plain.read_text())
    order = [
        *("91.25", arch_from_index(1462), "Learning curves", "Architecture weights"),
        *("Removal scores", "Decisions of the selection", "Time", "How it was made"),
    ]
    below = page.text.split("How it was made", 1)[1]  # the links at the top
    places = [below.index(word) for word in order]
    assert places == sorted(places)
    for word in ("88.50", "87.75", "123,456", "60.0", "steps/s", "6 decisions", "finished"):
        assert word in page.text
    assert "missing" not in {attrs.get("class") for _, attrs in page.tags}


@pytest.mark.parametrize("made", ["plain", "pair"])
def test_the_page_needs_nothing_else_and_no_script(
    made: str, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(made).read_text()
    page = Elements(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "image"}
    assert {"svg", "table", "title", "style"} <= tags
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    referred = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert referred <= set(names)


@pytest.mark.parametrize("made", ["plain", "pair"])
def test_pictures_follow_the_colour_scheme(made: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(made).read_text()
    style, body = text.split("</style>", 1)
    assert "prefers-color-scheme: dark" in style
    used = set(re.findall(r"var\((--c[0-9a-f]{6}), #", body))
    assert len(used) > 8
    for name in used:  # one value for light pages, one for dark pages
        assert len(re.findall(rf"{name}: #[0-9a-f]{{6}};", style)) == 2
    drawn = re.sub(r"var\([^)]*\)", "", body)
    assert not re.findall(r"(?:fill|stroke)(?:: |=\")#[0-9a-f]{6}", drawn)


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    attack = "<img src=x onerror=alert(1)>"
    events = events_of_a_search("nasbench201")
    events[0]["environment"] = {"torch": attack, attack: "1"}
    events[0]["arguments"] = ["search", attack]
    run = write_run(
        tmp_path / "x<b>y", events=events, results=finished(), data=attack, **{attack: attack}
    )
    page = report(tmp_path / "out", run, title=attack)
    assert not {tag for tag, _ in page.tags} & {"img", "b"}
    assert page.text.count(attack) >= 5
    assert "x<b>y" in page.text


def test_several_runs_stand_side_by_side(pair: Path) -> None:
    page = Elements(pair.read_text())
    columns = [attrs for _, attrs in page.tags if attrs.get("class") == "runs"]
    assert len(columns) >= 4
    assert page.text.count("run (2)") >= 8
    labels = [attrs.get("aria-label") or "" for tag, attrs in page.tags if tag == "svg"]
    assert len(set(labels)) == len(labels)
    for cell in ("normal cell of run (2)", "reduction cell of run (2)", "cell of run"):
        assert any(label.startswith(f"Scores of the {cell}") for label in labels)


UNFINISHED = "The run has not finished; what is here is as far as it has come."


@pytest.mark.parametrize(
    ("events", "settings", "sentences"),
    [
        (
            events_of_a_search("nasbench201", decided=4),
            {},
            [UNFINISHED, "4 of 6 decisions have been made"],
        ),
        (
            events_of_a_search("nasbench201", decided=0),
            {},
            ["shown is that of its largest weights", "has not decided anything yet"],
        ),
        (
            events_of_a_search("nasbench201")[:1],
            {},
            ["No architecture has been recorded yet", "No epoch"],
        ),
        ([], {"derive": True}, ["No network has been trained yet", "has no history.jsonl"]),
        (
            events_of_a_search("nasbench201", decided=0),
            {"select": "magnitude"},
            ["selected by magnitude: nothing was removed", "ran without --derive"],
        ),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, events: list[dict[str, Any]], settings: dict[str, Any], sentences: list[str]
) -> None:
    page = report(tmp_path / "out", write_run(tmp_path / "run", events=events, **settings))
    for sentence in sentences:
        assert sentence in page.text


def test_a_run_from_before_there_was_a_history(tmp_path: Path) -> None:
    old = finished(
        history=[{"epoch": 0, "train_acc": 30.0, "valid_acc": 33.0, "genotype": repr(DARTS_V2)}],
        decisions=[
            {key: value for key, value in event.items() if key not in ("event", "index", "seconds")}
            for event in events_of_a_search("nasbench201")
            if event["event"] == "decision"
        ],
        arguments=["search", "--space", "nasbench201"],
    )
    for decision in old["decisions"]:
        del decision["genotype"]
    page = report(tmp_path / "out", write_run(tmp_path / "run", events=[], results=old))
    assert "6 decisions" in page.text
    assert "darts-fast search --space nasbench201" in page.text
    assert "It has no history.jsonl" in page.text


def test_a_training_has_a_page_too(darts_fast: Call) -> None:
    genotype = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
    status, _, err = darts_fast(
        *("train", "--arch", genotype, "--limit", "32", "--epochs", "2", "--batch_size", "16"),
        *("--init_channels", "4", "--layers", "1", "--save", "run"),
    )
    assert (status, err) == (0, "")
    status, out, err = darts_fast("report", "run", "--formats", "", "--cells", "own")
    assert (status, out, err) == (0, "page: run/report/report.html\n", "")
    page = Elements(Path("run/report/report.html").read_text())
    assert "searched nothing" in page.text
    assert "Networks trained from scratch" in page.text
    assert not list(Path("run/report/figures").iterdir())


def test_figures_are_fit_for_a_paper(plain: Path) -> None:
    figures = plain.parent / "figures"
    names = sorted(path.name for path in figures.glob("*.pdf"))
    assert names == [
        *("learning-search.pdf", "nb-cells.pdf", "nb-scores-cell.pdf", "nb-weights-cell.pdf"),
        *("skip-connections.pdf", "timings.pdf"),
    ]
    for name in names:
        pdf = (figures / name).read_bytes()
        assert b"/FontFile2" in pdf  # TrueType, in the file
        assert b"/Type3" not in pdf
        svg = (figures / name).with_suffix(".svg").read_text()
        assert "<text" not in svg  # outlines: no font is needed
        assert 'href="http' not in svg
        assert (figures / name).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_scores_are_written_with_their_errors(plain: Path) -> None:
    with open(plain.parent / "nb-decisions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 5
    events = [e for e in events_of_a_search("nasbench201") if e["event"] == "decision"]
    assert [float(row["loss"]) for row in rows[:5]] == events[0]["loss"][0]
    assert {row["loss_stderr"] for row in rows} == {"0.125"}
    assert {row["name"] for row in rows if row["kept"] == "1"} <= {
        *("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    }
    assert sum(row["kept"] == "1" for row in rows) == 6


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "nb", results=finished())
    with pytest.raises(ValueError, match="there must be a run, got none"):
        write_report([], tmp_path / "out")
    with pytest.raises(ValueError, match="formats must be among png, svg, pdf, got 'gif'"):
        write_report(open_runs([run]), tmp_path / "out", formats=["gif"])
    with pytest.raises(ValueError, match="cells must be one of auto, graphviz, own, got 'dot'"):
        write_report(open_runs([run]), tmp_path / "out", cells="dot")
    with pytest.raises(ValueError, match=r"no config\.json in it"):
        open_runs([tmp_path])
    (run / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json: not a JSON file"):
        open_runs([run])
    (run / "config.json").write_text('{"command": "bench"}')
    with pytest.raises(ValueError, match="must be of search, select or train"):
        open_runs([run])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    other = write_run(tmp_path / "other", results=finished())
    with pytest.raises(FileNotFoundError, match="needs the program dot, which is not found"):
        write_report(open_runs([other]), tmp_path / "out", cells="graphviz")
    report(tmp_path / "out", other, cells="auto")  # without dot our own drawing
    assert "c_{k-2}" not in (tmp_path / "out" / "report.html").read_text()


def test_the_graph_has_every_operation(tmp_path: Path) -> None:
    source = dot_source(DARTS_V2)
    for op, _ in (*DARTS_V2.normal, *DARTS_V2.reduce):
        assert f'" {op} "' in source or f'" {op} /2 "' in source
    assert source.count("->") == 2 * (8 + 4)
    assert source.count(" /2 ") == sum(state < 2 for _, state in DARTS_V2.reduce)
    assert dot_source(arch_from_index(1462)).count("->") == 6
    with pytest.raises(ValueError, match="must end in"):
        draw_with_graphviz(DARTS_V2, tmp_path / "cells.gif")


@pytest.mark.skipif(not graphviz.graphviz_found(), reason="Graphviz' program dot is not installed")
@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_graphviz_draws_the_cells(tmp_path: Path, suffix: str) -> None:
    path = draw_with_graphviz(DARTS_V2, tmp_path / f"cells.{suffix}")
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(start)
    with pytest.raises(OSError, match="dot: "):
        draw_with_graphviz(DARTS_V2, tmp_path / "missing" / f"cells.{suffix}")


MEASURE = """
<iframe id="f" style="border:0;width:{width}px;height:900px" src="{page}"></iframe>
<script>
document.getElementById("f").onload = (event) => {{
  const page = event.target.contentDocument, root = page.documentElement;
  const out = [...page.querySelectorAll("body *")].filter((e) =>
    !e.closest(".scroll") && e.getBoundingClientRect().right > root.clientWidth + 1);
  const svgs = [...page.querySelectorAll("svg")];
  document.body.innerHTML = "<pre>" + JSON.stringify({{
    width: root.clientWidth, scroll: root.scrollWidth, out: out.length, svgs: svgs.length,
    drawn: svgs.filter((e) => e.getBoundingClientRect().height > 50).length,
    ink: getComputedStyle(page.body).color, paper: getComputedStyle(page.body).backgroundColor,
    stroke: getComputedStyle(svgs[svgs.length - 1].querySelector("g[id*=legend] text")).fill,
    columns: getComputedStyle(page.querySelector(".runs")).gridTemplateColumns.split(" ").length,
  }}) + "</pre>";
}};
</script>
"""


def browser() -> str | None:
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.mark.skipif(browser() is None, reason="no chromium or chrome to open the page with")
@pytest.mark.parametrize(("width", "dark", "columns"), [(360, True, 1), (1400, False, 2)])
def test_a_browser_shows_the_page(
    tmp_path: Path, pair: Path, width: int, dark: bool, columns: int
) -> None:
    shown = tmp_path / "measure.html"
    shown.write_text(MEASURE.format(width=width, page=pair.as_uri()))
    done = subprocess.run(
        [
            *(str(browser()), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--allow-file-access-from-files", "--virtual-time-budget=20000"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,1000"),
            *("--hide-scrollbars", f"--blink-settings=preferredColorScheme={0 if dark else 1}"),
            shown.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    match = re.search(r"<pre>(\{.*\})</pre>", done.stdout)
    assert match, done.stdout[-500:]
    found = json.loads(match[1])
    assert found["width"] == width
    assert found["scroll"] == width  # the page itself never scrolls sideways
    assert found["out"] == 0
    assert found["svgs"] == found["drawn"] >= 9
    assert found["columns"] == columns
    assert found["paper"] == ("rgb(18, 22, 29)" if dark else "rgb(255, 255, 255)")
    assert found["ink"] == found["stroke"] == ("rgb(228, 233, 241)" if dark else "rgb(39, 48, 63)")
