"""GET /docs: Swagger UI for the OpenAPI document, from files of this server."""

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

# Relative, so that they are right under whatever prefix a proxy publishes the server. fastapi_offline mounts
# the folder, but its own page would name it from the root.
_FILES = "static-offline-docs"
_DOCUMENT = "openapi.json"


def documentation_router() -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.get("/docs", include_in_schema=False)
    async def documentation() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=_DOCUMENT,
            title="TrimViT",
            swagger_js_url=f"{_FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{_FILES}/swagger-ui.css",
            swagger_favicon_url=f"{_FILES}/favicon.png",
        )

    return router
