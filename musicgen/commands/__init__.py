"""The commands in scripts/, and what they share: servers, schemas, an HTTP client."""
