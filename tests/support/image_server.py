"""A web server on this machine for tests of images with an address."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from file_server import answering


@contextmanager
def image_server(files: dict[str, bytes]) -> Iterator[str]:
    """Serve files by path, and yield the address of the root.

    Some paths are not files: `/to/ADDRESS` redirects, `/silent` does not answer, `/endless` sends zeros without a
    stated length, `/short` breaks off, and `/huge` states a terabyte.
    """
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/to/"):
                self.head(302, Location=path.removeprefix("/to/"))
            elif path == "/silent":
                ended.wait(5)
            elif path == "/endless":
                self.head(200)
                while not ended.is_set():
                    self.wfile.write(bytes(1000))
                    time.sleep(0.001)
            elif path in ("/short", "/huge"):
                self.head(200, **{"Content-Length": str(10**12 if path == "/huge" else 100)})
                self.wfile.write(bytes(60))
            elif path in files:
                self.head(200, **{"Content-Length": str(len(files[path]))})
                self.wfile.write(files[path])
            else:
                self.send_error(404)

        def head(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that refuses an answer leaves a broken pipe."""

    with answering(Server(("127.0.0.1", 0), Handler)) as server:
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            ended.set()
