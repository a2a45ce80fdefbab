"""Download an image from an http(s) address, with a limit on its size and on the time."""

import http.client
import time
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from openslip import __version__
from openslip.data.remote.address import shown
from openslip.errors import UserError

MAX_BYTES = 100_000_000
MAX_SECONDS = 60.0  # for the whole download
ANSWER_SECONDS = 15.0  # longest time in which a server sends nothing
BLOCK = 1 << 16
# Characters of an address that are not encoded: those with a meaning in it, and %, which begins an encoded character.
KEPT = "%/:=&?~#+!$,;'@()*[]"


def is_url(text: str) -> bool:
    """Whether a text is an address of http or https rather than a path."""
    return text.lower().startswith(("http://", "https://"))


def download(address: str) -> bytes:
    """Download the content of an http(s) address; redirects to other protocols are not followed.

    Raises:
        UserError: the server does not answer, refuses, or sends more than `MAX_BYTES` or longer than `MAX_SECONDS`.
    """
    ends = time.monotonic() + MAX_SECONDS
    too_large = f"more than {MAX_BYTES / 1e6:,.0f} MB"
    content = bytearray()
    try:
        # Some servers, such as Wikimedia's, refuse Python's default user agent.
        request = Request(quote(address, safe=KEPT), headers={"User-Agent": f"openslip/{__version__}"})
        with opener().open(request, timeout=ANSWER_SECONDS) as answer:
            if int(answer.headers.get("Content-Length") or 0) > MAX_BYTES:
                raise refusal(address, too_large)
            while block := answer.read1(BLOCK):
                content += block
                if len(content) > MAX_BYTES:
                    raise refusal(address, too_large)
                if time.monotonic() > ends:
                    raise refusal(address, f"longer than {MAX_SECONDS:.0f} s")
            if answer.length:  # the number of bytes that the server stated and did not send
                raise refusal(address, f"it broke off after {len(content):,} bytes")
    except HTTPError as error:
        error.close()
        raise refusal(address, f"HTTP {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise refusal(address, why(error)) from error
    return bytes(content)


def opener() -> OpenerDirector:
    """Return an opener of http and https alone; urllib's own one also opens local files and FTP."""
    director = OpenerDirector()
    for handler in (
        ProxyHandler(),
        UnknownHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        HTTPDefaultErrorHandler(),
        HTTPRedirectHandler(),
        HTTPErrorProcessor(),
    ):
        director.add_handler(handler)
    return director


def refusal(address: str, reason: str) -> UserError:
    try:
        name = shown(address)
    except ValueError:  # the address has no host
        name = f"{address.partition('://')[0]}://..."
    return UserError(f"image {name}: cannot be downloaded ({reason}); check the address, or give a file")


def why(error: Exception) -> str:
    """Describe a failed request in a few words, without the address, which may hold a password."""
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    return cause if isinstance(cause, str) else f"{type(cause).__name__}: not a valid address or answer"
