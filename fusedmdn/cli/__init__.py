"""The command `fusedmdn`, also `python -m fusedmdn`: one module for each group of commands."""

from __future__ import annotations

import typer

from . import jobs
from .convert import convert
from .draw import draw
from .machine import doctor_command, info, tune_command
from .sample import evaluate_command, sample
from .train import train

app = typer.Typer(
    help="Train and sample LSTM + mixture density networks that write and draw.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(info)
app.command("doctor")(doctor_command)
app.command()(train)
app.command()(sample)
app.command()(draw)
app.command("eval")(evaluate_command)
app.command()(convert)
app.command("tune")(tune_command)
app.add_typer(jobs.app, name="jobs")
