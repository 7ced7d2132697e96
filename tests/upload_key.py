"""Who has the upload key: the environments of processes, and whether uploads work with it.

An environment is that of /proc/PID/environ, which has the variables that a process was started
with, also if the process has removed them since.
"""

from contextlib import suppress
from pathlib import Path

import plain_http
import psutil

KEY = "clé-0xC0FFEE-battery"
PART = "0xC0FFEE"  # in ASCII
WRONG = "not-0xDECAF-quite"


def settings(storage_url):
    """The environment of a command whose server can upload."""
    return {"UPLOAD_BUCKET": "songs", "UPLOAD_KEY": KEY, "STORAGE_EMULATOR_HOST": storage_url}


def family(pid):
    """A process and all that it has started, by their ids and names."""
    root = psutil.Process(pid)
    return {one.pid: " ".join(one.cmdline()) for one in [root, *root.children(recursive=True)]}


def with_key(processes):
    """The names of the processes that have the key in their environment."""
    found = []
    for pid, name in processes.items():
        with suppress(OSError):  # it has ended
            if PART.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(name)
    return found


def check_uploads(url):
    """The key is the server's, and another is not."""

    def output(key):
        body = {"input": {"duration": 1, "song_id": 1, "key": key}}
        return plain_http.post(f"{url}/predictions", json=body).json()

    assert output(KEY)["output"]["gcs_uri"] == "gs://songs/songs/1.mp3"
    assert "key='***': wrong key" in output(WRONG)["error"]
