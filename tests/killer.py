"""`kill -9` at every chance: before and after a system call that changes the disk, and in the middle of a write."""

import builtins
import os
import signal
from pathlib import Path


class Killer:
    """Kills this process at the n-th chance."""

    def __init__(self, n):
        self.left = n

    def install(self, *modules):
        """For the rest of this process: around fsync, rename and unlink, and in the files that these modules open."""
        os.fsync, os.replace = self.around(os.fsync), self.around(os.replace)
        Path.unlink = self.around(Path.unlink)
        for module in modules:
            module.open = self.opening

    def chance(self):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def around(self, call):
        def run(*args, **options):
            self.chance()
            result = call(*args, **options)
            self.chance()
            return result

        return run

    def opening(self, *args, **options):
        """A file whose writes can be cut in half."""
        self.chance()
        file = builtins.open(*args, **options)
        killer = self

        class Cut:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, data):
                file.write(data[: len(data) // 2])
                file.flush()
                killer.chance()
                file.write(data[len(data) // 2 :])
                file.flush()
                killer.chance()

        return Cut()


def in_a_child(action):
    """Run in a forked process; gives its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
