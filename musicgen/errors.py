"""Every error this package raises on purpose. Each message names what is wrong and how to fix it.

MusicGenError
├── InputError      a field of the request is wrong; nothing has run yet
├── WeightsError    a checkpoint is missing, damaged or of an unknown kind
├── DecodeError     the decode loop failed, or memory ran out; the same request may succeed later
├── OutputError     the audio was made but could not be encoded
└── UploadError     the audio was made and encoded but is not in the bucket
"""


class MusicGenError(Exception):
    """Base of all errors below, for callers that want to tell ours from the rest."""


class InputError(MusicGenError, ValueError):
    """A request that cannot be served as asked.

    `field` is the input's name as the API spells it, `value` what was sent.
    """

    def __init__(self, field: str, value: object, problem: str, fix: str) -> None:
        super().__init__(f"{field}={value!r}: {problem}. {fix}.")
        self.field = field


class WeightsError(MusicGenError):
    """A checkpoint folder or a file in it cannot be used."""


class DecodeError(MusicGenError):
    """Generating failed through no fault of the request's."""


class OutputError(MusicGenError):
    """The encoder failed on audio that was generated."""


class UploadError(MusicGenError):
    """The bucket did not take a finished file. The message is safe to show to who asked."""
