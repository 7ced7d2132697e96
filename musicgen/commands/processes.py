"""Process groups that end with the process that started them, however it ends."""

import os
import signal
import subprocess
from contextlib import suppress

# A shell that kills a process group when its stdin is closed, as by the death of its parent. A line
# on stdin ends the shell without a kill. It detaches itself from its parent, since Ray kills the
# children of a replica that ends.
GUARD = 'exec 3<&0; (read -r _ <&3 || kill -9 "-$0" 2>&-) &'


class Group:
    """The process group of a process that was started with `start_new_session=True`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        command = ["sh", "-c", GUARD, str(process.pid)]
        shell = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        shell.wait()
        assert shell.stdin
        self.guard = shell.stdin

    def end(self, seconds: float) -> None:
        """Wait for the process to end, at most for some seconds, then kill all of its group."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        with suppress(ProcessLookupError):  # no process of the group is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        # The group's number may be given to another group from now on: the guard must not kill it.
        with suppress(BrokenPipeError), self.guard:
            self.guard.write(b"done\n")
