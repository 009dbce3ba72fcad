"""Others' wrappers: DistributedDataParallel, FSDP2 and accelerate train as one process does, as the docs say."""

import os
import re
import socket

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

from fusedmdn import FusedLSTMMDN
from fusedmdn.cli import app

from ..conftest import ROOT
from .test_module import strokes
from .together import apart, together

PAGE = (ROOT / "docs" / "training.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def as_documented(rank, port):
    """Runs the page's blocks as torchrun would; the first makes the group and the batch that the others use."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ["ACCELERATE_USE_CPU"] = "true"  # as `accelerate launch --cpu` sets it
    names = {}
    for block, kind in zip(BLOCKS, (FusedLSTMMDN, DTensor, DistributedDataParallel), strict=True):
        torch.manual_seed(0)
        exec(compile(block, "docs/training.md", "exec"), names)
        torch.manual_seed(0)
        alone = FusedLSTMMDN(3, 32, 2, 5)
        optimizer = torch.optim.Adam(alone.parameters(), lr=1e-3)
        alone.nll(names["batch"]).backward()
        optimizer.step()
        parameters = list(names["model"].parameters())
        assert isinstance(parameters[0] if kind is DTensor else names["model"], kind)
        for p, wanted in zip(parameters, alone.parameters(), strict=True):
            torch.testing.assert_close(whole(p.grad), wanted.grad)
            torch.testing.assert_close(whole(p.detach()), wanted.detach())
    torch.distributed.destroy_process_group()


def test_the_page_s_loops_train_as_one_process_does():
    port = free_port()
    assert apart(as_documented, (0, port), (1, port)) == [0, 0]


def test_the_page_s_options_exist():
    text = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["train", "--help"]).output
    commands = re.findall(r"^    torchrun .*-m fusedmdn train (.*)$", PAGE, re.MULTILINE)
    assert len(commands) >= 3
    options = {word for words in commands for word in words.split() if word.startswith("--")}
    options |= set(re.findall(r"`(--(?:batch|clip|device|checkpoint|resume)[a-z-]*)", PAGE))
    assert len(options) >= 6
    for option in options:
        assert option in text, f"train has no {option}"


def model_and_data():
    torch.manual_seed(0)
    model = FusedLSTMMDN(3, 8, 2, 3, skip=True, peephole=True, clip_gates=10.0).double()
    return model, strokes(7, 4, dtype=torch.float64), torch.tensor([7, 3, 5, 7])


def twice(world, folder):
    model, x, lengths = model_and_data()
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # the second step fails if the first left a hook waiting
        wrapped.zero_grad()
        share = world.share(range(4))
        nll, _ = wrapped(x[:, share], lengths=lengths[share], target=x[:, share])
        nll.sum().backward()
    alone, _, _ = model_and_data()
    nll, _ = alone(x, lengths=lengths, target=x)
    (nll.sum() / 2).backward()  # DistributedDataParallel averages over processes
    for p, wanted in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, wanted.grad)


def test_every_feature_under_ddp(tmp_path):
    """Ragged, with skip connections, peepholes and clipping; twice."""
    together(2, twice, tmp_path)
