# SPDX-License-Identifier: Apache-2.0
"""The command line from end to end on tiny settings, and each message a user can meet."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run

from darts_fast.cli.bench import ratio_rows
from darts_fast.cli.console import RunReporter
from darts_fast.cli.doctor import facts
from darts_fast.derive import build_derived
from darts_fast.files import atomic_save
from darts_fast.spaces import read_genotype

TINY = [
    *("--space", "nasbench201", "--init_channels", "4", "--layers", "1", "--limit", "32"),
    *("--batch_size", "16", "--epochs", "1", "--proj_intv", "1", "--threads", "1"),
]
TINY_DERIVE = [
    *("--derive", "--derive_epochs", "1", "--derive_channels", "4", "--derive_layers", "1"),
    *("--derive_batch_size", "16"),
]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int, signum: signal.Signals) -> None:
    """Raise the signal in this process when so many steps are done."""
    advance = RunReporter.advance
    left = [steps]

    def counted(self: RunReporter, accuracy: float | None = None) -> None:
        advance(self, accuracy)
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signum)

    monkeypatch.setattr(RunReporter, "advance", counted)


def contents(run: Path) -> dict[str, Any]:
    """Results of a run without what differs between equal runs."""
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    for name in ("arguments", "seconds", "cpu_seconds"):
        del results[name]
    for row in results["derived"]:
        del row["seconds"]
    return results


# search


def test_search_with_derive_from_end_to_end(darts_fast: Run) -> None:
    status, out, err = darts_fast("search", *TINY, *TINY_DERIVE, "--save", "run")
    assert (status, err) == (0, "")
    run = Path("run")
    assert {path.name for path in run.iterdir()} >= {
        *("log.txt", "config.json", "genotype.txt", "results.json", "checkpoint.pt"),
        *("cells-perturbation.png", "cells-magnitude.png", "cells-random.png"),
        "network-perturbation.pt",
    }
    text = (run / "genotype.txt").read_text().strip()
    assert f"genotype = {text}" in out.splitlines()
    read_genotype(text)
    for label in ("perturbation", "magnitude", "random"):
        assert f"picture: run/cells-{label}.png" in out
        assert re.search(rf"│ {label} +│ +\d+\.\d\d │ +\d+\.\d\d │ +[\d,]+ │", out)
    log = (run / "log.txt").read_text()
    for line in (
        "epoch 0 lr 2.500000e-02",
        "param size = ",
        "project op",
        "best opid: ",
        "projection finished",
        f"genotype = {text}",
    ):
        assert line in log
    network = torch.load(run / "network-perturbation.pt", weights_only=True)
    net = build_derived(
        network["genotype"],
        channels=network["channels"],
        num_classes=network["num_classes"],
        layers=network["layers"],
        auxiliary=network["auxiliary"],
    )
    net.load_state_dict(network["state_dict"])
    results = contents(run)
    assert results["genotype"] == text == network["genotype"]
    assert [row["selection"] for row in results["derived"]] == [
        *("perturbation", "magnitude", "random")
    ]
    assert len(results["decisions"]) == 6


def test_search_in_a_darts_space(darts_fast: Run) -> None:
    status, out, _ = darts_fast(
        *("search", "--space", "s2", "--init-channels", "2", "--layers", "3", "--limit", "8"),
        *("--batch-size", "4", "--epochs", "1", "--proj-intv", "0", "--proj-images", "4"),
        *("--proj-crit", "loss", "--method", "blank", "--save", "run"),
    )
    assert status == 0
    assert re.search(r"^genotype = Genotype\(normal=\[\('", out, re.MULTILINE)
    config = json.loads(Path("run/config.json").read_text())
    assert config["command"] == "search"
    assert (config["init_channels"], config["proj_crit"], config["data"]) == (2, "loss", "digits")
    assert Path("run/cells-perturbation.png").stat().st_size > 1000


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(darts_fast: Run) -> None:
    arguments = ("search", *TINY, *TINY_DERIVE)
    darts_fast(*arguments, "--save", "a")
    darts_fast("search", "--config", "a/config.json", "--save", "b")
    assert contents(Path("a")) == contents(Path("b"))
    darts_fast("search", "--config", "a/config.json", "--save", "c", "--seed", "1")
    config = json.loads(Path("c/config.json").read_text())
    assert (config["seed"], config["init_channels"], config["derive"]) == (1, 4, True)
    assert contents(Path("a"))["history"] != contents(Path("c"))["history"]


def test_equal_genotypes_are_trained_once(darts_fast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    genotype = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    monkeypatch.setattr("darts_fast.cli.pipeline.random_genotype", lambda space, g: genotype)
    monkeypatch.setattr("darts_fast.nn.Supernet.genotype", lambda net: genotype)
    darts_fast("search", *TINY, *TINY_DERIVE, "--select", "magnitude", "--save", "run")
    rows = contents(Path("run"))["derived"]
    assert [row["selection"] for row in rows] == ["magnitude", "random"]
    assert rows[0]["network"] == rows[1]["network"] == "network-magnitude.pt"
    assert rows[0]["test_accuracy"] == rows[1]["test_accuracy"]


def test_a_run_without_save_gets_a_dated_directory(darts_fast: Run) -> None:
    status, out, _ = darts_fast("search", *TINY, "--select", "magnitude")
    assert status == 0
    (run,) = Path("runs").iterdir()
    assert re.fullmatch(r"search-\d{8}-\d{6}", run.name)
    assert f"run directory: {run}" in out


def test_a_directory_with_files_is_refused_unless_told(darts_fast: Run) -> None:
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    arguments = ("search", *TINY, "--select", "magnitude", "--save", "run")
    status, _, err = darts_fast(*arguments)
    assert status == 2
    assert err.startswith("darts-fast: run directory run: it is not empty; pass --overwrite")
    assert err.count("\n") == 1
    assert [path.name for path in Path("run").iterdir()] == ["notes.txt"]
    assert darts_fast(*arguments, "--overwrite")[0] == 0
    assert Path("run/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("steps", "phase", "signum"),
    [
        (1, "search", signal.SIGINT),
        (3, "select", signal.SIGTERM),
        (8, "select", signal.SIGINT),
        (40, "train", signal.SIGTERM),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_result(
    darts_fast: Run, steps: int, phase: str, signum: signal.Signals
) -> None:
    arguments = ("search", *TINY, *TINY_DERIVE, "--save")
    darts_fast(*arguments, "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, steps, signum)
        status, _, err = darts_fast(*arguments, "run")
    assert status == 128 + signum
    last = err.splitlines()[-1]
    assert re.fullmatch(
        rf"darts-fast: stopped by {signum.name} in phase {phase}.* after \d+ of \d+ steps; "
        r"go on with: darts-fast search --resume --save run",
        last,
    )
    assert not Path("run/results.json").exists()
    status, _, err = darts_fast("search", "--resume", "--save", "run")
    assert (status, err) == (0, "")
    assert contents(Path("run")) == contents(Path("whole"))
    log = Path("run/log.txt").read_text()
    assert log.count("derived network of perturbation: ") == 1  # a network once trained is kept


def test_signals_are_back_to_normal_afterwards(darts_fast: Run) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    darts_fast("search", *TINY, "--select", "magnitude")
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_second_interrupt_ends_at_once(darts_fast: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        advance = RunReporter.advance

        def twice(self: RunReporter, accuracy: float | None = None) -> None:
            advance(self, accuracy)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        patch.setattr(RunReporter, "advance", twice)
        status, _, err = darts_fast("search", *TINY)
    assert status == 130
    assert err.splitlines()[-1] == "darts-fast: stopped at once, without a checkpoint"


def test_resume_says_what_is_wrong(darts_fast: Run) -> None:
    arguments = ("search", *TINY, "--select", "magnitude", "--save", "run")
    darts_fast(*arguments)
    resume = ("search", "--resume", "--save", "run")
    for extra, message in (
        (("--epochs", "3"), "--resume: the run has epochs=1, which cannot become 3"),
        (("--config", "x.json"), "--resume: the run has its own configuration, leave out --config"),
    ):
        status, _, err = darts_fast(*resume, *extra)
        assert (status, err) == (2, f"darts-fast: {message}\n")
    status, _, err = darts_fast("search", "--resume")
    assert (status, err) == (2, "darts-fast: --resume: name the run with --save RUN_DIR\n")
    status, _, err = darts_fast("search", "--resume", "--save", "missing")
    assert status == 2
    assert "no config.json in it" in err
    Path("run/checkpoint.pt").write_bytes(b"damaged")
    status, _, err = darts_fast(*resume)
    assert status == 2
    assert "checkpoint run/checkpoint.pt: damaged or not a checkpoint" in err
    atomic_save("run/checkpoint.pt", {"state": {"search": {}}})
    status, _, err = darts_fast(*resume)
    assert status == 2
    assert "run/checkpoint.pt: does not belong to this run" in err


def test_resume_warns_of_another_thread_count(darts_fast: Run) -> None:
    darts_fast("search", *TINY, "--select", "magnitude", "--save", "run")
    status, out, _ = darts_fast("search", "--resume", "--save", "run", "--threads", "2")
    assert status == 0
    assert "warning: threads of the run was 1 and is now 2; rounding may differ" in out


def test_a_diverging_search_stops_with_epoch_and_step(darts_fast: Run) -> None:
    status, _, err = darts_fast(
        *("search", *TINY, "--learning_rate", "1e38", "--weight_decay", "1", "--epochs", "5"),
        *("--save", "run"),
    )
    assert status == 1
    assert re.search(r"loss must be finite, got \w+ in epoch \d, step \d", err)
    assert Path("run/checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "s9"], "Invalid value for '--space'"),
        (["--epochs", "many"], "Invalid value for '--epochs'"),
        (["--colour", "red"], "No such option '--colour'"),
        (["--data", "nowhere"], "nowhere"),
        (["--limit", "100000"], "limit: must be from 1 to the 1438 training images, got 100000"),
        (["--train_portion", "1"], "train_portion must be between 0 and 1, got 1.0"),
        (["--learning_rate", "-1"], "learning_rate must be finite and >= 0, got -1.0"),
        (["--grad_clip", "0"], "grad_clip must be positive, got 0.0"),
        (["--proj_images", "1000"], "proj_images must be 1 to 719"),
        (["--config", "none.json"], "none.json: no such file"),
        (["--derive", "--drop_path_prob", "2"], "drop_path_prob must be"),
        (["--space", "nasbench201", "--derive", "--auxiliary"], "has no auxiliary head"),
    ],
)
def test_errors_of_search_are_one_line(darts_fast: Run, arguments: list[str], message: str) -> None:
    status, out, err = darts_fast("search", *arguments)
    assert status == 2
    assert message in err
    assert err.startswith("darts-fast: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert not Path("runs").exists()


def test_images_that_do_not_fit_the_space_are_refused(darts_fast: Run) -> None:
    import numpy as np

    x = np.zeros((40, 10, 10, 3), dtype=np.uint8)
    np.savez("ten.npz", x=x, y=np.arange(40) % 4)
    status, _, err = darts_fast("search", "--data", "ten.npz")
    assert status == 2
    assert "height and width must be even at each of the 2 reductions" in err
    assert "got 10x10" in err


def test_debug_shows_where_an_error_was_raised(darts_fast: Run) -> None:
    status, _, err = darts_fast("search", "--data", "nowhere", "--debug")
    assert status == 2
    assert "Traceback (most recent call last)" in err
    assert "nowhere" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "c.json: must be a JSON object, got list"),
        ("{", "c.json: not a JSON file"),
        ('{"command": "train"}', "c.json: is the configuration of train, not of search"),
        ('{"epoch": 3}', "c.json: no setting is called 'epoch'"),
        ('{"epochs": "x"}', "c.json: epochs: 'x' is not a valid"),
        ('{"space": "s9"}', "c.json: space: 's9' is not one of"),
    ],
)
def test_configuration_files_are_checked(darts_fast: Run, text: str, message: str) -> None:
    Path("c.json").write_text(text)
    status, _, err = darts_fast("search", "--config", "c.json")
    assert status == 2
    assert message in err


# train


def test_train_takes_a_genotype_in_every_form(darts_fast: Run) -> None:
    genotype = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
    Path("arch.txt").write_text(genotype + "\n")
    common = ("--limit", "32", "--epochs", "2", "--batch_size", "16", "--init_channels", "4")
    accuracies = set()
    for number, arch in enumerate((genotype, "arch.txt", "run0")):
        status, out, err = darts_fast(
            "train", "--arch", arch, *common, "--layers", "1", "--save", f"run{number}"
        )
        assert (status, err) == (0, "")
        found = re.search(r"test accuracy (\S+) %", out)
        assert found
        accuracies.add(found[1])
        assert Path(f"run{number}/genotype.txt").read_text().strip() == genotype
        assert Path(f"run{number}/cells.png").exists()
        assert Path(f"run{number}/network-given.pt").exists()
    assert len(accuracies) == 1


def test_train_knows_the_published_cells(darts_fast: Run) -> None:
    status, out, _ = darts_fast(
        *("train", "--arch", "DARTS_V2", "--limit", "16", "--epochs", "1", "--batch_size", "8"),
        *(
            "--init_channels",
            "4",
            "--layers",
            "3",
            "--auxiliary",
            "--cutout",
            "--cutout_length",
            "2",
        ),
    )
    assert status == 0
    assert "genotype" not in out.split("test accuracy")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--arch'"),
        (["--arch", "nonsense"], "nonsense"),
        (["--arch", "."], "--arch: no genotype.txt in the directory ."),
        (["--arch", "DARTS", "--drop_path_prob", "1"], "drop_path_prob must be"),
    ],
)
def test_errors_of_train_are_one_line(darts_fast: Run, arguments: list[str], message: str) -> None:
    status, _, err = darts_fast("train", *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


# doctor, bench, the program itself


def test_doctor_tells_what_runs(darts_fast: Run) -> None:
    status, out, _ = darts_fast("doctor")
    assert status == 0
    assert "CPU capability" in out
    assert "digits: 1438 + 359 images of 8x8, 10 classes" in out
    names = [name for name, _ in facts()]
    assert {"torch", "threads", "CUDA", "backend", "data digits"} <= set(names)
    status, _, err = darts_fast("doctor", "--data", "nowhere")
    assert status == 2
    assert "nowhere" in err


def benchmark(group: str, rival: str, median: float, **extra: object) -> dict[str, Any]:
    return {
        "group": group,
        "name": f"{group}[{rival}]",
        "stats": {"median": median},
        "extra_info": {"group": group, "rival": rival, **extra},
    }


def test_bench_shows_ratios(darts_fast: Run) -> None:
    recorded = {
        "benchmarks": [
            benchmark("node_sum", "eager", 0.010),
            benchmark("node_sum", "eager-channels_last", 0.004),
            benchmark("node_sum", "fused", 0.001, gflops=123.4, share_of_gemm=0.75),
            benchmark("other", "eager", 0.5),
            {"stats": {"median": 1.0}},
        ]
    }
    Path("r.json").write_text(json.dumps(recorded))
    status, out, _ = darts_fast("bench", "--show", "r.json")
    assert status == 0
    assert re.search(r"node_sum +│ +10 +│ +4 +│ +1 +│ +10.00 +│ +4.00 +│ +123.4 +│ +0.75", out)
    assert re.search(r"other +│ +500 +│ +- +│ +- +│ +- +│", out)
    rows = ratio_rows(recorded, "r.json")
    assert rows[0].ratio("eager") == pytest.approx(10)
    assert rows[1].ratio("eager") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "r.json is not a result of pytest-benchmark"),
        ('{"benchmarks": []}', "no benchmark in r.json has a group and a rival"),
    ],
)
def test_bench_says_what_is_wrong(darts_fast: Run, text: str, message: str) -> None:
    Path("r.json").write_text(text)
    status, _, err = darts_fast("bench", "--show", "r.json")
    assert status == 2
    assert message in err


def test_bench_needs_a_checkout(
    darts_fast: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("darts_fast.__file__", str(tmp_path / "darts_fast" / "__init__.py"))
    status, _, err = darts_fast("bench")
    assert status == 2
    assert "part of a checkout" in err


def test_no_command_and_help(darts_fast: Run) -> None:
    for arguments in (["--help"], ["search", "--help"], ["train", "-h"]):
        status, out, _ = darts_fast(*arguments)
        assert status == 0
        assert "Usage: darts-fast" in out
    status, _, err = darts_fast("searhc")
    assert status == 2
    assert "No such command 'searhc'" in err


def test_the_module_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "darts_fast", "search", "--data", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("darts-fast: ")
    assert done.stderr.count("\n") == 1
