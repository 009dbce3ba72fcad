"""One target under atheris: `python -m tests.fuzz.program TARGET FOLDER` and libFuzzer's options; see __main__.py."""

import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["json", "numpy", "safetensors", "zipfile"]):
    import json  # noqa: F401
    import zipfile  # noqa: F401

    import numpy  # noqa: F401
    import safetensors  # noqa: F401

import torch  # not instrumented: too much of it has nothing to do with files

with atheris.instrument_imports(include=["fusedmdn"]):
    from .mutations import mutate
    from .targets import prepare


def main(name, folder, *options):
    torch.set_num_threads(1)
    target = prepare(name, Path(folder) / "files")
    corpus = Path(folder) / "corpus"
    for k, seed in enumerate(target.seeds):
        (corpus / f"seed-{k}").write_bytes(seed)

    def custom_mutator(data, longest, seed):
        chosen = random.Random(seed)
        if chosen.random() < 0.5:
            return atheris.Mutate(data, longest)
        return mutate(data, target.seeds, chosen)[:longest]

    longest = 4096 + 4 * max(map(len, target.seeds))
    arguments = ["fuzz", str(corpus), f"-max_len={longest}", *options]
    atheris.Setup(arguments, target.check, custom_mutator=custom_mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
