"""The HTTP side: routes by audience, and what they share."""
