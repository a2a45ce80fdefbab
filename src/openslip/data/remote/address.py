"""Addresses of shards: which ones are read, and how they are shown."""

from urllib.parse import urlsplit

SCHEMES = ("http", "https", "s3", "gs")


def is_remote(address: str) -> bool:
    """Whether it is an address that is read through a ShardCache."""
    return address.partition("://")[0] in SCHEMES and "://" in address


def shown(address: str) -> str:
    """The address without user, password and query, which may hold credentials; a path as it is."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
