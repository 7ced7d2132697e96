"""The errors that this package raises. Each message says what is wrong and how to fix it.

MusicGenError
├── InputError      a field of the request is wrong; nothing has run yet
├── WeightsError    a checkpoint is missing, damaged or of an unknown kind
├── DecodeError     generation failed, or memory ran out; the same request may succeed later
├── OutputError     the audio was generated but could not be encoded
└── UploadError     the audio was generated and encoded, but could not be uploaded
"""


class MusicGenError(Exception):
    """Base class of all errors below."""


class InputError(MusicGenError, ValueError):
    """A request that cannot be served.

    `field` is the name of the input in the API, `value` the value that was sent.
    """

    def __init__(self, field: str, value: object, problem: str, fix: str) -> None:
        super().__init__(f"{field}={value!r}: {problem}. {fix}.")
        self.field = field


class WeightsError(MusicGenError):
    """A checkpoint folder, or a file in it, cannot be used."""


class DecodeError(MusicGenError):
    """Generation failed, and not because of the request."""


class OutputError(MusicGenError):
    """The encoder failed on generated audio."""


class UploadError(MusicGenError):
    """The bucket did not accept a finished file. The message is safe to show to the caller."""
