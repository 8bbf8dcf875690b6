"""Request bodies: read within limits, and taken apart into images and their options."""
