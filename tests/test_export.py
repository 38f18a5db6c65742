# SPDX-License-Identifier: Apache-2.0
"""Exported networks: equal to the network, whole on the disk, and free of darts_fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run

from darts_fast.derive import build_derived
from darts_fast.derive.export import Classifier, check_equal, export_program
from darts_fast.derive.saved import SavedNetwork, load_weights
from darts_fast.files import DamagedFileError, atomic_save
from darts_fast.spaces import DARTS_V2, arch_from_index, write_genotype

onnx_installed = pytest.mark.skipif(
    any(
        __import__("importlib").util.find_spec(name) is None
        for name in ("onnx", "onnxscript", "onnxruntime")
    ),
    reason="the extra darts-fast[export] is not installed",
)

# Runs an exported file as its user would, and proves that darts_fast was not needed for it.
STRANGER = """
import sys
sys.modules["darts_fast"] = None
import torch
images = torch.load("images.pt")
if sys.argv[1].endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[1])
    logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
else:
    logits = torch.export.load(sys.argv[1]).module()(images)
torch.save(logits.detach(), "logits.pt")
"""


def trained(genotype: str, *, layers: int = 3, auxiliary: bool = False) -> SavedNetwork:
    """A network with running statistics and biases that are not those of the beginning."""
    net = build_derived(genotype, channels=4, num_classes=7, layers=layers, auxiliary=auxiliary)
    for _ in range(3):
        net.train()(2 * torch.randn(16, 3, 16, 16) + 1)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            assert name
    return SavedNetwork(
        genotype=genotype,
        channels=4,
        layers=layers,
        num_classes=7,
        auxiliary=auxiliary,
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.3, 0.4],
        class_names=list("abcdefg"),
        state_dict=net.state_dict(),
        image_size=[16, 16],
    )


def logits_of(saved: SavedNetwork, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = saved.build()(images)
    return out[0] if isinstance(out, tuple) else out


def run_by_a_stranger(path: Path, images: torch.Tensor, folder: Path) -> torch.Tensor:
    torch.save(images, folder / "images.pt")
    command = [sys.executable, "-c", STRANGER, str(path)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logits: torch.Tensor = torch.load(folder / "logits.pt")
    return logits


@onnx_installed
def test_export_of_a_run_from_end_to_end(darts_fast: Run, tmp_path: Path) -> None:
    saved = trained(write_genotype(DARTS_V2), auxiliary=True)
    Path("run").mkdir()
    saved.save("run/network-given.pt")
    status, out, err = darts_fast(
        *("export", "run", "--batch_size", "4", "--repeats", "2", "--threads", "1")
    )
    assert (status, err) == (0, "")
    folder = Path("run/export")
    names = {"state_dict.pt", "network.pt2", "network.onnx", "export.json"}
    assert {path.name for path in folder.iterdir()} == names

    weights = torch.load(folder / "state_dict.pt", weights_only=True)
    net = build_derived(DARTS_V2, channels=4, num_classes=7, layers=3)
    net.load_state_dict(weights)  # without the auxiliary head
    assert all(torch.equal(value, saved.state_dict[name]) for name, value in weights.items())

    images = torch.randn(3, 3, 16, 16)
    wanted = logits_of(saved, images)
    for name in ("network.pt2", "network.onnx"):
        got = run_by_a_stranger((folder / name).resolve(), images, tmp_path)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)

    summary: dict[str, Any] = json.loads((folder / "export.json").read_text())
    assert summary["parameters"] == sum(weight.numel() for weight in net.parameters())
    assert summary["input"] == {
        "name": "images",
        "shape": ["batch", 3, 16, 16],
        "scale_0_to_1": False,
        "mean": saved.mean,
        "std": saved.std,
    }
    assert summary["output"] == {"name": "logits", "shape": ["batch", 7]}
    assert max(summary["difference"].values()) <= 1e-4
    rows = [(row["runtime"], row["batch"], row["threads"]) for row in summary["latency"]]
    assert rows == [(name, batch, 1) for name in ("pytorch", "onnx") for batch in (1, 4)]
    assert all(row["ms"] > 0 for row in summary["latency"])
    assert f"{summary['parameters']:,} parameters, {summary['macs']:,} multiply-adds" in out

    status, _, err = darts_fast("export", "run", "--formats", "state_dict")
    assert (status, "has an earlier state_dict.pt; pass --overwrite" in err) == (2, True)


@pytest.mark.slow
@onnx_installed
def test_nasbench201_with_normalisation_from_loose_weights(darts_fast: Run, tmp_path: Path) -> None:
    arch = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|nor_conv_3x3~0|none~1|avg_pool_3x3~2|"
    saved = trained(arch, layers=1)
    saved.save("one.pt")
    status, _, err = darts_fast(
        *("export", "--checkpoint", "one.pt", "--normalise", "--formats", "onnx"),
        *("--repeats", "1", "--batch_size", "1"),
    )
    assert (status, err) == (0, "")
    assert {path.name for path in Path("export").iterdir()} == {"network.onnx", "export.json"}
    images = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (saved.mean, saved.std))
    got = run_by_a_stranger(Path("export/network.onnx").resolve(), images, tmp_path)
    torch.testing.assert_close(got, logits_of(saved, (images - mean) / std), rtol=0, atol=1e-4)


def test_weights_of_the_originals_code_and_costs_of_fresh_ones(darts_fast: Run) -> None:
    saved = trained(write_genotype(DARTS_V2))
    torch.save({"module." + k: v for k, v in saved.state_dict.items()}, "weights.pt")
    sizes = ("--init_channels", "4", "--layers", "3", "--image_size", "16", "--repeats", "1")
    common = (*sizes, "--formats", "state_dict", "--arch", "DARTS_V2")
    status, _, err = darts_fast("export", *common, "--checkpoint", "weights.pt", "--out", "a")
    assert (status, err) == (0, "")
    found = torch.load("a/state_dict.pt", weights_only=True)
    assert all(torch.equal(found[name], value) for name, value in saved.state_dict.items())
    status, _, err = darts_fast("export", *common, "--untrained", "--num_classes", "7")
    assert (status, err) == (0, "")
    one, other = (json.loads(Path(f"{name}/export.json").read_text()) for name in ("a", "export"))
    assert (one["macs"], one["parameters"]) == (other["macs"], other["parameters"])
    assert (one["trained"], other["trained"]) == (True, False)


def test_macs_of_the_all_convolution_cell(darts_fast: Run) -> None:
    status, out, err = darts_fast(
        *("export", "--arch", arch_from_index(1462), "--untrained", "--init_channels", "16"),
        *("--layers", "5", "--image_size", "32", "--repeats", "1", "--batch_size", "1"),
        *("--formats", "state_dict"),
    )
    assert (status, err) == (0, "")
    assert "1,531,546 parameters, 220,119,680 multiply-adds for an image" in out


def test_the_selected_network_of_a_search_is_taken(darts_fast: Run) -> None:
    Path("run").mkdir()
    kept = trained(write_genotype(DARTS_V2), layers=1)
    for label in ("magnitude", "perturbation", "random"):
        kept.save(f"run/network-{label}.pt")
    common = ("export", "run", "--formats", "state_dict", "--repeats", "1", "--batch_size", "1")
    status, _, err = darts_fast(*common)
    assert (status, "--network must be one of magnitude, perturbation, random" in err) == (2, True)
    Path("run/config.json").write_text('{"select": "perturbation"}')
    assert darts_fast(*common)[0] == 0
    assert darts_fast(*common, "--network", "random", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "export: no such directory: nowhere"),
        (["."], "export: no trained network in .; train what it found with: darts-fast train"),
        ([], "export: name a RUN_DIR, or --checkpoint, or --arch"),
        (["--arch", "DARTS"], "--arch: needs --checkpoint with its weights, or --untrained"),
        (["--checkpoint", "bad.pt"], "--checkpoint: bad.pt: cut short, or not saved by darts_fast"),
        (["--arch", "DARTS", "--checkpoint", "bad.pt"], "bad.pt: not a file of weights"),
        (
            ["--arch", "DARTS", "--checkpoint", "state.pt", "--image_size", "16"],
            "must be of 36 channels and 20 layers",
        ),
        (["--arch", "DARTS_V1", "--checkpoint", "net.pt"], "is of another architecture, Genotype"),
        (["--checkpoint", "net.pt", "--image_size", "15"], "must be even"),
        (["--checkpoint", "other.pt"], "a derived network has auxiliary, channels"),
        (["--arch", "DARTS", "--untrained"], "--image_size: the network's file does not say it"),
        (["--formats", "tflite"], "must be among state_dict, pt2, onnx, got 'tflite'"),
        ([".", "--untrained"], "a run has its own networks"),
    ],
)
def test_errors_of_export_are_one_line(darts_fast: Run, arguments: list[str], message: str) -> None:
    Path("bad.pt").write_bytes(b"not a file of torch's" * 10)
    saved = trained(write_genotype(DARTS_V2), layers=2)
    saved.save("net.pt")
    torch.save(saved.state_dict, "state.pt")
    atomic_save("other.pt", {"genotype": "x"})
    status, _, err = darts_fast("export", *arguments)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("export").exists()


def test_an_export_that_differs_is_refused() -> None:
    model = Classifier(trained(arch_from_index(5), layers=1).build())
    assert check_equal("same", model, model, (16, 16)) == 0
    with pytest.raises(ValueError, match=r"wrong: logits must differ .* at most 0.0001, got"):
        check_equal("wrong", model, lambda x: model(x) + 2e-3, (16, 16))
    with pytest.raises(ValueError, match="got inf"):
        check_equal("nan", model, lambda x: model(x) * float("nan"), (16, 16))
    with pytest.raises(ValueError, match=r"logits must be \[1, 7\], got \[7\]"):
        check_equal("shape", model, lambda x: model(x)[0], (16, 16))


def test_exported_operators_are_pytorchs_own() -> None:
    program = export_program(Classifier(trained(write_genotype(DARTS_V2)).build()), (16, 16))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls
    assert {call.split(".")[0] for call in calls} == {"aten"}


def test_networks_that_draw_random_numbers_are_refused() -> None:
    noisy = DARTS_V2._replace(normal=[("noise", 0), ("noise", 1)] * 4)
    with pytest.raises(ValueError, match="must not draw random numbers, got operation noise"):
        Classifier(build_derived(noisy, channels=4, num_classes=2, layers=3))


def test_without_the_extra_the_other_files_are_written(
    darts_fast: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(arch_from_index(5), layers=1).save("net.pt")
    monkeypatch.setitem(sys.modules, "onnx", None)
    common = ("export", "--checkpoint", "net.pt", "--repeats", "1", "--batch_size", "1")
    status, _, err = darts_fast(*common, "--formats", "onnx")
    message = "ONNX files need onnx, which is not installed; pip install 'darts-fast[export]'"
    assert (status, message in err) == (2, True)
    status, out, err = darts_fast(*common)
    assert (status, err) == (0, "")
    assert f"no ONNX file: {message}" in out
    names = {path.name for path in Path("export").iterdir()}
    assert names == {"state_dict.pt", "network.pt2", "export.json"}


def test_saved_networks_notice_changes(tmp_path: Path) -> None:
    saved = trained(arch_from_index(5), layers=1)
    path = tmp_path / "net.pt"
    saved.save(path)
    assert SavedNetwork.load(path).image_size == [16, 16]
    assert load_weights(path).keys() == saved.state_dict.keys()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFileError):
        SavedNetwork.load(path)
