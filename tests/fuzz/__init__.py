"""Loaders against bytes that nobody sane wrote: `python -m tests.fuzz` guided by coverage, a few seconds in CI."""
