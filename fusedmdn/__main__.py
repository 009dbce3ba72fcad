"""`python -m fusedmdn`: the command, as torchrun starts it."""

from .cli import app

app(prog_name="fusedmdn")
