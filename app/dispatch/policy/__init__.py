"""What is decided, apart from the processes: pure functions and data, without clock, sockets or torch."""
