# SPDX-License-Identifier: Apache-2.0
"""Several processes that do one run together, as ``torchrun`` starts them.

Every process has the whole network and goes through the same steps; a `World` says which part of
the work is its own and joins the parts. A world of one process calls nothing of torch.distributed.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from darts_fast.reporter import Interrupted
from darts_fast.seeding import draw_seed, seeded

__all__ = ["ALONE", "RankLostError", "ToldElsewhere", "World", "join", "launcher", "leave", "place"]

T = TypeVar("T")


class RankLostError(RuntimeError):
    """Another process of the run is gone, or does not answer."""


class ToldElsewhere(Exception):  # noqa: N818  (no error of this process)
    """Another process of the run failed and says why."""


class World:
    """The processes of one run.

    All methods but :meth:`share` are collective: every process calls them in the same order.

    Attributes:
        rank: of this process, from 0; only the first writes files and shows progress.
        size: how many processes there are.

    Raises (all collective methods):
        RankLostError: another process is gone.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def share(self, count: int) -> slice:
        """Which of `count` things are this process's: consecutive, the shares in order of the ranks
        and equal but for one thing, which the first ranks have more; the rest may have none.
        """
        least, more = divmod(count, self.size)
        first = self.rank * least + min(self.rank, more)
        return slice(first, first + least + (self.rank < more))

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, bit for bit the same on each.

        They travel together in one buffer, of the widest of their types and at least float32.
        """
        if self.alone or not tensors:
            return
        wide = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1).to(wide) for tensor in tensors])
            with self._talking():
                dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank. They are pickled."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        with self._talking():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The value of the first process, pickled; what others give is not used."""
        if self.alone:
            return value
        values: list[Any] = [value if self.rank == 0 else None]
        with self._talking():
            dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first process, which alone does it.

        Raises:
            ToldElsewhere: on the others, where it raised on the first.
        """
        if self.rank > 0:
            done, value = self.broadcast((False, None))
            if not done:
                raise ToldElsewhere
            return value  # type: ignore[return-value]
        try:
            value = work()
        except Exception:
            self.broadcast((False, None))
            raise
        self.broadcast((True, value))
        return value

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block without collective calls that every process comes through, or none.

        Raises:
            ToldElsewhere: the block raised in another process; the first of those raises its own.
        """
        if self.alone:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:  # whatever it is, the others must hear of it
            error = raised
        failed = self.gather(error is not None)
        if error is not None and failed.index(True) == self.rank:
            raise error
        if any(failed):
            raise ToldElsewhere

    def parts(self, work: Callable[[], T]) -> list[T]:
        """What `work` gives in all processes, by rank.

        Raises:
            Interrupted: in all of them, where `work` raised it in one.
        """
        if self.alone:
            return [work()]
        part: T | None = None
        interrupted = False
        try:
            part = work()
        except Interrupted:
            interrupted = True
        found = self.gather((interrupted, part))
        if any(stopped for stopped, _ in found):
            raise Interrupted
        return [value for _, value in found]  # type: ignore[misc]

    def same(self, work: Callable[[], T]) -> T:
        """What `work` gives here, where every process does the same. Raises as :meth:`parts`."""
        kept: list[T] = []
        self.parts(lambda: kept.append(work()))
        return kept[0]

    @contextmanager
    def own_draws(self) -> Iterator[None]:
        """Inside, torch's global generators are this process's own, keyed by a number that all draw
        alike; afterwards they are again the same in all processes.
        """
        if self.alone:
            yield
            return
        with seeded(draw_seed() + self.rank):
            yield

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        # A process that died while it wrote leaves half a pickle.
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = re.sub(r"^\[[^ ]*\] ", "", str(error).split("\n")[0]).split(". ")[0]
            raise RankLostError(
                f"another of the {self.size} processes of the run is gone or does not answer "
                f"({reason})"
            ) from error


ALONE = World()


def join() -> World:
    """The world of this process: that of torch.distributed where it is initialised, else the one
    that torchrun's environment describes, which is joined (gloo for tensors on the CPU, NCCL for
    those on CUDA devices), else this process alone.

    With CUDA the process takes the device of its ``LOCAL_RANK``.

    Raises:
        RankLostError: the other processes do not come.
        ValueError: the environment is incomplete.
    """
    if not dist.is_initialized():
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return ALONE
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cpu:gloo,cuda:nccl"
        with World(size=size)._talking():
            dist.init_process_group(backend)
    return World(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """End what :func:`join` began; nothing for a process alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def place() -> tuple[int, int]:
    """Rank and number of processes by torchrun's environment, also before :func:`join`."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def launcher() -> str:
    """The words that start a command as this process was started."""
    size = place()[1]
    if size == 1:
        return "darts-fast"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    nodes = f"--nnodes {size // local} ... " if size > local else ""
    return f"torchrun {nodes}--nproc_per_node {local} -m darts_fast"
