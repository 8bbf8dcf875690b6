"""Which media types a client accepts, by its Accept header (RFC 9110, section 12.5.1)."""

from app.http.bodies.content import JSON, RAW


def prefers_bytes(accept: str) -> bool:
    """Whether the header names octet-stream, and does not give JSON a higher weight. A header that names
    neither, such as */*, means JSON."""
    weights = dict(map(_weighted, accept.split(",")))
    wanted = weights.get(RAW, 0.0)
    return wanted > 0 and wanted >= weights.get(JSON, 0.0)


def _weighted(part: str) -> tuple[str, float]:
    name, *parameters = (each.strip().lower() for each in part.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0.0
    return name, 1.0
