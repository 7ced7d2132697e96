"""With a full disk each prediction fails with one clear error, and the server keeps serving.

The small disk is a tmpfs in a mount namespace that only the server has.
"""

import plain_http
import pytest
import sounds
from cog_client import data_uri
from cog_server import cog_server


def mounted(options):
    """A command that mounts a tmpfs over the temporary folder of the server that it runs."""
    mount = f'mount -t tmpfs -o {options} none {{tmp}} && exec "$@"'
    return ["unshare", "-Urm", "sh", "-c", mount, "sh"]


@pytest.fixture(scope="module")
def server(tmp_path_factory, checkpoints):
    """A server with a small disk."""
    folder = tmp_path_factory.mktemp("small")
    with cog_server(folder, checkpoints["text"], wrapper=mounted("size=300k")) as server:
        yield server


def test_a_full_disk_fails_one_prediction_and_is_free_again(server):
    # The second of a kind finds the disk full if the first left its file.
    for output_format in ("wav", "wav", "mp3", "mp3"):
        server.predict(duration=1, output_format=output_format)
        error = server.error(duration=10, output_format=output_format)
        assert f"OutputError: {output_format} could not be written: " in error
        assert "No space left" in error


def test_an_input_that_does_not_fit_fails_one_prediction(server, tmp_path):
    path = sounds.write(tmp_path / "a.wav", sounds.melody(4.0), 44100)
    inputs = {"input_audio": data_uri(path), "continuation": True, "continuation_end": 1}
    for _ in range(2):
        assert "No space left" in server.error(**inputs, duration=2)
    assert plain_http.health(server.url) == "READY"


def test_a_read_only_temporary_folder_does_not_matter(tmp_path, checkpoints):
    with cog_server(tmp_path, checkpoints["text"], wrapper=mounted("ro")) as server:
        server.predict(duration=1)
