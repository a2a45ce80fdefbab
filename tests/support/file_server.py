"""An HTTP server on this machine that breaks off, refuses, is slow, or states wrong sizes."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

AnyServer = TypeVar("AnyServer", bound=ThreadingHTTPServer)


class Server(ThreadingHTTPServer):
    """Files by name, and what is wrong with them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.versions: dict[str, str] = {}
        self.ranges = True
        self.breaks: dict[str, list[int]] = {}  # how many bytes of the body each of the next answers sends
        self.stated: dict[str, int] = {}  # a length that is not so
        self.refusals: dict[str, list[int]] = {}  # status of the next answers
        self.next_pages: dict[str, str] = {}  # address of the next page, for a header Link
        self.slow = 0.0  # seconds between pieces of a body
        self.piece = 50_000  # bytes
        self.downloads: Counter[str] = Counter()
        self.requested_ranges: list[str | None] = []
        self.conditions: list[str | None] = []  # If-Range of every request

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/folder/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were killed leave broken pipes."""


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        server, name = self.server, self.path.partition("?")[0].rpartition("/")[2]
        if refusals := server.refusals.get(name):
            self.send_error(refusals.pop(0))
            return
        if name not in server.files:
            self.send_error(404)
            return
        body, start = server.files[name], 0
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        server.conditions.append(condition)
        if wanted and server.ranges and condition in (None, server.versions.get(name)):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(server.stated.get(name, len(body)) - start))
        if name in server.versions:
            self.send_header("ETag", server.versions[name])
        if name in server.next_pages:
            self.send_header("Link", f'<{server.next_pages[name]}>; rel="next"')
        self.end_headers()
        if not send_body:
            return
        server.downloads[name] += 1
        server.requested_ranges.append(wanted)
        body = body[start:]
        if breaks := server.breaks.get(name):
            body, self.close_connection = body[: breaks.pop(0)], True
        elif name in server.stated:
            self.close_connection = True
        for at in range(0, len(body), server.piece):
            self.wfile.write(body[at : at + server.piece])
            time.sleep(server.slow)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on the terminal."""


def serving() -> AbstractContextManager[Server]:
    """A server that answers in this context."""
    return answering(Server())


@contextmanager
def answering(server: AnyServer) -> Iterator[AnyServer]:
    """Let a server answer, in a thread, in this context."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
