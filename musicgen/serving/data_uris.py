"""Reads data URIs in memory that is proportional to their length.

The standard library splits a URI at every percent sign, which takes 80 times the memory of the
URI, and keeps the last 128 URIs in a cache.
"""

import binascii
import mimetypes
from urllib.parse import unquote_to_bytes

SCHEME = "data:"
MAX_HEADER = 1000  # characters before the comma: the media type, and whether it is base64
MAX_ESCAPES = 2**20  # percent signs; base64 needs none


def is_data_uri(value: str) -> bool:
    """Whether a value begins with the scheme, in capitals or not."""
    return value[: len(SCHEME)].lower() == SCHEME


def read(uri: str) -> tuple[bytes, str]:
    """The content of a data URI, and the file name suffix of its media type, or "".

    Raises ValueError if it is not valid.
    """
    comma = uri.find(",", len(SCHEME), MAX_HEADER)
    if comma < 0:
        raise ValueError(f"no comma in its first {MAX_HEADER:,} characters")
    escapes = uri.count("%", comma)
    if escapes > MAX_ESCAPES:
        raise ValueError(f"more than {MAX_ESCAPES:,} percent signs; send it as base64")
    kind, *parameters = uri[len(SCHEME) : comma].split(";")
    content = uri[comma + 1 :].encode()
    if escapes:
        content = unquote_to_bytes(content)
    if parameters and parameters[-1].strip().lower() == "base64":
        content = binascii.a2b_base64(content)
    return content, mimetypes.guess_extension(kind.strip().lower()) or ""
