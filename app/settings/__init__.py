"""The settings: flags, environment variables, and what is checked of them."""
