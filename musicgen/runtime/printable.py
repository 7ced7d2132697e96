"""Text of others, made safe for logs and terminals."""

import re

# Control characters, line separators, and those that change the direction of text.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` on one line: control characters are written as escapes, such as \\x1b."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
