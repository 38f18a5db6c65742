# SPDX-License-Identifier: Apache-2.0
"""``darts-fast export``: a trained network as files for use, with what it costs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from darts_fast.cli.architecture import arch_option
from darts_fast.cli.exported_network import network_of_arch, network_of_file, network_of_run
from darts_fast.cli.options import CONTEXT, debug_option, names_among, set_threads
from darts_fast.cost import count, median_ms
from darts_fast.derive.export import (
    INPUT,
    OUTPUT,
    Classifier,
    MissingExtraError,
    Runner,
    check_equal,
    export_program,
    onnx_bytes,
    onnx_runner,
    program_bytes,
    program_runner,
)
from darts_fast.derive.saved import SavedNetwork
from darts_fast.environment import environment
from darts_fast.files import atomic_save, atomic_write
from darts_fast.runs import RunDirectoryError

__all__ = ["export"]

FORMATS = {"state_dict": "state_dict.pt", "pt2": "network.pt2", "onnx": "network.onnx"}
SUMMARY = "export.json"

POSITIVE = click.IntRange(min=1)


@click.command(context_settings=CONTEXT)
@click.argument("run", metavar="[RUN_DIR]", required=False)
@click.option("--network", metavar="LABEL", help="Which of the run's networks, network-LABEL.pt.")
@arch_option
@click.option("--checkpoint", metavar="FILE", help="Weights: a network-*.pt, or a state_dict.")
@click.option("--untrained", is_flag=True, help="With --arch alone: fresh weights, for its costs.")
@click.option("--init_channels", type=POSITIVE, default=36, help="With --arch.")
@click.option("--layers", type=POSITIVE, default=20, help="With --arch; nasbench201: a stage's.")
@click.option("--num_classes", type=POSITIVE, default=10, help="With --untrained.")
@click.option("--image_size", type=POSITIVE, help="Side of the images.  [default: the training's]")
@click.option(
    "--formats",
    callback=names_among(FORMATS),
    help=f"Of {','.join(FORMATS)}.  [default: what is installed]",
)
@click.option(
    "--normalise", is_flag=True, help="Let the exported network take images of scale 0 to 1."
)
@click.option("--batch_size", type=POSITIVE, default=64, help="Of the second latency.")
@click.option("--repeats", type=POSITIVE, default=20, help="Forward passes behind a latency.")
@click.option("--threads", type=POSITIVE, help="CPU threads.  [default: torch's]")
@click.option("--out", metavar="DIR", help="[default: RUN_DIR/export, else export]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in that directory.")
@debug_option
def export(run: str | None, **options: Any) -> None:
    """Write the network of a run, or of --arch and --checkpoint, as files for use.

    state_dict.pt, network.pt2 (torch.export) and network.onnx take any batch of images and need no
    darts_fast; the last two are checked against the network before anything is written. export.json
    has parameters, multiply-adds and the latency measured here.
    """
    set_threads(options["threads"])
    saved = _find(run, options)
    size = _image_size(saved, options["image_size"])
    if options["normalise"] and (saved.mean is None or saved.std is None):
        raise ValueError("--normalise: the mean and std of the training images are not known")
    out = Path(options["out"] or (Path(run) / "export" if run else "export"))
    there = [name for name in (*FORMATS.values(), SUMMARY) if (out / name).exists()]
    if there and not options["overwrite"]:
        raise RunDirectoryError(f"{out}: has an earlier {there[0]}; pass --overwrite or name --out")

    net = saved.build()
    net.check_image_size(*size)
    normalisation = (saved.mean, saved.std) if options["normalise"] else (None, None)
    model = Classifier(net, *normalisation)
    cost = count(net, (3, *size))
    files, differences, notes = _files(model, size, options["formats"])
    latencies = _latencies(model, files.get("onnx"), size, options)
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}

    out.mkdir(parents=True, exist_ok=True)
    if "state_dict" in files:
        atomic_save(out / FORMATS["state_dict"], weights)
    for name in ("pt2", "onnx"):
        if name in files:
            atomic_write(out / FORMATS[name], files[name])
    summary = {
        "architecture": saved.genotype,
        "channels": saved.channels,
        "layers": saved.layers,
        "trained": not options["untrained"],
        "input": {
            "name": INPUT,
            "shape": ["batch", 3, *size],
            "scale_0_to_1": options["normalise"],
            "mean": saved.mean,
            "std": saved.std,
        },
        "output": {"name": OUTPUT, "shape": ["batch", saved.num_classes]},
        "class_names": saved.class_names,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "latency": latencies,
        "difference": differences,
        "files": {name: FORMATS[name] for name in files},
        "environment": environment(),
    }
    atomic_write(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    _show(summary, out, notes)


def _find(run: str | None, options: dict[str, Any]) -> SavedNetwork:
    """The network that the arguments name."""
    arch, checkpoint = options["arch"], options["checkpoint"]
    if run is not None:
        if arch is not None or checkpoint is not None or options["untrained"]:
            raise ValueError(
                "export: a run has its own networks, leave out --arch, --checkpoint and --untrained"
            )
        return network_of_run(Path(run), options["network"])
    if options["network"] is not None:
        raise ValueError("--network: belongs to RUN_DIR")
    if arch is None and checkpoint is None:
        raise ValueError("export: name a RUN_DIR, or --checkpoint, or --arch")
    if arch is None:
        return network_of_file(Path(checkpoint))
    if checkpoint is None and not options["untrained"]:
        raise ValueError("--arch: needs --checkpoint with its weights, or --untrained")
    if checkpoint is not None and options["untrained"]:
        raise ValueError("--untrained: leave out --checkpoint")
    return network_of_arch(
        arch,
        None if checkpoint is None else Path(checkpoint),
        channels=options["init_channels"],
        layers=options["layers"],
        num_classes=options["num_classes"],
    )


def _image_size(saved: SavedNetwork, given: int | None) -> tuple[int, int]:
    if given is not None:
        return given, given
    if saved.image_size is None:
        raise ValueError("--image_size: the network's file does not say it, name the side")
    height, width = saved.image_size
    return height, width


def _files(
    model: Classifier, size: tuple[int, int], formats: tuple[str, ...] | None
) -> tuple[dict[str, bytes], dict[str, float], list[str]]:
    """By format the file and how far it is from the network, and what there is to tell. The
    state_dict is written from the network, and has no bytes here.
    """
    wanted = tuple(FORMATS) if formats is None else formats
    files: dict[str, bytes] = {"state_dict": b""} if "state_dict" in wanted else {}
    differences: dict[str, float] = {}
    notes: list[str] = []
    if "pt2" not in wanted and "onnx" not in wanted:
        return files, differences, notes
    program = export_program(model, size)
    if "pt2" in wanted:
        files["pt2"] = program_bytes(program)
        differences["pt2"] = check_equal("pt2", model, program_runner(files["pt2"]), size)
    if "onnx" in wanted:
        try:
            data = onnx_bytes(program)
            differences["onnx"] = check_equal("onnx", model, onnx_runner(data), size)
            files["onnx"] = data
        except MissingExtraError as error:
            if formats is not None:
                raise
            notes.append(f"no ONNX file: {str(error).removeprefix('export: ')}")
    return files, differences, notes


def _latencies(
    model: Classifier, onnx: bytes | None, size: tuple[int, int], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Median times of forward passes for one image and for a batch."""
    runners: dict[str, Runner] = {"pytorch": model}
    if onnx is not None:
        runners["onnx"] = onnx_runner(onnx)
    rows = []
    for name, runner in runners.items():
        for batch in dict.fromkeys((1, options["batch_size"])):
            images = torch.zeros(batch, 3, *size)
            with torch.inference_mode():
                time = median_ms(partial(runner, images), options["repeats"])
            rows.append(
                {
                    "runtime": name,
                    "batch": batch,
                    "ms": round(time, 4),
                    "repeats": options["repeats"],
                    "threads": torch.get_num_threads(),
                }
            )
    return rows


def _show(summary: dict[str, Any], out: Path, notes: list[str]) -> None:
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    table = Table("runtime", "batch", "threads", "median ms", title="latency on this machine")
    for row in summary["latency"]:
        table.add_row(row["runtime"], str(row["batch"]), str(row["threads"]), f"{row['ms']:.3f}")
    say(f"architecture: {summary['architecture']}")
    say(f"{summary['parameters']:,} parameters, {summary['macs']:,} multiply-adds for an image")
    console.print(table)
    for line in notes:
        say(line)
    for name, file in summary["files"].items():
        checked = summary["difference"].get(name)
        say(f"{out / file}" + ("" if checked is None else f": differs by at most {checked:.1e}"))
    say(f"{out / SUMMARY}")
