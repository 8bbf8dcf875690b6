"""The settings: flags, environment variables, and their checks."""
