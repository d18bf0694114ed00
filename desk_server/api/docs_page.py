"""The page at /docs: what /openapi.json says, with a form to try each route. It needs nothing from elsewhere.

FastAPI's own page loads its script from a public server: blank without the internet, and somebody else's code on a
page that people type tokens into.
"""

from importlib.resources import files

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse

# Only what is in the page itself runs, and it talks to this desk alone.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_docs_page(app: FastAPI) -> None:
    """GET /docs, without a token."""
    page = files("desk_server.api").joinpath("docs.html").read_bytes()
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

    async def docs(_request: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    app.add_route("/docs", docs, methods=["GET"], include_in_schema=False)
