"""Download remote files: ask a server for a file's identity, and copy its content, with retries."""

import asyncio
import errno
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import aiohttp
import fsspec
from aiohttp.http_exceptions import PayloadEncodingError
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.spec import AbstractFileSystem

from openslip.data.remote.address import shown
from openslip.errors import DataError, UserError
from openslip.progress import BYTES, progress
from openslip.terminal import waiting

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
WAITS = (1, 2, 4, 8)  # seconds before each retry
SLOW_RETRIES = 2  # retries after a download that was too slow
BLOCK = 1 << 22
MIN_BYTES_PER_SECOND = 10_000
RATE_WINDOW = 20.0  # seconds over which the download rate is measured
ANSWER_LIMIT = 20.0  # seconds that a server has to state a file's identity, or to begin with its content
WORTH_A_LINE = 1e6  # bytes per second; progress is shown for slower downloads only
# The first of these fields that a server states is the version of the file.
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "updated")
TEMPORARY_REFUSALS = (408, 429)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)

T = TypeVar("T")


class TooSlowError(ConnectionError):
    """A download is slower than the limit."""


class FetchError(UserError):
    """A server does not answer, or refuses a file; `reason` says why in a few words."""

    def __init__(self, address: str, reason: str, advice: str) -> None:
        super().__init__(f"shard {shown(address)} cannot be fetched ({reason}): {advice}")
        self.reason = reason


class Identity(NamedTuple):
    """Size and version that a server states for a file; they change when the content changes."""

    size: int  # bytes
    version: str  # checksum or modification time; empty if the server states neither


def ask(address: str) -> Identity:
    """Ask the server for a file's identity, in one request."""
    system, path = connect(address)
    info = system.info(path, **({"timeout": ANSWER_LIMIT} if isinstance(system, AsyncFileSystem) else {}))
    if info["size"] is None:
        raise FetchError(
            address,
            "the server does not state its size, so that a broken download could not be told from a complete one",
            "download it and give its path",
        )
    version = next((str(info[field]) for field in VERSION_FIELDS if info.get(field)), "")
    return Identity(info["size"], version)


def copy(address: str, identity: Identity, descriptor: int, min_rate: float, *, done: int = 0) -> None:
    """Download the whole content into an open file; a download that breaks or is too slow is resumed at its position.

    Args:
        address: address of the shard.
        identity: identity of the shard when the run began, which the server must still state.
        descriptor: descriptor of the file to write to.
        min_rate: lowest download rate that is accepted, in bytes per second; 0 for no limit.
        done: number of bytes at the start of the file that an earlier process has downloaded.
    """

    def resume() -> None:
        nonlocal done
        now = ask(address)
        if now != identity:
            raise DataError(
                f"shard {shown(address)} has changed since the run began ({identity.size:,} bytes then, "
                f"{now.size:,} now): leave the shards of a run as they are, or start another run"
            )
        stream, start = open_at(address, done, identity, min_rate)
        advance(start - done)
        done = start
        with stream, open(descriptor, "r+b", closefd=False) as file:
            file.seek(done)
            since, before = time.monotonic(), done
            while block := stream.read(BLOCK):
                if done + len(block) > identity.size:
                    advance(-done)
                    done = 0
                    raise ConnectionError(f"more than the {identity.size:,} bytes that the server stated")
                file.write(block)
                done += len(block)
                advance(len(block))
                if (seconds := time.monotonic() - since) >= RATE_WINDOW:
                    if (rate := (done - before) / seconds) < min_rate:
                        raise TooSlowError(f"only {rate:,.1f} bytes/s; shard_cache.min_bytes_per_second={min_rate}")
                    since, before = time.monotonic(), done
        if done < identity.size:
            raise ConnectionError(f"it broke off at {done:,} of {identity.size:,} bytes")

    started = time.monotonic()

    def slow_download() -> str | None:
        is_slow = done < WORTH_A_LINE * (time.monotonic() - started)
        return f"shard {shown(address)}: {done:,} of {identity.size:,} bytes" if is_slow else None

    what = f"downloading {shown(address).rpartition('/')[2]}"
    with waiting(slow_download), progress(what, total=identity.size, unit=BYTES) as advance:
        advance(done)
        attempt(address, resume)


def open_at(address: str, offset: int, identity: Identity, min_rate: float) -> tuple[Any, int]:
    """Open a stream of the content at an offset, or at 0 if the server cannot begin elsewhere.

    Args:
        address: address of the shard.
        offset: position of the first byte wanted.
        identity: identity of the content; a server that has another one by now sends it from 0.
        min_rate: lowest download rate that is accepted, in bytes per second.

    Returns:
        The stream, and the offset at which it begins.
    """
    system, path = connect(address)
    if isinstance(system, HTTPFileSystem):
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if identity.version.startswith('"'):  # a strong ETag; weak ones begin with W/ and are no valid If-Range
                headers["If-Range"] = identity.version
        # The default limit of aiohttp is five minutes for a whole file.
        seconds = ANSWER_LIMIT + (identity.size - offset) / min_rate if min_rate else None
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=30, sock_read=60)
        stream: Any = system.open(path, block_size=0, size=identity.size, headers=headers, timeout=timeout)
        return stream, offset if stream.r.status == 206 else 0
    stream = system.open(path, block_size=BLOCK, cache_type="none")
    stream.seek(offset)
    return stream, offset


def connect(address: str) -> tuple[AbstractFileSystem, str]:
    """Find the fsspec file system of an address, and the path in it."""
    scheme = address.partition("://")[0]
    options = {}
    if scheme in ("http", "https"):
        options["client_kwargs"] = {"trust_env": True}  # use proxies of the environment; aiohttp's default is not to
    try:
        return fsspec.url_to_fs(address, **options)
    except ImportError as error:
        raise UserError(
            f"shard {shown(address)}: addresses of {scheme}:// need a package: pip install {PACKAGES[scheme]}"
        ) from error


def attempt(address: str, action: Callable[[], T], max_retries: int | None = None) -> T:
    """Run an action, and retry it with growing waits after errors that may be temporary.

    Args:
        address: address of the file, for error messages.
        action: what to run.
        max_retries: number of retries; None retries as often as there are waits.

    Raises:
        FetchError: the error is permanent, or still there after the last attempt.
    """
    for number in range(len(WAITS) + 1):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:  # every file system has its own error types
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            cause = error.__cause__ or error  # fsspec reports any failed request as a missing file
            allowed = SLOW_RETRIES if isinstance(cause, TooSlowError) else max_retries
            num_waits = len(WAITS) if allowed is None else min(len(WAITS), allowed)
            if number < num_waits and may_pass(cause):
                time.sleep(WAITS[number])
                continue
            tried = "" if number == 0 else f", tried {number + 1} times"
            raise FetchError(
                address,
                f"{reason(cause, address)}{tried}",
                "check the address in data.source.shards, the network and your access",
            ) from error
    raise AssertionError("unreachable")


def may_pass(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status in TEMPORARY_REFUSALS
    return not isinstance(error, (FileNotFoundError, PermissionError, aiohttp.InvalidURL))


def reason(error: BaseException, address: str) -> str:
    """Describe an error in a few words, with all addresses replaced by the shown one: others may hold credentials."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status} {error.message}"
    if isinstance(error, PayloadEncodingError):
        return "the connection broke off"
    if isinstance(error, FileNotFoundError):
        return "not found"
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return re.sub(r"\w+://[^\s\"']+", shown(address), " ".join(text.split()))
