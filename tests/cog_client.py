"""A running Cog server, with raw HTTP requests and access to its files and processes."""

import base64
import http.client
import io
import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import plain_http
import psutil
import soundfile

from musicgen.commands.client import data_uri

__all__ = ["CogClient", "content", "data_uri", "samples"]


@dataclass(frozen=True)
class CogClient:
    """One server: its address, its folder for temporary files, and its log."""

    url: str
    temporary: Path
    log: Path

    def post(self, prediction_id=None, **inputs):
        """The HTTP response of one prediction."""
        path = f"/predictions/{prediction_id}" if prediction_id else "/predictions"
        method = "PUT" if prediction_id else "POST"
        return plain_http.request(method, self.url + path, json={"input": inputs})

    def predict(self, **inputs):
        """The JSON of a prediction that must succeed."""
        answer = self.post(**inputs).json()
        assert answer.get("status") == "succeeded", answer
        return answer

    def error(self, **inputs):
        """The error message of a prediction that must fail."""
        answer = self.post(**inputs).json()
        assert answer.get("status") == "failed", answer
        assert "Traceback" not in str(answer)
        return answer["error"]

    def begin(self, prediction_id, **inputs):
        """A connection that has sent a prediction's request and read nothing."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"))
        body = json.dumps({"id": prediction_id, "input": inputs})
        connection.request("POST", "/predictions", body, {"Content-Type": "application/json"})
        return connection

    def says(self, prediction_id, text):
        """Whether a prediction has logged a text."""
        lines = self.log.read_text().splitlines()
        return any(f'"{prediction_id}"' in line and text in line for line in lines)

    def worker(self):
        """The worker process, which has loaded the model."""
        [worker] = [
            process
            for process in psutil.process_iter(["cmdline"])
            if "_run_worker" in str(process.info["cmdline"])
            and process.environ().get("TMPDIR") == str(self.temporary)
        ]
        return worker

    def results(self):
        """The folders of results that Cog has still to send."""
        return set(self.temporary.glob("musicgen-*/tmp*"))


def content(uri):
    """(media type, bytes) of a data URI."""
    head, _, body = uri.partition(",")
    assert head.startswith("data:")
    raw = base64.b64decode(body) if head.endswith(";base64") else unquote_to_bytes(body)
    return head[5:].split(";")[0], raw


def samples(uri):
    """wav [C, N] float32 and sample rate of a data URI."""
    wav, rate = soundfile.read(io.BytesIO(content(uri)[1]), dtype=np.float32, always_2d=True)
    return wav.T, rate
