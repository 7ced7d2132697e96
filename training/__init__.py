"""Makes weights/demo: composes and synthesizes music, trains a codec and a language model on it."""
