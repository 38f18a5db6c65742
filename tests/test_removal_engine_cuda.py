# SPDX-License-Identifier: Apache-2.0
"""`MaskedEvaluation` with a network on a CUDA device, which is pretended."""

from __future__ import annotations

import copy

import pytest
import torch
from gpu_cases import has_cuda_kernel
from pretended_device import There, move_there, pretended_device
from removal_cases import mixed_tables, small_batches, small_net, without
from simulated_cell import stems_as_modules

from darts_fast.backend import use_cuda_kernels
from darts_fast.selection.engine import MaskedEvaluation, memory, together

FREE = 4 * 2**30


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the chunks that are made; the device has `FREE` bytes."""
    sizes: list[int] = []
    cut = together.cut
    monkeypatch.setattr(
        together, "cut", lambda items, most: [sizes.append(len(p)) or p for p in cut(items, most)]
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE, 2 * FREE))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**20)
    return sizes


@pytest.mark.parametrize("space", ["s3", "s5", "nasbench201"])
def test_scores_are_those_of_the_host_one_transfer_per_chunk(space, chunks):
    net, (images, labels) = small_net(space, layers=3), small_batches((4,))[0]
    tables = mixed_tables(net)[:8]
    with stems_as_modules():
        expected = MaskedEvaluation(net, tables)(images, labels)
    on_host = list(chunks)
    del chunks[:]
    move_there(net)
    with pretended_device() as device, use_cuda_kernels():
        evaluate = MaskedEvaluation(net, tables)
        device.fetched = 0
        found = evaluate(There(images), There(labels))
    assert found.loss.tolist() == expected.loss.tolist()
    assert found.correct.tolist() == expected.correct.tolist()
    assert chunks == on_host
    assert device.fetched == len(chunks)


def test_chunks_follow_the_memory_of_the_device(chunks, monkeypatch):
    net, (images, labels) = small_net("s5", layers=3), small_batches((4,))[0]
    tables = [without(net, ("normal", 0, op)) for op in range(7)]
    there = move_there(copy.deepcopy(net))
    with pretended_device() as device, use_cuda_kernels():
        evaluate = MaskedEvaluation(there, tables)
        one = evaluate(There(images), There(labels))
        assert chunks == [7]
        del chunks[:]
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**24, FREE))
        device.fetched = 0
        other = evaluate(There(images), There(labels))
        assert len(chunks) > 1
        assert device.fetched == len(chunks)
        with pytest.raises(ValueError, match="max_memory must hold one table"):
            MaskedEvaluation(there, tables, max_memory=1)(There(images), There(labels))
    assert one.loss.tolist() == other.loss.tolist()


def test_the_default_is_half_of_what_the_device_has_free(chunks):
    expected = (FREE + 2 * 2**20) // 2
    assert memory.default_memory(torch.device("cuda:0")) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda_kernel("mixed_cell"), reason="this build has no CUDA kernels")
@pytest.mark.parametrize("space", ["s5", "nasbench201"])
def test_on_a_device_scores_are_near_and_the_budget_is_kept(space):
    net, (images, labels) = small_net(space, layers=3), small_batches((64,))[0]
    tables, budget = mixed_tables(net), 200 * 2**20
    expected = MaskedEvaluation(net, tables)(images, labels)
    there, images, labels = net.to("cuda"), images.to("cuda"), labels.to("cuda")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with use_cuda_kernels():
        evaluate = MaskedEvaluation(there, tables, max_memory=budget)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = evaluate(images, labels)
        taken = torch.cuda.max_memory_allocated() - before
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-4)
    assert taken <= budget
