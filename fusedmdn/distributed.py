"""The processes that train together, as torchrun starts them; a single one needs neither a group nor a wrapper."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The processes that train together, and which of them this one is.

    With more than one, torch.distributed's default group must be there, with a backend for the tensors' device: `join`
    makes it.

    Attributes:
        rank: this process's number.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part: every item is one process's."""
        return items[self.rank :: self.size]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over all processes by every backward pass."""
        return model if self.size == 1 else DistributedDataParallel(model)

    def gather(self, values: Tensor) -> Tensor:
        """(n) values of every process -> (size, n) in the order of ranks, on the CPU: everywhere the same."""
        everyone = [torch.empty_like(values) for _ in range(self.size)] if self.size > 1 else [values]
        if self.size > 1:
            dist.all_gather(everyone, values)
        return torch.stack(everyone).cpu()

    def restarted(self, device: torch.device) -> bool:
        """Whether torchrun has started these processes again after some failed (--max-restarts).

        It counts that where a process failed; the processes of other machines learn it here.
        """
        return bool(self.gather(torch.tensor([_restarts()], device=device)).any())

    def wait(self) -> None:
        """Return when every process has come this far."""
        if self.size > 1:
            dist.barrier()

    def check_same(self, what: str, text: str, device: torch.device) -> None:
        """Wait for every process.

        Raises:
            ValueError: their texts differ.
        """
        number = int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
        numbers = self.gather(torch.tensor([number], device=device))[:, 0].tolist()
        if len(set(numbers)) > 1:
            raise ValueError(f"{what} must be the same for all {self.size} processes, but differ between them")


ALONE = World()


def world_size() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _local_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def own_device(name: str) -> str:
    """The device that `name` means here: each process of a machine has a GPU of its own.

    Raises:
        ValueError: a numbered device, which several processes would share.
    """
    if world_size() == 1:
        return name
    if name in ("auto", "cuda"):
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" or torch.cuda.is_available() else "cpu"
    if ":" in name and _local_size() > 1:
        raise ValueError(f"device {name!r} cannot be every process's own: give {name.split(':')[0]!r}")
    return name


def leave(code: int) -> None:
    """End this process at once, if it is one of several: what it had to write is written.

    The interpreter's own way out, with gloo's threads still there, now and then ends in SIGABRT ("terminate called
    without an active exception": 1 of 100 runs of two processes; with this, none of 100).
    """
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """The world of the processes that torchrun started, gloo between CPUs, NCCL between NVIDIA GPUs.

    The group is dismantled only where all leave together, at the end or by SystemExit: after an error of its own a
    process must end at once, so that torchrun ends those that wait for it.
    """
    if world_size() == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(dist.rendezvous("env://"))
    if size == _local_size():
        # torchrun keeps one store for all restarts (pytorch/pytorch#135712), and in it the addresses of those that are
        # no more. Between machines the numbers of restarts differ; there it has to be told to (docs/training.md).
        store = dist.PrefixStore(f"after {_restarts()} restarts", store)
    dist.init_process_group(dist.get_default_backend_for_device(device), store=store, rank=rank, world_size=size)
    try:
        yield World(rank, size)
    except SystemExit:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
