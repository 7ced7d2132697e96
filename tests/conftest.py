"""What all tests share."""

# audiocraft's own decoder is the tests' oracle and needs the real one, so it must come before
# musicgen, which puts an empty stand-in where there is none.
import xformers  # noqa: F401
