"""The peers, one file per family, each used as its own documentation says."""
