"""Processes: how they are started, watched, restarted and stopped, and what they share with the
supervisor."""
