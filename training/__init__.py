"""Makes weights/demo: composes and synthesizes music, then trains a codec and a language model."""
