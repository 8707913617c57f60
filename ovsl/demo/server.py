"""The server of the page: it answers to this machine alone, and lets the page ask no other."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovsl.api import LoadedMethod
from ovsl.demo.answers import Answers, Sample, toy_samples
from ovsl.demo.page import build_page
from ovsl.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

MOST_BYTES = 200_000_000
"""Of a photo's file."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; worker-src 'self' blob:; frame-ancestors 'none'"
)
"""The browser itself keeps the page from asking any other machine for anything."""


def application(page: Any, host: str) -> FastAPI:
    """Put the page on a server with the rules of the house: nothing from outside, and nothing to outside.

    Args:
        page: See `build_page`.
        host: Address that it will be served at.
    """
    import gradio as gr
    from fastapi import FastAPI, Request, Response
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    async def closed(request: Request, call_next: Callable[[Request], Any]) -> Response:
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BaseHTTPMiddleware, dispatch=closed)
    if host in LOOPBACK:  # a foreign page cannot pass its own name off as this machine
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    # Fonts of the machine: named ones would be fetched.
    theme = gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=["system-ui"], font_mono=["ui-monospace"])
    here = Path(__file__).parent
    script = f"<script>{(here / 'page.js').read_text(encoding='utf-8')}</script>"
    return gr.mount_gradio_app(
        app, page, path="/", footer_links=[], max_file_size=MOST_BYTES, ssr_mode=False, enable_monitoring=False,
        pwa=False, mcp_server=False, theme=theme, css_paths=here / "page.css", head=script,
    )  # fmt: skip


def listen(host: str, port: int) -> socket.socket:
    """Take an address before seconds are spent on models.

    Args:
        host: Name or address.
        port: 0 takes a free one.

    Raises:
        InputError: It is taken, or not one of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise InputError(f"Cannot serve at {host}:{port} ({error.strerror}): give another --port or --host.") from error
    return taken


def serve(methods: Mapping[str, LoadedMethod], samples: Sequence[Sample], taken: socket.socket, host: str) -> None:
    """Serve the page until it is interrupted.

    Args:
        methods: By the names that the page gives them.
        samples: Photos to take; none for scenes of the toy world.
        taken: See `listen`.
        host: What was listened at.
    """
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="ovsl-demo-") as name, suppress(KeyboardInterrupt):
        folder = Path(name)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = name  # photos that were dropped go with the rest
        page = build_page(Answers(methods, folder), samples or toy_samples(folder))
        server = uvicorn.Server(uvicorn.Config(application(page, host), log_level="warning"))
        port = taken.getsockname()[1]
        print(f"The page is at http://{host}:{port} (Ctrl-C ends it).", flush=True)
        server.run(sockets=[taken])
