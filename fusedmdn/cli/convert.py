"""`fusedmdn convert`: a checkpoint of a network that other software has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import Scale, foreign
from .common import say, told_plainly


@told_plainly
def convert(
    file: Annotated[
        Path, typer.Argument(help=".js or .json of rnn-tutorial or sketch-rnn-js; .h5, .hdf5 or .keras of Keras.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the checkpoint; new, or empty.")],
    format: Annotated[str, typer.Option(help=f"{', '.join(foreign.FORMATS)}; auto looks at the file.")] = "auto",
    means: Annotated[
        str | None,
        typer.Option(help="Keras only, no file says it: sigmoid (the default) or linear, what the loss did to means."),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="The strokes' units in one of the network's, where you know better.")
    ] = None,
) -> None:
    """Convert weights of rnn-tutorial, sketch-rnn-js or Keras into a checkpoint for sample, eval and jobs."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is there already, and not an empty directory")
    if scale is not None and not 2**-126 < scale < 2**127:
        raise ValueError(f"--scale must be above zero, in float32's range; got {scale:g}")
    format = foreign.format_of(file) if format == "auto" else format
    model = foreign.read(file, format, **({} if means is None else {"means": means}))
    if scale is not None:
        model.scale = Scale(std=(scale, scale))
    layers = "layer" if model.num_layers == 1 else "layers"
    say(f"{file}: {format}, {sum(weight.numel() for weight in model.parameters()):,} numbers")
    say(f"{model.num_layers} {layers} of {model.hidden_size} units, {model.num_mixtures} mixtures, pen {model.pen}")
    say(f"means {model.means}; a unit of the network is {model.scale.std[0]:g} of the strokes'")
    model.save_pretrained(out)
    say(f"wrote {out}")
