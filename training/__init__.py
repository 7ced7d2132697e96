"""Makes weights/demo: composes and synthesizes music, then trains a codec and a language model."""

import logging

# xformers warns that its compiled extensions do not match this torch; they are not used.
logging.getLogger("xformers").setLevel(logging.ERROR)
