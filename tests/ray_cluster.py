"""A real cluster on this machine, started as an operator does."""

import os
import signal
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import plain_http
import psutil

from musicgen.commands import server
from musicgen.commands.server import ROOT

MARK = "MUSICGEN_TEST_CLUSTER"
# Kind of process -> a word in its command line.
KINDS = {"worker": "_run_worker", "server": "cog.server.http"}


@dataclass(frozen=True)
class Cluster:
    """One scripts/cluster: its process, ports and log, and the mark of all its processes."""

    process: subprocess.Popen
    port: int
    metrics: int
    log: Path
    mark: str

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def processes(self, kind=""):
        """Its running processes, or those of one of KINDS, oldest first.

        Processes of Ray that overwrite their environment with a title are missing.
        """
        word, found = KINDS.get(kind, ""), []
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has ended
                if process.environ().get(MARK) == self.mark and word in " ".join(process.cmdline()):
                    found.append((process.create_time(), process.pid, process))
        return [process for _, _, process in sorted(found)]

    def victim(self, kind):
        """The newest process of a kind; "replica" is Ray's process that runs a server."""
        if kind == "replica":
            return self.processes("server")[-1].parent()
        return self.processes(kind)[-1]

    def gate(self):
        """The process of the gate."""
        everything = psutil.Process(self.process.pid).children(recursive=True)
        [gate] = [process for process in everything if ":gate" in " ".join(process.cmdline())]
        return gate

    def post(self, **inputs):
        """The HTTP response of one prediction."""
        body = {"input": inputs}
        return plain_http.post(f"{self.url}/predictions", json=body)

    def together(self, callers, requests):
        """The responses to `requests`, sent by `callers` threads."""
        with ThreadPoolExecutor(callers) as pool:
            return list(pool.map(lambda inputs: self.post(**inputs), requests))

    def update(self, *options, **environment):
        """Replace the running application, as an operator does."""
        command = [ROOT / "scripts" / "cluster", "--update", *options]
        subprocess.run(command, env=os.environ | environment, check=True)

    def wait_for(self, what):
        """Return when `what()` is true. The test's time limit is the only limit."""
        while not what():
            assert self.process.poll() is None
            time.sleep(0.2)


@contextmanager
def started(log, *options, **environment):
    """A running cluster. At the end it is interrupted as by ctrl-C, which must leave no process."""
    port, metrics, mark = server.free_port(), server.free_port(), uuid.uuid4().hex
    environment = {**os.environ, "MUSICGEN_DEVICE": "cpu", MARK: mark, **environment}
    ports = ["--port", str(port), "--metrics", str(metrics)]
    command = [ROOT / "scripts" / "cluster", *ports, *options]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    cluster = Cluster(process, port, metrics, log, mark)
    try:
        cluster.wait_for(lambda: "Serving on" in log.read_text())
        yield cluster
        started_by_it = psutil.Process(process.pid).children(recursive=True)
        names, workers = {one.name() for one in started_by_it}, cluster.processes("worker")
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
    assert {"raylet", "gcs_server"} <= names
    assert workers
    assert process.returncode == 130
    # Waits for ever if a process remains, until the test's time limit.
    psutil.wait_procs([*started_by_it, *workers, *cluster.processes()])
