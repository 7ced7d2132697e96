"""Files that the page itself makes of a clip. Their tags are derived from those of the clip."""

from pathlib import Path
from tempfile import TemporaryDirectory

from musicgen import provenance
from musicgen.page.analysis import Floats
from musicgen.provenance import Provenance


def encode(samples: Floats, rate: int, output_format: str, made: Provenance | None) -> bytes:
    """A file of samples [N, C], encoded as the server does, with the tags of `made`."""
    import torch

    from musicgen import output

    options = provenance.ffmpeg_options(made, output_format) if made else []
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"clip.{output_format}"
        output.write(torch.from_numpy(samples.T), path, rate, output_format, options)
        return path.read_bytes()
