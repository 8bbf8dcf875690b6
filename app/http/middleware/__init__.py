"""What surrounds every request: ASGI middleware, one purpose a file."""
