# SPDX-License-Identifier: Apache-2.0
"""Several processes as torchrun would start them, forked from a server that has imported
darts_fast.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from darts_fast.cli import main
from darts_fast.distributed import join, leave

_PROCESSES = multiprocessing.get_context("forkserver")
# The first optimizer of a process imports torch._dynamo.
_PROCESSES.set_forkserver_preload(["darts_fast.cli", "torch._dynamo"])
PATIENCE = 240.0  # seconds that a group of processes may take before its test fails


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _enter(rank: int, size: int, port: int, output: str) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)


def _command(rank: int, size: int, port: int, output: str, arguments: list[str]) -> None:
    _enter(rank, size, port, output)
    raise SystemExit(main(arguments))


def _function(
    rank: int, size: int, port: int, output: str, work: Callable[..., Any], given: Any
) -> None:
    _enter(rank, size, port, output)
    result = work(join(), *given)
    Path(f"{output}.result").write_bytes(pickle.dumps(result))
    leave()


class Processes:
    """One group of processes; each writes what it prints to a file of its own in `place`."""

    def __init__(self, place: Path, size: int, target: Callable[..., None], *given: Any) -> None:
        place.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        self.outputs = [place / f"output-{port}-{rank}" for rank in range(size)]
        self._processes = [
            _PROCESSES.Process(
                target=target, args=(rank, size, port, str(output), *given), daemon=True
            )
            for rank, output in enumerate(self.outputs)
        ]
        for process in self._processes:
            process.start()

    @classmethod
    def of_command(cls, place: Path, *arguments: str, size: int = 2) -> Processes:
        """That run a command of darts-fast together."""
        return cls(place, size, _command, list(arguments))

    def wait(self) -> list[int]:
        """Exit status of each; negative for a signal's. None is left running."""
        try:
            for process in self._processes:
                process.join(PATIENCE)
                assert process.exitcode is not None, f"still running: {self.texts}"
            return [int(process.exitcode) for process in self._processes]
        finally:
            for process in self._processes:
                process.kill()

    def signal(self, rank: int, signum: int) -> None:
        """Send a signal to one process."""
        os.kill(self._processes[rank].pid, signum)

    @property
    def alive(self) -> bool:
        """Whether all are running."""
        return all(process.is_alive() for process in self._processes)

    @property
    def texts(self) -> list[str]:
        """What each has printed."""
        return [path.read_text() if path.exists() else "" for path in self.outputs]


def in_world(place: Path, work: Callable[..., Any], *given: Any, size: int = 2) -> list[Any]:
    """What ``work(world, *given)`` gives in each of `size` processes."""
    processes = Processes(place, size, _function, work, given)
    statuses = processes.wait()
    assert statuses == [0] * size, processes.texts
    return [pickle.loads(Path(f"{path}.result").read_bytes()) for path in processes.outputs]
