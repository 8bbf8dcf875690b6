"""GET /docs: Swagger UI for the OpenAPI document, from files of this server."""

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from app.http.paths import DOCS, DOCS_FILES, OPENAPI

# Relative paths, so that they work under any prefix of a proxy. fastapi_offline mounts the folder, but its
# own page uses absolute paths.
_FILES = DOCS_FILES.path.strip("/")
_DOCUMENT = OPENAPI.path.strip("/")


def documentation_router() -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.get(DOCS.path, include_in_schema=False)
    async def documentation() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=_DOCUMENT,
            title="TrimViT",
            swagger_js_url=f"{_FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{_FILES}/swagger-ui.css",
            swagger_favicon_url=f"{_FILES}/favicon.png",
        )

    return router
