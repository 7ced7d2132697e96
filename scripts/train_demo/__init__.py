"""Makes weights/demo: composes and synthesizes music, trains a codec and a language model on it."""

# The real one, whose mask training asks for, before musicgen puts an empty one in its place.
import xformers  # noqa: F401
