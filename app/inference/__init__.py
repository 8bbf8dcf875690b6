"""The request for one image and its result, the same for HTTP, command line and Ray."""
