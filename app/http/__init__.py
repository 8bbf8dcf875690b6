"""The HTTP interface: routes by audience, and what they share."""
