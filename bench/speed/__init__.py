"""Small cases for those who change the package: `pytest bench` times them, `python -m bench.compare` two revisions."""
