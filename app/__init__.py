"""The service: HTTP front ends, dispatcher and worker processes, and the supervisor over both."""
