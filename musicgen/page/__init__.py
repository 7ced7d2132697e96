"""The page to play with: a client of the HTTP API, which knows nothing of the model behind it."""
