"""Both revisions built and installed, each into a directory of its own; nothing is left of them afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SHORT = 12  # digits of a commit that are shown
LAST_LINES = 15  # of a failed build's output, which are shown


class Unknown(Exception):
    """There is no such revision."""


class NotBuilt(Exception):
    """A revision's build failed; the message ends with what it printed last."""


class Revision(NamedTuple):
    """What is compared: a commit, with a plus for files that differ from it, and where it is installed."""

    commit: str
    site: Path


class Pair(NamedTuple):
    """Both revisions, and the directory that holds the head's `bench` alone."""

    base: Revision
    head: Revision
    harness: Path


def git(root: Path, *words: str) -> str:
    """A git command's output; raises CalledProcessError."""
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout


def commit_of(root: Path, revision: str) -> str:
    """The full name of a revision's commit; raises Unknown."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").strip()
    except subprocess.CalledProcessError as error:
        more = f" ({error.stderr.strip()})" if error.stderr.strip() else ""
        raise Unknown(f"BASE {revision!r}: git knows no such revision here{more}") from None


@contextlib.contextmanager
def installed(root: Path, base: str, say: Callable[[str], None] = lambda line: None) -> Iterator[Pair]:
    """Build the commit `base` and the working tree as it is now, both in the same way; removed when the block ends.

    The working tree's files, uncommitted and untracked ones included, are copied first: it may be edited meanwhile.

    Raises:
        NotBuilt: pip or the compiler failed.
    """
    with scratch(root) as folder, worktree(root, base, folder / "base-source") as base_source:
        dirty = "+" if git(root, "status", "--porcelain").strip() else ""
        head = git(root, "rev-parse", "HEAD").strip() + dirty
        head_source = snapshot(root, folder / "head-source")
        say(f"building the base, {base[:SHORT]}")
        before = Revision(base, install(base_source, folder / "base"))
        say(f"building the head, {head[:SHORT]}{dirty}: the working tree" + (", with changes" if dirty else ""))
        after = Revision(head, install(head_source, folder / "head"))
        yield Pair(before, after, harness(head_source, folder / "harness"))


@contextlib.contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """A new directory under build/compare."""
    (root / "build" / "compare").mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root / "build" / "compare"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def worktree(root: Path, commit: str, path: Path) -> Iterator[Path]:
    """A git worktree of that commit."""
    git(root, "worktree", "prune")  # of a run that was killed
    try:
        git(root, "worktree", "add", "--detach", "--quiet", str(path), commit)
        yield path
    finally:
        if path.exists():
            shutil.rmtree(path)
        git(root, "worktree", "prune")


def snapshot(root: Path, path: Path) -> Path:
    """Copy a working tree's files, those that git ignores left out."""
    names = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        source, target = root / name, path / name
        if source.is_file() or source.is_symlink():  # a deleted file is listed, a nested repository is a directory
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return path


def harness(source: Path, path: Path) -> Path:
    """A directory to run the cases from, which holds `bench` and not the checkout's package."""
    path.mkdir()
    (path / "bench").symlink_to(source / "bench", target_is_directory=True)
    return path


def install(source: Path, site: Path) -> Path:
    """Build a checkout and install it into a directory; raises NotBuilt."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(site)]
    command = [sys.executable, "-m", "pip", "install", *options, str(source)]
    variables = {**os.environ, "FUSEDMDN_REQUIRE_NATIVE": "1"}  # else a failed compiler goes unnoticed
    process = subprocess.Popen(
        command,
        cwd=source.parent,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # the compilers too, which would go on writing
        process.wait()
        raise
    if process.returncode:
        raise NotBuilt(f"{source}: the build failed\n" + "\n".join(output.splitlines()[-LAST_LINES:]))
    return site
