# SPDX-License-Identifier: Apache-2.0
"""Derived networks: names, sizes and behaviour of the originals; agreement with the supernet."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import Tensor, nn

from darts_fast.derive import (
    NasBench201Network,
    NetworkCIFAR,
    NetworkImageNet,
    build_derived,
)
from darts_fast.derive.network import Cell
from darts_fast.nn.operations import FactorizedReduce, Identity
from darts_fast.spaces import (
    DARTS_V1,
    DARTS_V2,
    Genotype,
    arch_from_index,
    get_space,
    random_genotype,
)

ALL_SKIP = Genotype(
    normal=[("skip_connect", j) for j in (0, 1)] * 4,
    normal_concat=range(2, 6),
    reduce=[("skip_connect", j) for j in (0, 1)] * 4,
    reduce_concat=range(2, 6),
)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_network_cifar_has_the_keys_and_parameters_of_the_original() -> None:
    net = NetworkCIFAR(36, 10, 20, True, DARTS_V2)
    assert len(net.state_dict()) == 1650
    assert parameters(net) == 3_825_768
    assert parameters(NetworkCIFAR(36, 10, 20, False, DARTS_V2)) == 3_349_342


def test_network_imagenet_has_the_keys_of_the_original() -> None:
    net = NetworkImageNet(48, 1000, 14, True, DARTS_V2)
    assert len(net.state_dict()) == 1124
    # 4.7 M without the auxiliary head, as the paper says.
    main = sum(p.numel() for n, p in net.named_parameters() if not n.startswith("auxiliary"))
    assert round(main / 1e6, 1) == 4.7


BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
KEY = re.compile(
    rf"""stem\.0\.weight | stem\.1\.{BN}
    | cells\.\d+\.preprocess[01]\.op\.(1\.weight|2\.{BN})
    | cells\.\d+\.preprocess0\.(conv_[12]\.weight|bn\.{BN})
    | cells\.\d+\._ops\.[0-7]\.op\.([1256]\.weight|[37]\.{BN})
    | auxiliary_head\.features\.([25]\.weight|[36]\.{BN})
    | (auxiliary_head\.)?classifier\.(weight|bias)""",
    re.VERBOSE,
)


def test_network_cifar_names_its_parts_as_the_original() -> None:
    net = NetworkCIFAR(4, 10, 8, True, DARTS_V2)
    keys = list(net.state_dict())
    assert [key for key in keys if not KEY.fullmatch(key)] == []
    # Cells behind a reduction (2 and 5 of 8) halve the older input, all others do not.
    halving = {key.split(".")[1] for key in keys if "preprocess0.conv_2" in key}
    assert halving == {"3", "6"}
    assert net.stem[0].out_channels == 3 * 4
    assert net.classifier.in_features == 4 * 16


def test_network_imagenet_names_its_stems_as_the_original() -> None:
    net = NetworkImageNet(4, 10, 3, True, DARTS_V2)
    keys = set(net.state_dict())
    for key in ("stem0.0.weight", "stem0.1.bias", "stem0.3.weight", "stem0.4.weight"):
        assert key in keys
    for key in ("stem1.1.weight", "stem1.2.running_var", "cells.0.preprocess0.conv_1.weight"):
        assert key in keys
    assert "auxiliary_head.features.6.weight" not in keys


@pytest.mark.parametrize("layers", range(1, 9))
def test_reductions_and_auxiliary_head_are_where_the_original_has_them(layers: int) -> None:
    net = NetworkCIFAR(2, 3, layers, True, DARTS_V1).train()
    seen: dict[str, Tensor] = {}
    for index, cell in enumerate(net.cells):
        cell.register_forward_hook(lambda m, i, o, n=f"cell {index}": seen.update({n: o}))
    net.auxiliary_head.register_forward_hook(lambda m, i, o: seen.update(head=i[0]))
    net(torch.randn(2, 3, 16, 16))
    sizes = [seen[f"cell {index}"].shape[-1] for index in range(layers)]
    size, expected = 16, []
    for index in range(layers):
        size //= 2 if index in {layers // 3, 2 * layers // 3} else 1
        expected.append(size)
    assert sizes == expected
    assert seen["head"] is seen[f"cell {2 * layers // 3}"]


def test_the_auxiliary_head_runs_in_training_only() -> None:
    x = torch.randn(2, 3, 32, 32)
    net = NetworkCIFAR(4, 7, 3, True, DARTS_V1)
    logits, auxiliary = net.train()(x)
    assert logits.shape == auxiliary.shape == (2, 7)
    logits, auxiliary = net.eval()(x)
    assert logits.shape == (2, 7)
    assert auxiliary is None
    without = NetworkCIFAR(4, 7, 3, False, DARTS_V1).train()
    assert without(x)[1] is None
    assert not [key for key in without.state_dict() if key.startswith("auxiliary")]


@pytest.mark.parametrize(
    ("network", "size", "stride"),
    [(NetworkCIFAR, 8, 3), (NetworkCIFAR, 10, 3), (NetworkImageNet, 7, 2), (NetworkImageNet, 8, 2)],
)
def test_auxiliary_pooling_is_the_originals_where_that_works(
    network: type[NetworkCIFAR], size: int, stride: int
) -> None:
    head = network(2, 3, 3, True, DARTS_V1).auxiliary_head
    x = torch.randn(2, 5, size, size)
    original = nn.AvgPool2d(5, stride=stride, padding=0, count_include_pad=False)
    assert torch.equal(head.features[1](x), original(x))


@pytest.mark.parametrize("image", [(4, 4), (8, 8), (16, 16), (24, 64), (64, 64)])
def test_the_auxiliary_head_takes_every_image_size(image: tuple[int, int]) -> None:
    net = NetworkCIFAR(2, 3, 4, True, DARTS_V1).train()
    logits, auxiliary = net(torch.randn(3, 3, *image))
    assert logits.shape == auxiliary.shape == (3, 3)
    assert auxiliary.isfinite().all()


def test_the_auxiliary_head_leaves_the_features_alone() -> None:
    """Even where the cell that feeds it is the last one, logits do not depend on it."""
    x = torch.randn(4, 3, 16, 16)
    with_head = NetworkCIFAR(4, 3, 3, True, DARTS_V1).train()
    without = NetworkCIFAR(4, 3, 3, False, DARTS_V1).train()
    without.load_state_dict(with_head.state_dict(), strict=False)
    assert torch.equal(with_head(x)[0], without(x)[0])


@pytest.mark.parametrize("network", [NetworkCIFAR, NetworkImageNet])
def test_every_parameter_learns(network: type[NetworkCIFAR]) -> None:
    net = network(4, 5, 4, True, DARTS_V2).train()
    logits, auxiliary = net(torch.randn(4, 3, 64, 64))
    (logits.square().mean() + 0.4 * auxiliary.square().mean()).backward()
    missing = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["darts", "s1", "s2", "s3", "s4", "s5"])
def test_networks_of_random_genotypes_run(name: str, seed: int) -> None:
    genotype = random_genotype(get_space(name), torch.Generator().manual_seed(seed))
    net = build_derived(genotype, channels=2, num_classes=3, layers=3, auxiliary=True)
    logits, auxiliary = net(torch.randn(2, 3, 8, 8))
    assert logits.shape == auxiliary.shape == (2, 3)
    assert logits.isfinite().all()


def one_node_cell(first: str, second: str) -> Cell:
    genotype = Genotype([(first, 0), (second, 1)], [2], [(first, 0), (second, 1)], [2])
    return Cell(genotype, 6, 6, 4, False, False).train()


def test_drop_path_drops_each_image_and_operation_on_its_own() -> None:
    torch.manual_seed(0)
    cell = one_node_cell("sep_conv_3x3", "dil_conv_3x3")
    s0, s1 = torch.randn(2, 64, 6, 5, 5)
    with torch.no_grad():
        whole = cell(s0, s1, 0.0)
        first = cell._ops[0](cell.preprocess0(s0))
        second = cell._ops[1](cell.preprocess1(s1))
        dropped = cell(s0, s1, 0.4)
    torch.testing.assert_close(whole, first + second)
    counts = dict.fromkeys(itertools.product((0, 1), repeat=2), 0)
    for image in range(64):
        for kept in counts:
            expected = (kept[0] * first[image] + kept[1] * second[image]) / 0.6
            if torch.allclose(dropped[image], expected, atol=1e-5):
                counts[kept] += 1
    assert sum(counts.values()) == 64
    # Expected 10.24, 15.36, 15.36 and 23.04 of 64.
    assert counts[(0, 0)] in range(3, 22)
    assert counts[(1, 1)] in range(12, 36)
    assert min(counts[(0, 1)], counts[(1, 0)]) >= 6


def test_drop_path_spares_identities_but_not_strided_skips() -> None:
    torch.manual_seed(1)
    cell = one_node_cell("skip_connect", "sep_conv_3x3")
    assert isinstance(cell._ops[0], Identity)
    s0, s1 = torch.randn(2, 32, 6, 5, 5)
    with torch.no_grad():
        identity = cell.preprocess0(s0)
        convolved = cell._ops[1](cell.preprocess1(s1))
        rest = cell(s0, s1, 0.5) - identity
    kept = [torch.allclose(rest[i], 2 * convolved[i], atol=1e-5) for i in range(32)]
    gone = [bool((rest[i].abs() < 1e-6).all()) for i in range(32)]
    assert all(a != b for a, b in zip(kept, gone, strict=True))
    assert 6 < sum(gone) < 26

    strided = Cell(ALL_SKIP, 6, 6, 4, True, False).train()
    assert isinstance(strided._ops[0], FactorizedReduce)
    x = torch.randn(16, 6, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(strided(x, x, 0.0), strided(x, x, 0.5))


def test_drop_path_is_off_until_asked_for_and_in_evaluation() -> None:
    net = NetworkCIFAR(4, 3, 3, False, DARTS_V2)
    assert net.drop_path_prob == 0.0
    x = torch.randn(4, 3, 8, 8)
    net.eval()
    plain = net(x)[0]
    net.drop_path_prob = 0.9
    assert torch.equal(net(x)[0], plain)
    state = torch.get_rng_state()
    net.train()
    net.drop_path_prob = 0.0
    net(x)
    assert torch.equal(torch.get_rng_state(), state)
    net.drop_path_prob = 0.5
    torch.set_rng_state(state)
    once = net(x)[0]
    torch.set_rng_state(state)
    assert torch.equal(net(x)[0], once)
    assert not torch.equal(net(x)[0], once)


@pytest.mark.parametrize(
    ("genotype", "size", "message"),
    [
        (DARTS_V2, (9, 8), "got 9x8 before cell 2 for images of 9x8"),
        (DARTS_V2, (6, 6), "got 3x3 before cell 3 for images of 6x6"),
        (ALL_SKIP, (8, 5), "got 8x5 in cell 1 for images of 8x5"),
        (ALL_SKIP, (6, 6), "got 3x3 in cell 2 for images of 6x6"),
    ],
)
def test_sizes_that_cannot_work_are_refused_before_any_work(
    genotype: Genotype, size: tuple[int, int], message: str
) -> None:
    net = NetworkCIFAR(2, 3, 4, False, genotype)
    net.stem.register_forward_hook(lambda *_: pytest.fail("the stem ran"))
    with pytest.raises(ValueError, match=f"NetworkCIFAR: .* must be even .* {message}"):
        net(torch.randn(2, 3, *size))


def test_sizes_that_work_are_exactly_those_that_pass_the_check() -> None:
    """An odd size is fine where only convolutions and pools meet it."""
    for genotype, layers in itertools.product((DARTS_V2, ALL_SKIP), (1, 2, 3, 4)):
        net = NetworkCIFAR(2, 3, layers, False, genotype).eval()
        for size in range(1, 13):
            x = torch.zeros(1, 3, size, 4)
            states = [x, net.stem(x), net.stem(x)]
            try:
                net.check_image_size(size, 4)
                allowed = True
            except ValueError:
                allowed = False
            try:
                for cell in net.cells:
                    states.append(cell(states[-2], states[-1], 0.0))
                runs = True
            except (ValueError, RuntimeError):
                runs = False
            assert allowed == runs, (layers, size)


def test_imagenet_sizes() -> None:
    net = NetworkImageNet(2, 3, 3, False, DARTS_V2).eval()
    assert net(torch.randn(1, 3, 64, 96))[0].shape == (1, 3)
    with pytest.raises(ValueError, match=r"NetworkImageNet: .* got 5x5 before cell 0 for images"):
        net(torch.randn(1, 3, 20, 20))


def test_channels_last_changes_nothing() -> None:
    net = NetworkCIFAR(4, 3, 4, True, DARTS_V2).double().train()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected = net(x)
    found = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NetworkCIFAR(3, 10, 4, False, DARTS_V2), "C must be even and at least 2, got 3"),
        (
            lambda: NetworkImageNet(0, 10, 4, False, DARTS_V2),
            "C must be even and at least 2, got 0",
        ),
        (lambda: NetworkCIFAR(4, 10, 0, False, DARTS_V2), "got layers=0, num_classes=10"),
        (lambda: NetworkCIFAR(4, 0, 2, False, DARTS_V2), "got layers=2, num_classes=0"),
        (lambda: NasBench201Network(arch_from_index(0), N=0), "got C=16, N=0, num_classes=10"),
        (lambda: NasBench201Network("|none~0|"), "an architecture must read"),
    ],
)
def test_networks_that_cannot_be_are_refused(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=message):
        build()


def test_build_derived_chooses_the_network() -> None:
    sizes = {"channels": 4, "num_classes": 3, "layers": 2}
    net = build_derived(DARTS_V2, **sizes, auxiliary=True)
    assert isinstance(net, NetworkCIFAR)
    assert len(net.cells) == 2
    named = build_derived("DARTS_V2", **sizes)
    assert isinstance(named, NetworkCIFAR)
    assert not [key for key in named.state_dict() if key.startswith("auxiliary")]
    cells = build_derived(arch_from_index(9), **sizes)
    assert isinstance(cells, NasBench201Network)
    assert len(cells.cells) == 3 * 2 + 2
    with pytest.raises(ValueError, match="has no auxiliary head, got auxiliary=True"):
        build_derived(arch_from_index(9), **sizes, auxiliary=True)
