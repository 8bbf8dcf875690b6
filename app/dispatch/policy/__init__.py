"""The decisions of the dispatcher as pure functions and data, without clock, sockets or torch."""
