"""The compile gate: every kernel is compiled ahead of time for every GPU target, and held against a committed table."""
