"""Addresses of remote shards: which schemes are read, and how an address is shown without credentials."""

from urllib.parse import urlsplit

SCHEMES = ("http", "https", "s3", "gs")


def is_remote(address: str) -> bool:
    """Whether this is a remote address, which is read through a ShardCache, and not a path."""
    return address.partition("://")[0] in SCHEMES and "://" in address


def shown(address: str) -> str:
    """Remove user, password and query from an address, because they may hold credentials; a path is unchanged."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
