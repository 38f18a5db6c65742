# SPDX-License-Identifier: Apache-2.0
"""What a watch finds of modules that it has looked at before."""

import gc
import weakref
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import nn

from darts_fast.nn.operations import SepConv
from darts_fast.nn.watch import Watch


def looked_at() -> tuple[SepConv, Watch]:
    """A module and its watch, which has twice found nothing."""
    module = SepConv(4, 4, 3, 1, 1)
    watch = Watch([module])
    for _ in range(2):
        assert watch.same([module])
        assert watch.untouched()
    return module, watch


def first_conv(module: SepConv) -> nn.Conv2d:
    return cast(nn.Conv2d, module.op[1])


def replace_by_setattr(module: SepConv) -> None:
    module.op = nn.Sequential(*module.op)


def replace_in_table(module: SepConv) -> None:
    module.op._modules["0"] = nn.ReLU()


def remove_child(module: SepConv) -> None:
    del module.op[7]


def add_child(module: SepConv) -> None:
    module.add_module("more", nn.ReLU())


def move_child(module: SepConv) -> None:
    cast(dict[str, nn.Module], module.op._modules)["0"] = module.op._modules.pop("0")


def change_class(module: SepConv) -> None:
    module.op[0].__class__ = nn.ReLU6


def other_setting(module: SepConv) -> None:
    first_conv(module).stride = (2, 2)


def other_setting_in_table(module: SepConv) -> None:
    vars(first_conv(module)).update(padding=(0, 0))


def give_parameter(module: SepConv) -> None:
    first_conv(module).bias = nn.Parameter(torch.ones(4))


def replace_attributes(module: SepConv) -> None:
    conv = first_conv(module)
    conv.__dict__ = {**vars(conv), "dilation": (2, 2)}


def hide_attribute(module: SepConv) -> None:
    vars(module)["raw"] = lambda x: x


CHANGES = (
    replace_by_setattr,
    replace_in_table,
    remove_child,
    add_child,
    move_child,
    change_class,
    other_setting,
    other_setting_in_table,
    give_parameter,
    replace_attributes,
    hide_attribute,
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_at_every_later_look(change: Callable[[SepConv], None]) -> None:
    module, watch = looked_at()
    change(module)
    assert not watch.same([module])
    assert not watch.same([module])


def test_a_change_taken_back_is_none() -> None:
    module, watch = looked_at()
    conv = first_conv(module)
    stride = conv.stride
    conv.stride = (2, 2)
    assert not watch.same([module])
    conv.stride = stride
    assert watch.same([module])
    conv.stride = stride[:1] + stride[1:]  # an equal one
    assert watch.same([module])
    conv.stride = (2, 2)
    assert not watch.same([module])


def test_what_is_read_at_every_call_may_change() -> None:
    module, watch = looked_at()
    module.eval()
    norm = cast(nn.BatchNorm2d, module.op[3])
    norm.eps = 0.5
    first_conv(module).weight = nn.Parameter(torch.ones(4, 1, 3, 3))
    assert watch.same([module])
    assert watch.untouched()


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_are_found_and_their_removal(register: str) -> None:
    module, watch = looked_at()
    handle = getattr(module.op[6], register)(lambda *_: None)
    assert watch.same([module])
    assert not watch.untouched()
    handle.remove()
    assert watch.untouched()


def test_a_forward_of_the_instance_is_found_and_its_removal() -> None:
    module, watch = looked_at()
    relu = module.op[0]
    relu.forward = lambda x: x
    assert not watch.untouched()
    watch.same([module])
    assert not watch.untouched()
    del relu.forward
    assert watch.same([module])
    assert watch.untouched()


def test_a_forward_of_a_type_that_computes_the_same_is_none() -> None:
    class Same:
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu()

    module, watch = looked_at()
    vars(module.op[0])["forward"] = Same()
    watch.same([module])
    assert not watch.untouched()
    assert watch.untouched(Same)


def test_a_network_that_keeps_its_watch_is_freed() -> None:
    module, watch = looked_at()
    vars(module)["kept"] = watch
    gone = weakref.ref(module)
    del module, watch
    gc.collect()
    assert gone() is None
