"""Bulk sampling: millions of sequences in shards, on one machine or many, that survive being killed.

`create` a job, `run` it (again, after whatever happened), `verify` it, `read` it. Its bytes are a function of its spec:
the same by one process or many, in any order, after any restarts.
"""

from .creating import create
from .errors import EnvironmentRefused, JobError, ShardError
from .job import Job, Record
from .merging import merge, preview
from .reading import StrokeDataset, pad, read
from .running import Reports, Run, check_range, in_this_process, run
from .spec import JobSpec
from .verifying import Status, status, verify

__all__ = [
    "EnvironmentRefused",
    "Job",
    "JobError",
    "JobSpec",
    "Record",
    "Reports",
    "Run",
    "ShardError",
    "Status",
    "StrokeDataset",
    "check_range",
    "create",
    "in_this_process",
    "merge",
    "pad",
    "preview",
    "read",
    "run",
    "status",
    "verify",
]
