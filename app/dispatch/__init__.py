"""The dispatcher: the one process that owns the queue; and the client with which front ends ask it."""
