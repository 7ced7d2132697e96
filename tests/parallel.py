"""How pytest-xdist distributes these tests over its workers, and how the workers begin."""

import fcntl
import tempfile
import threading
from contextlib import suppress

from xdist.scheduler import LoadScopeScheduling

from musicgen.runtime.librosa_import import librosa


class Controller:
    """The hooks of the process that starts the workers.

    One worker collects the tests first, while this process writes Numba's cache of librosa. Python
    compiles the modules that the worker imports, and the others need not compile them again.
    """

    def __init__(self):
        self.collecting = tempfile.NamedTemporaryFile()  # noqa: SIM115 - locked until it is closed
        fcntl.flock(self.collecting, fcntl.LOCK_EX)
        self.numba_cache = threading.Thread(target=librosa)

    def pytest_configure_node(self, node):
        node.workerinput["collecting"] = self.collecting.name

    def pytest_xdist_setupnodes(self):
        self.numba_cache.start()

    def pytest_xdist_node_collection_finished(self):
        self.collecting.close()
        self.numba_cache.join()  # no test begins before

    def pytest_testnodedown(self):
        self.collecting.close()

    def pytest_xdist_make_scheduler(self, config, log):
        return ByFile(config, log)


class ByFile(LoadScopeScheduling):
    """One worker runs all tests of a file, or of the page, so that their fixtures are made once."""

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        return "page" if "/page/" in file else file


def wait_for_first(worker):
    """Return when this worker may collect the tests. `worker` is xdist's `config.workerinput`."""
    if worker["workerid"] == "gw0":
        return
    with suppress(FileNotFoundError), open(worker["collecting"]) as collecting:
        fcntl.flock(collecting, fcntl.LOCK_SH)
