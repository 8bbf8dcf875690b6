"""The service: HTTP front ends, engine processes, and the supervisor over both."""
