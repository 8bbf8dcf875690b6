"""What is asked of one image and what is answered, the same for HTTP, command line and Ray."""
