"""Text and melody -> conditions of the decoder. Independent of codes and requests."""
