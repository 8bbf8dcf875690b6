"""Processes: started, watched, restarted and stopped; what they share with the supervisor."""
