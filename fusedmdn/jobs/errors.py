"""What can be wrong with a job; every message is one line that names the file, or the value and what was expected."""

from __future__ import annotations


class JobError(ValueError):
    """A job that cannot be made, read or run as it was asked; or a file of one that is missing or damaged."""


class Unreadable(JobError):
    """A file that the system does not give; it may be intact."""


class EnvironmentRefused(JobError):
    """This machine would write other bits than the job's."""


class ShardError(RuntimeError):
    """A shard could not be made; the message says which and why."""
