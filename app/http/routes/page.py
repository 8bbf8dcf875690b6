"""GET /: the page, and the files it is made of under /static."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from app.errors import NotFound
from app.http.paths import PAGE as ROOT
from app.http.paths import STATIC
from app.settings.limits import LimitSettings

FOLDER = Path(__file__).parents[2] / "static"
PAGE = "page.html"

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file as it is sent, with the ``etag`` of its content."""

    content: bytes
    media_type: str
    etag: str

    def answer(self, request: Request, caching: str) -> Response:
        """The file, or 304 if the client already has it."""
        headers = {"Cache-Control": caching, "ETag": self.etag}
        known = request.headers.get("if-none-match", "")
        if known.strip() == "*" or self.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def static_files(folder: Path) -> dict[str, StaticFile]:
    """Every file of the folder by its path inside it. They are few and small, and are held in memory: the
    path of a request is only looked up here, and never opened."""
    return {
        path.relative_to(folder).as_posix(): _file(path.name, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.suffix in _MEDIA_TYPES
    }


def page_router(settings: LimitSettings) -> APIRouter:
    """The page, and its files under a path that changes with their content, so that browsers may cache
    them."""
    router = APIRouter(tags=["page"])
    files = static_files(FOLDER)
    names_and_etags = "".join(f"{name}{file.etag}" for name, file in files.items())
    version = hashlib.sha256(names_and_etags.encode()).hexdigest()[:16]
    filled = (
        files.pop(PAGE)
        .content.replace(b"{{static}}", f"static/{version}".encode())
        .replace(b"{{max_body_bytes}}", str(settings.max_body_bytes).encode())
    )
    page = _file(PAGE, filled)

    @router.get(ROOT.path, operation_id="page", response_class=HTMLResponse)
    async def index(request: Request) -> Response:
        """The page for people."""
        return page.answer(request, _ASK_AGAIN)

    @router.get(STATIC.path + "{asked_version}/{name:path}", include_in_schema=False)
    async def static(request: Request, asked_version: str, name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise NotFound(f"there is no {request.url.path}; the page is at /")
        # During a rolling update, a page of one version may request files from a server of another version.
        return file.answer(request, _FOR_EVER if asked_version == version else _ASK_AGAIN)

    return router


def _file(name: str, content: bytes) -> StaticFile:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return StaticFile(content, _MEDIA_TYPES[PurePosixPath(name).suffix], etag)
