"""DistributedDataParallel over two processes gives the gradients of one process with the whole batch."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from fusedmdn import FusedLSTMMDN

from .test_module import strokes


def model_and_data():
    torch.manual_seed(0)
    model = FusedLSTMMDN(3, 8, 2, 3, skip=True, peephole=True, clip_gates=10.0).double()
    return model, strokes(7, 4, dtype=torch.float64), torch.tensor([7, 3, 5, 7])


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, x, lengths = model_and_data()
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # the second step fails if the first left a hook waiting
        wrapped.zero_grad()
        nll, _ = wrapped(x[:, rank::2], lengths=lengths[rank::2], target=x[:, rank::2])
        nll.sum().backward()
    save_file({name: p.grad for name, p in model.named_parameters()}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def test_gradients_over_two_processes(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    model, x, lengths = model_and_data()
    nll, _ = model(x, lengths=lengths, target=x)
    (nll.sum() / 2).backward()  # DistributedDataParallel averages over processes
    for rank in range(2):
        gradients = load_file(tmp_path / f"{rank}.safetensors")
        for name, p in model.named_parameters():
            torch.testing.assert_close(gradients[name], p.grad)
