"""fusedmdn against its peers: `python -m bench.cpu` measures, `python -m bench.report` writes the page."""
