"""Processes of a test: forked from a server that has imported what they need and sees no GPU."""

import multiprocessing
import os
import time
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fusedmdn.distributed import World

SECONDS = 120  # in which a test's processes must have ended
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["fusedmdn.train", "torch._dynamo", "torch.utils.tensorboard"])


def start_server():
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        forkserver.ensure_running()


def together(size, work, folder, *args):
    """work(world, folder, *args) in so many processes that form a gloo group; what one raises is raised here."""
    (folder / "store").unlink(missing_ok=True)
    start_server()
    group = mp.start_processes(_member, (size, folder, work, args), nprocs=size, join=False, start_method="forkserver")
    until = time.monotonic() + SECONDS
    try:
        while not group.join(timeout=1):
            assert time.monotonic() < until, "the processes wait for each other"
    finally:
        for process in group.processes:
            process.kill()
            process.join()


def _member(rank, size, folder, work, args):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=60), rank=rank, world_size=size)
    work(World(rank, size), Path(folder), *args)
    dist.destroy_process_group()


def apart(work, *calls):
    """work(*args) for each of the calls' args, in processes of their own at once.

    Gives their exit statuses, or minus the signal that ended one.
    """
    start_server()
    processes = [context.Process(target=_single, args=(work, args)) for args in calls]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _single(work, args):
    torch.set_num_threads(1)
    work(*args)
