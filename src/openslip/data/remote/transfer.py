"""Files at addresses: what a server says of one, and all of its content, tried again where that helps."""

import asyncio
import errno
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import aiohttp
import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.spec import AbstractFileSystem

from openslip.data.remote.address import shown
from openslip.errors import DataError, UserError
from openslip.terminal import waiting

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
WAITS = (1, 2, 4, 8)  # seconds before each further attempt
SLOW_RETRIES = 2  # after a download that was too slow
BLOCK = 1 << 22
MIN_BYTES_PER_SECOND = 10_000
RATE_WINDOW = 20.0  # seconds over which the rate is taken
ANSWER_LIMIT = 20.0  # seconds for what a server says of a file, and for the head of its answer
WORTH_A_LINE = 1e6  # bytes per second below which a line says that a download is waited for
# The first of these that a server states tells whether a file has changed.
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "updated")
TEMPORARY_REFUSALS = (408, 429)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)

T = TypeVar("T")


class TooSlowError(ConnectionError):
    """A download is slower than it may be."""


class Identity(NamedTuple):
    """What a server says of a file; another identity is another content."""

    size: int  # bytes
    version: str  # checksum or time of change, empty where the server states none


def ask(address: str) -> Identity:
    """The file's identity, in one request."""
    system, path = connect(address)
    info = system.info(path, **({"timeout": ANSWER_LIMIT} if isinstance(system, AsyncFileSystem) else {}))
    if info["size"] is None:
        raise UserError(
            f"shard {shown(address)}: the server does not state its size, so that a broken download could not be told "
            "from a complete one; download it and give its path"
        )
    version = next((str(info[field]) for field in VERSION_FIELDS if info.get(field)), "")
    return Identity(info["size"], version)


def copy(address: str, identity: Identity, descriptor: int, min_rate: float) -> None:
    """Copy the whole content into an open file; a download that breaks or drips is resumed where it broke.

    Args:
        address: of the shard.
        identity: what its server must still say of it.
        descriptor: of the open file.
        min_rate: bytes per second.
    """
    done = 0

    def resume() -> None:
        nonlocal done
        now = ask(address)
        if now != identity:
            raise DataError(
                f"shard {shown(address)} has changed since the run began ({identity.size:,} bytes then, "
                f"{now.size:,} now): leave the shards of a run as they are, or start another run"
            )
        stream, done = open_at(address, done, identity.size, min_rate)
        with stream, open(descriptor, "r+b", closefd=False) as file:
            file.seek(done)
            since, before = time.monotonic(), done
            while block := stream.read(BLOCK):
                if done + len(block) > identity.size:
                    done = 0
                    raise ConnectionError(f"more than the {identity.size:,} bytes that the server stated")
                file.write(block)
                done += len(block)
                if (seconds := time.monotonic() - since) >= RATE_WINDOW:
                    if (rate := (done - before) / seconds) < min_rate:
                        raise TooSlowError(f"only {rate:,.1f} bytes/s; shard_cache.min_bytes_per_second={min_rate}")
                    since, before = time.monotonic(), done
        if done < identity.size:
            raise ConnectionError(f"it broke off at {done:,} of {identity.size:,} bytes")

    started = time.monotonic()

    def progress() -> str | None:
        is_slow = done < WORTH_A_LINE * (time.monotonic() - started)
        return f"shard {shown(address)}: {done:,} of {identity.size:,} bytes" if is_slow else None

    with waiting(progress):
        attempt(address, resume)


def open_at(address: str, offset: int, size: int, min_rate: float) -> tuple[Any, int]:
    """A stream of the content and the offset at which it begins: 0 where a server cannot begin elsewhere."""
    system, path = connect(address)
    if isinstance(system, HTTPFileSystem):
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        # aiohttp's own limit is five minutes for a whole file.
        seconds = ANSWER_LIMIT + (size - offset) / min_rate if min_rate else None
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=30, sock_read=60)
        stream: Any = system.open(path, block_size=0, size=size, headers=headers, timeout=timeout)
        return stream, offset if stream.r.status == 206 else 0
    stream = system.open(path, block_size=BLOCK, cache_type="none")
    stream.seek(offset)
    return stream, offset


def connect(address: str) -> tuple[AbstractFileSystem, str]:
    """The file system of an address and the path in it."""
    scheme = address.partition("://")[0]
    options = {}
    if scheme in ("http", "https"):
        options["client_kwargs"] = {"trust_env": True}  # it ignores proxies unless told
    try:
        return fsspec.url_to_fs(address, **options)
    except ImportError as error:
        raise UserError(
            f"shard {shown(address)}: addresses of {scheme}:// need a package: pip install {PACKAGES[scheme]}"
        ) from error


def attempt(address: str, action: Callable[[], T]) -> T:
    """The action's result; after an error that may pass, it is tried again, with growing waits."""
    for number in range(len(WAITS) + 1):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:  # every file system has its own types
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            cause = error.__cause__ or error  # fsspec calls any failed request a missing file
            num_waits = min(len(WAITS), SLOW_RETRIES) if isinstance(cause, TooSlowError) else len(WAITS)
            if number < num_waits and may_pass(cause):
                time.sleep(WAITS[number])
                continue
            tried = "" if number == 0 else f", tried {number + 1} times"
            raise UserError(
                f"shard {shown(address)} cannot be fetched ({reason(cause, address)}{tried}): "
                "check the address in data.source.shards, the network and your access"
            ) from error
    raise AssertionError("unreachable")


def may_pass(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status in TEMPORARY_REFUSALS
    return not isinstance(error, (FileNotFoundError, PermissionError, aiohttp.InvalidURL))


def reason(error: BaseException, address: str) -> str:
    """The error in a few words and without any address but the shown one, because others may hold credentials."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status} {error.message}"
    if isinstance(error, FileNotFoundError):
        return "not found"
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return re.sub(r"\w+://[^\s\"']+", shown(address), " ".join(text.split()))
