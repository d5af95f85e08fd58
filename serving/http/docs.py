"""The page ``/docs``: Swagger UI from this server's own files, so that it works without a network.

The files come with the package fastapi-offline.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from serving.http.headers import DOCS

_ASSETS = {"swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"}
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def add_docs(app: FastAPI) -> None:
    """Add the page and its files."""
    folder = files("fastapi_offline") / "static"

    @app.get(DOCS, include_in_schema=False)
    def docs(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        page, policy = _page(f"{root}{app.openapi_url}", f"{root}{DOCS}", app.title)
        return HTMLResponse(page, headers={"content-security-policy": policy})

    @app.get(DOCS + "/{name}", include_in_schema=False)
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            return Response(status_code=404)
        return FileResponse(str(folder / name))


@cache
def _page(openapi: str, assets: str, title: str) -> tuple[str, str]:
    """Return the page and its content security policy: nothing comes from elsewhere."""
    answer = get_swagger_ui_html(
        openapi_url=openapi,
        title=title,
        swagger_js_url=f"{assets}/swagger-ui-bundle.js",
        swagger_css_url=f"{assets}/swagger-ui.css",
        swagger_favicon_url=f"{assets}/favicon.png",
    )
    page = bytes(answer.body).decode()
    # The page's own script is allowed by its hash.
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in _SCRIPT.findall(page))
    policy = (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return page, policy


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
