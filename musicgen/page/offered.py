"""The inputs that a server can use, found by requests that it refuses before any model runs."""

from typing import Any

from musicgen.commands.client import Client, RefusedError, ServerError
from musicgen.commands.inputs import Field

NO_AUDIO = "data:audio/wav;base64,bm8gYXVkaW8="  # the text "no audio"
# Input -> a request with it that has an error in another input as well: a server that can use the
# input refuses the other one. A number without its password, diffusion of a file without audio.
REQUESTS: dict[str, dict[str, Any]] = {
    "song_id": {"song_id": 0, "duration": 1},
    "multi_band_diffusion": {
        "multi_band_diffusion": True,
        "input_audio": NO_AUDIO,
        "duration": 1,
    },
}
# Input -> the inputs that mean nothing without it.
DEPENDENTS = {"song_id": ("key",)}


def offered(server: Client, described: dict[str, Field]) -> dict[str, Field]:
    """The inputs without those that this server refuses whatever their value."""
    refused = [name for name in REQUESTS if name in described and _refuses(server, described, name)]
    hidden = {other for name in refused for other in (name, *DEPENDENTS.get(name, ()))}
    return {name: field for name, field in described.items() if name not in hidden}


def _refuses(server: Client, described: dict[str, Field], name: str) -> bool:
    """True if the server's answer is an error of this input. Any other answer offers it."""
    if any(other not in described for other in REQUESTS[name]):
        return False
    try:
        server.predict(REQUESTS[name])
    except RefusedError as exc:
        return name in exc.fields
    except ServerError:
        return False
    return False
