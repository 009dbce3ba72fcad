"""Two revisions of the package on one machine, in turn: `python -m bench.compare BASE`."""
