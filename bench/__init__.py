"""fusedmdn against its peers: `python -m bench` measures, `python -m bench.report` writes the page."""
