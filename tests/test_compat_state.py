# SPDX-License-Identifier: Apache-2.0
"""What compat networks list, move, copy and load.

Alphas are no parameters of anything; files of old PyTorch and genotypes of one's own class are
taken.
"""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from typing import Any

import pytest
import torch
from test_compat_names import BUILDERS
from torch import Tensor, nn

from darts_fast.compat import darts

NETWORKS = ["darts", "pc_darts", "pc_darts imagenet", "darts_pt sdarts proj", "nasbench201 proj"]


def values(net: Any) -> list[Tensor]:
    return [alpha.detach().clone() for alpha in net.arch_parameters()]


@pytest.fixture(params=NETWORKS)
def net(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return BUILDERS[request.param]()


def test_a_wrapper_does_not_list_them(net: Any) -> None:
    """Scripts build the weights' optimizer from `DataParallel(model).parameters()`."""
    wrapped = nn.Sequential(nn.DataParallel(net))
    alphas = {id(alpha) for alpha in net.arch_parameters()}
    assert alphas.isdisjoint(id(p) for p in wrapped.parameters())
    assert alphas.isdisjoint(id(p) for _, p in wrapped.named_parameters())
    assert [id(p) for p in wrapped.parameters()] == [id(p) for p in net.parameters()]
    assert not any("alpha" in key or "arch" in key for key in wrapped.state_dict())
    before = values(net)
    sgd = torch.optim.SGD(wrapped.parameters(), 0.1, weight_decay=0.1)
    wrapped(torch.randn(2, 3, 32, 32)).sum().backward()
    sgd.step()
    for mine, old in zip(net.arch_parameters(), before, strict=True):
        assert torch.equal(mine, old)
        assert mine.grad is not None


def test_they_move_and_copy(net: Any) -> None:
    own, before = list(net.arch_parameters()), values(net)
    for alpha in own:
        alpha.grad = torch.ones_like(alpha)
    net.double()
    assert all(a is b for a, b in zip(net.arch_parameters(), own, strict=True))
    for alpha, old in zip(own, before, strict=True):
        assert alpha.dtype == alpha.grad.dtype == torch.float64
        assert torch.equal(alpha, old.double())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.new()):
        for mine, theirs in zip(net.arch_parameters(), twin.arch_parameters(), strict=True):
            assert torch.equal(mine, theirs)
            assert mine is not theirs


def test_a_state_dict_that_has_them_loads(net: Any) -> None:
    names = net._architecture_names()
    given = {name: torch.full_like(getattr(net, name), 0.25) for name in names}
    net.load_state_dict({**net.state_dict(), **given})
    assert all((alpha == 0.25).all() for alpha in net.arch_parameters())
    with pytest.raises(RuntimeError, match=f"{names[0]} must be"):
        net.load_state_dict({**net.state_dict(), names[0]: torch.zeros(1)})


def test_files_of_old_pytorch_load(net: Any) -> None:
    """Strictly, without `num_batches_tracked` and without metadata (PyTorch 0.3)."""
    old = {k: v.clone() for k, v in net.state_dict().items() if not k.endswith("tracked")}
    assert len(old) < len(net.state_dict())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    net.load_state_dict(old)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in old.items())
    missing = next(iter(old))
    with pytest.raises(RuntimeError, match=f'Missing key.*"{missing}"'):
        net.load_state_dict({key: value for key, value in old.items() if key != missing})


Own = namedtuple("Own", "normal normal_concat reduce reduce_concat")


@pytest.mark.parametrize("name", ["NetworkCIFAR", "NetworkImageNet"])
def test_a_genotypes_py_of_one_s_own_may_stay(name: str) -> None:
    """The originals' file is data: a named tuple of the script's own, with lists and ranges."""
    pairs = [("skip_connect", 0), ("sep_conv_3x3", 1), ("noise", 0), ("max_pool_3x3", 2)]
    genotype = Own(normal=pairs, normal_concat=range(2, 4), reduce=pairs, reduce_concat=[2, 3])
    net = getattr(darts.model, name)(4, 5, 3, False, genotype)
    net.drop_path_prob = 0.2
    logits, auxiliary = net(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5)
    assert auxiliary is None
    assert net.cells[0].primitives == tuple(op for op, _ in pairs)


def test_a_plain_tensor_may_take_their_place() -> None:
    """As scripts of one's own initialise them."""
    net = BUILDERS["darts"]()
    net.alphas_normal = (1e-3 * torch.randn(2, 8)).requires_grad_()
    assert net.arch_parameters()[0] is net._arch_parameters[0] is net.alphas_normal
    net.double()
    assert net.alphas_normal.dtype == torch.float64
    net(torch.randn(2, 3, 8, 8, dtype=torch.float64)).sum().backward()
    assert net.alphas_normal.grad.abs().sum() > 0
    assert not any("alphas" in key for key in net.state_dict())


def test_another_initialisation_replaces_all_of_them() -> None:
    """`_initialize_alphas` of PC-DARTS draws the weights of the edges too."""
    net = BUILDERS["pc_darts"]()
    before = values(net)
    net._initialize_alphas()
    assert len(net.arch_parameters()) == 4
    for mine, old in zip(net.arch_parameters(), before, strict=True):
        assert not torch.equal(mine, old)


@pytest.mark.parametrize("name", ["darts", "pc_darts"])
def test_a_replica_of_the_weights_on_another_device(name: str) -> None:
    """As `nn.DataParallel` makes it: the alphas stay where they are."""
    net = BUILDERS[name]()
    for child in net.children():
        child.to("meta")
    logits = net(torch.randn(2, 3, 16, 16, device="meta"))
    assert logits.device.type == "meta"
    assert {alpha.device.type for alpha in net.arch_parameters()} == {"cpu"}
