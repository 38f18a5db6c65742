# SPDX-License-Identifier: Apache-2.0
"""The report of runs: one page that needs nothing else, and its pictures as files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from darts_fast import __version__
from darts_fast.files import atomic_write
from darts_fast.report.decisions import decisions_csv
from darts_fast.report.figures import learning_curves, skip_curves, timing_bars
from darts_fast.report.graphviz import graphviz_found
from darts_fast.report.page.gallery import Gallery, file_name
from darts_fast.report.page.views import number, view_run
from darts_fast.report.run import Run
from darts_fast.report.theme import colour_variables
from darts_fast.spaces import skip_connections

__all__ = ["CELLS", "FORMATS", "PAGE", "write_report"]

PAGE = "report.html"
FORMATS = ("png", "svg", "pdf")
CELLS = ("auto", "graphviz", "own")
_UNSAID = "\u2013"
_NOT_A_SETTING = ("command", "version")


def write_report(
    runs: Sequence[Run],
    out: str | Path,
    *,
    formats: Sequence[str] = FORMATS,
    cells: str = "auto",
    title: str | None = None,
) -> Path:
    """Write ``report.html``, ``figures/`` and the decisions as CSV.

    Args:
        runs: side by side on the page.
        out: a directory; it is made, and files of an earlier report in it are replaced.
        formats: of the pictures' files, among `FORMATS`; () writes none.
        cells: who draws the cells: ``"graphviz"``, this package (``"own"``), or Graphviz where its
            ``dot`` is installed (``"auto"``).
        title: of the page.

    Returns:
        The page.

    Raises:
        ValueError: no run, an unknown format, or an unknown drawer of cells.
        OSError: a file cannot be written, or ``dot`` is asked for and is not there.
    """
    _check(runs, formats, cells)
    out = Path(out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    graphviz = cells == "graphviz" or (cells == "auto" and graphviz_found())
    gallery = Gallery(out / "figures", formats, graphviz=graphviz)
    views = [view_run(run, gallery) for run in runs]
    for run in runs:
        if run.decisions:
            atomic_write(out / f"{file_name(run.name)}-decisions.csv", decisions_csv(run))
    text = _template().render(
        title=title or f"Architecture search: {', '.join(run.name for run in runs)}",
        version=__version__,
        style=_style(),
        views=views,
        summary=_summary(runs),
        learning=_learning(runs, gallery),
        skips=gallery.add(
            skip_curves(runs),
            "skip-connections",
            "Skip connections by epoch",
            "Skip connections of the architecture of largest weights after each epoch, all cells.",
        ),
        timings=_timings(runs, gallery),
        machine=_machine(runs),
        settings=_settings(runs),
        files=_files(gallery),
    )
    atomic_write(out / PAGE, text)
    return out / PAGE


def _check(runs: Sequence[Run], formats: Sequence[str], cells: str) -> None:
    if not runs:
        raise ValueError("report: there must be a run, got none")
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"report: formats must be among {', '.join(FORMATS)}, got {name!r}")
    if cells not in CELLS:
        raise ValueError(f"report: cells must be one of {', '.join(CELLS)}, got {cells!r}")
    if cells == "graphviz" and not graphviz_found():
        raise FileNotFoundError("report: cells=graphviz needs the program dot, which is not found")


def _template() -> Any:
    source = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(source)


def _style() -> Markup:
    source = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    values = {"light": colour_variables(dark=False), "dark": colour_variables(dark=True)}
    return Markup(Environment(autoescape=False).from_string(source).render(values))


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    """A row for each run: what it was, and what it found."""
    rows = []
    for run in runs:
        settings = run.settings
        networks = run.networks
        accuracy = {label: network["test_accuracy"] for label, network in networks.items()}
        selected = run.genotypes.get(run.label)
        row = [
            run.name,
            number(accuracy.get(run.label)),
            number(accuracy.get("magnitude")),
            number(accuracy.get("random")),
            number(networks.get(run.label, {}).get("parameters"), 0),
            _UNSAID if selected is None else str(skip_connections(selected)),
            *(str(settings.get(key, _UNSAID)) for key in ("space", "method", "select")),
            *(str(settings.get(key, _UNSAID)) for key in ("data", "seed")),
            number(sum(run.seconds.values()), 0) if run.seconds else _UNSAID,
            "finished" if run.finished else "not finished",
        ]
        rows.append(row)
    head = ["run", "test accuracy, %", "magnitude's, %", "random's, %", "parameters", "skips"]
    head += ["space", "method", "selection", "data", "seed", "seconds", "state"]
    return {"head": head, "rows": rows}


def _learning(runs: Sequence[Run], gallery: Gallery) -> list[Any]:
    pictures = []
    for phase, x, name, caption in (
        ("search", "epoch of the search", "search", "The supernet while it is searched."),
        ("tune", "tuning epoch", "tuning", "The supernet while it is tuned between decisions."),
    ):
        figure = learning_curves(
            {run.name: run.epochs(phase) for run in runs}, x=x, held_out="validation images"
        )
        pictures += gallery.add(figure, f"learning-{name}", f"{caption[:-1]} by epoch", caption)
    return pictures


def _timings(runs: Sequence[Run], gallery: Gallery) -> dict[str, Any]:
    pictures = gallery.add(
        timing_bars(runs), "timings", "Wall time by phase", "Wall time by phase, all processes."
    )
    phases = list(dict.fromkeys(phase for run in runs for phase in run.seconds))
    rows = [[phase, *(number(run.seconds.get(phase), 1) for run in runs)] for phase in phases]
    if phases:
        rows.append(["all phases", *(number(sum(run.seconds.values()), 1) for run in runs)])
    rates = list(dict.fromkeys(phase for run in runs for phase in run.steps_per_second))
    rows += [
        [
            f"{phase}, steps/s",
            *(number(run.steps_per_second.get(phase), 1) for run in runs),
        ]
        for phase in rates
    ]
    absent = [
        f"{run.name} has not ended a phase yet, or has not recorded it."
        for run in runs
        if not run.seconds
    ]
    head = ["phase", *(run.name for run in runs)]
    return {"pictures": pictures, "head": head, "rows": rows, "missing": absent}


def _machine(runs: Sequence[Run]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for run in runs for name in run.environment))
    rows = [
        [name.replace("_", " "), *(str(run.environment.get(name, _UNSAID)) for run in runs)]
        for name in names
    ]
    return {"head": ["", *(run.name for run in runs)], "rows": rows}


def _settings(runs: Sequence[Run]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = [
        [name, *(str(run.settings.get(name, _UNSAID)) for run in runs)]
        for name in names
        if name not in _NOT_A_SETTING
    ]
    return {"head": ["setting", *(run.name for run in runs)], "rows": rows}


def _files(gallery: Gallery) -> str:
    if not gallery.written:
        return ""
    formats = ", ".join(gallery.formats)
    return f"The pictures of this page are beside it in figures/ ({formats}), for papers."
