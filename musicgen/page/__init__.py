"""A web page for the server: a client of its HTTP API, independent of the model."""
