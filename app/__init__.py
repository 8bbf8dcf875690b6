"""The service: HTTP front ends, dispatcher, workers, and the supervisor of these processes."""
