# SPDX-License-Identifier: Apache-2.0
"""compat.darts against the structure of quark0/darts written as plain modules."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import eager_supernets
import numpy as np
import pytest
import torch
from compat_cases import ARGS, batch, with_args
from torch import Tensor, nn

from darts_fast.compat import pc_darts
from darts_fast.compat.darts import (
    architect,
    genotypes,
    model,
    model_search,
    operations,
    utils,
    visualize,
)
from darts_fast.compat.darts_pt import visualize as darts_pt_visualize
from darts_fast.compat.pc_darts import visualize as pc_darts_visualize
from darts_fast.derive import build_derived


def pair(steps: int = 4) -> tuple[model_search.Network, eager_supernets.Network]:
    """The same weights and alphas in both."""
    plain = eager_supernets.Network(2, 5, 3, "multiply", steps=steps).double()
    plain.alphas_normal, plain.alphas_reduce = (
        alphas.detach().double().requires_grad_()
        for alphas in (plain.alphas_normal, plain.alphas_reduce)
    )
    net = model_search.Network(2, 5, 3, nn.CrossEntropyLoss(), steps, steps).double()
    net.load_state_dict(plain.state_dict())
    for alpha, values in zip(net.arch_parameters(), alphas_of(plain), strict=True):
        alpha.data.copy_(values.data)
    return net, plain


def alphas_of(plain: eager_supernets.Network) -> list[Tensor]:
    return [plain.alphas_normal, plain.alphas_reduce]


def test_operations_are_built_by_name() -> None:
    for name in genotypes.PRIMITIVES:
        assert isinstance(operations.OPS[name](4, 2, False), nn.Module)


def test_state_dict_and_attributes() -> None:
    net = model_search.Network(16, 10, 8, nn.CrossEntropyLoss())
    assert len(net.state_dict()) == 4186
    assert sum(p.numel() for p in net.parameters()) == 1_930_618
    assert not any("alpha" in name for name, _ in net.named_parameters())
    assert [tuple(a.shape) for a in net.arch_parameters()] == [(14, 8), (14, 8)]
    assert net._arch_parameters[0] is net.alphas_normal
    assert (net._C, net._num_classes, net._layers) == (16, 10, 8)
    assert (net._steps, net._multiplier) == (4, 4)
    assert all(isinstance(cell, model_search.Cell) for cell in net.cells)
    assert all(isinstance(edge, model_search.MixedOp) for edge in net.cells[0]._ops)
    assert utils.count_parameters_in_MB(net) == pytest.approx(1.930618)


def test_derived_networks_have_the_original_s_keys() -> None:
    net = model.NetworkCIFAR(36, 10, 20, True, genotypes.DARTS_V2)
    assert len(net.state_dict()) == 1650
    assert sum(p.numel() for p in net.parameters()) == 3_825_768
    without = sum(p.numel() for n, p in net.named_parameters() if not n.startswith("auxiliary"))
    assert utils.count_parameters_in_MB(net) == pytest.approx(without / 1e6)
    assert len(model.NetworkImageNet(48, 1000, 14, True, genotypes.DARTS).state_dict()) == 1124


@pytest.mark.parametrize("genotype", [genotypes.NASNet, genotypes.AmoebaNet])
def test_published_genotypes_train(genotype: genotypes.Genotype) -> None:
    """The longest and the most mixed cells: five nodes, concatenations of some of them."""
    net = build_derived(genotype, channels=4, num_classes=3, layers=3)
    logits, _ = net(torch.randn(2, 3, 16, 16))
    logits.sum().backward()
    used = [p for n, p in net.named_parameters() if n.startswith("cells.0._ops")]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in used)


def test_genotypes_are_read_from_the_text_of_genotypes_py(tmp_path: Path) -> None:
    path = tmp_path / "genotypes.py"
    path.write_text(
        "from collections import namedtuple\n"
        "Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')\n"
        f"MINE = {genotypes.DARTS_V1!r}\nOTHER = {genotypes.DARTS_V2!r}\nDARTS = MINE\n"
    )
    assert genotypes.read_genotype(path, "DARTS") == genotypes.DARTS_V1
    printed = str(model_search.Network(2, 3, 3, nn.CrossEntropyLoss()).genotype())
    assert "normal_concat=range(2, 6)" in printed
    assert str(genotypes.read_genotype(printed)) == printed


def test_an_old_checkpoint_loads(tmp_path: Path) -> None:
    """Files of torch 0.3 have neither num_batches_tracked nor metadata."""
    net, plain = pair()
    old = {k: v for k, v in plain.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(dict(old), tmp_path / "weights.pt")
    for parameter in net.parameters():
        parameter.data.zero_()
    utils.load(net, tmp_path / "weights.pt")
    loaded = net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in old.items())
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({k: v for k, v in old.items() if k != "stem.0.weight"})
    utils.save(net, tmp_path / "again.pt")
    plain.load_state_dict(torch.load(tmp_path / "again.pt"))


def test_the_first_order_step_touches_no_weight() -> None:
    net, _ = pair(steps=1)
    before = copy.deepcopy(dict(net.named_parameters()))
    mine = architect.Architect(net, ARGS)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    train, valid = batch(0), batch(1)
    mine.step(*train, *valid, 0.1, sgd, unrolled=False)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_new_has_the_alphas_and_fresh_weights() -> None:
    net, _ = pair(steps=1)
    other = net.new()
    assert isinstance(other, model_search.Network)
    assert torch.equal(other.alphas_normal, net.alphas_normal)
    assert other.alphas_normal is not net.alphas_normal
    assert not torch.equal(other.classifier.weight, net.classifier.weight)
    net._initialize_alphas()
    assert not torch.equal(other.alphas_normal, net.alphas_normal.double())


def test_the_original_s_own_architect_finds_what_it_pairs() -> None:
    """Code that walks `named_parameters` beside `parameters` sees the same tensors."""
    net, _ = pair(steps=1)
    assert [id(p) for p in net.parameters()] == [id(p) for _, p in net.named_parameters()]
    twin = copy.deepcopy(net)
    assert torch.equal(twin.alphas_reduce, net.alphas_reduce)
    assert twin.float().alphas_reduce.dtype == torch.float32


def test_accuracy_counts() -> None:
    output = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.3], [0.2, 0.3, 0.5]])
    first, second = utils.accuracy(output, torch.tensor([1, 2, 0]), topk=(1, 2))
    assert first.item() == pytest.approx(100 / 3)
    assert second.item() == pytest.approx(200 / 3)


def test_cutout_and_transforms() -> None:
    np.random.seed(3)  # noqa: NPY002
    y, x = np.random.randint(32), np.random.randint(32)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    image = utils.Cutout(16)(torch.ones(3, 32, 32))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    for row in range(32):
        for column in range(32):
            mask[row, column] = -8 <= row - y < 8 and -8 <= column - x < 8
    assert torch.equal(image == 0, mask.expand(3, 32, 32))

    args = with_args(cutout=True, cutout_length=16)
    train, valid = utils._data_transforms_cifar10(args)
    assert isinstance(train.transforms[-1], utils.Cutout)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    plain = (pixels / 255 - np.array(utils.CIFAR_MEAN)) / np.array(utils.CIFAR_STD)
    expected = torch.from_numpy(plain.transpose(2, 0, 1))
    torch.testing.assert_close(valid(pixels).double(), expected, rtol=1e-5, atol=1e-5)
    assert train(pixels).shape == (3, 32, 32)


def test_experiment_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train_search.py"
    script.write_text("pass")
    utils.create_exp_dir(tmp_path / "EXP", [str(script)])
    assert (tmp_path / "EXP/scripts/train_search.py").read_text() == "pass"
    assert re.search("Experiment dir : .*EXP", capsys.readouterr().out)
    utils.save_checkpoint({"epoch": 1}, True, tmp_path / "EXP")
    assert torch.load(tmp_path / "EXP/model_best.pth.tar") == {"epoch": 1}


def test_pictures_of_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    visualize.main(["AmoebaNet"])
    for name in ("normal.pdf", "reduction.pdf"):
        assert (tmp_path / name).read_bytes().startswith(b"%PDF")
    visualize.plot(genotypes.DARTS.normal, "mine")
    assert (tmp_path / "mine.pdf").exists()
    pc_darts_visualize.plot(pc_darts.genotypes.PCDARTS.reduce, "partial")
    darts_pt_visualize.plot([("noise", 0), ("skip_connect", 1)], "marked", mode="cue")
    for name in ("partial", "marked"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="expected a normal and a reduction cell"):
        visualize.main(["|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"])
    with pytest.raises(ValueError, match="expected one genotype"):
        visualize.main([])
