"""Refuses cross-site requests, such as a form on a page of another site.

Browsers ask the server (CORS) before most requests of a page to another site, but not before a form or what
looks like one. They name the origin of each request in Sec-Fetch-Site or, without TLS, in Origin.
"""

from collections.abc import Awaitable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import CrossSiteRequest
from app.http.head import header_of
from app.http.problems import problem_response

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN = frozenset({"same-origin", "none"})  # none: the user entered the URL
_PORTS = {"http": "80", "https": "443"}


class RefuseOtherSites:
    """Refuses requests from pages of other sites with 403, unless their origin is allowed. Links still
    work."""

    def __init__(self, app: ASGIApp, origins: Sequence[str] = ()) -> None:
        self._app = app
        self._origins = frozenset(origin.lower() for origin in origins)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass on, or refuse."""
        if scope["type"] != "http" or scope["method"] in _READING or self._may_send(scope):
            return self._app(scope, receive, send)
        origin = (header_of(scope, b"origin") or "another site")[:100]
        problem = CrossSiteRequest(
            f"web pages of {origin} are not allowed to send requests to this server; the option "
            "--cors-origins allows them"
        )
        return problem_response(problem, scope["path"])(scope, receive, send)

    def _may_send(self, scope: Scope) -> bool:
        origin = header_of(scope, b"origin")
        if origin is not None and origin.lower() in self._origins:
            return True
        site = header_of(scope, b"sec-fetch-site")
        if site is not None:
            return site.strip().lower() in _OWN
        if origin is None:
            return True
        headers = Headers(scope=scope)
        return is_own(origin, [*headers.getlist("host"), *headers.getlist("x-forwarded-host")])


def is_own(origin: str, hosts: Sequence[str]) -> bool:
    """Whether a page of this origin was loaded from one of these hosts. The scheme is not compared, because a
    proxy may handle TLS for the server. The default port of a scheme may be left out."""
    scheme, _, authority = origin.strip().lower().partition("://")
    implied = ":" + _PORTS.get(scheme, "")
    return authority != "" and any(
        host.strip().lower().removesuffix(implied) == authority.removesuffix(implied) for host in hosts
    )
