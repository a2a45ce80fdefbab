"""Debian packages, written as deb(5) says, so that our reader meets files that it did not write."""

import hashlib
import io
import tarfile

Member = tuple[tarfile.TarInfo, bytes]


def tar_member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(content)
    return member, content


def debian_package(members: list[Member], control: bytes = b"odd") -> bytes:
    """A package with the members of its data; an odd length of the control part needs a byte of padding."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": control, "data.tar.xz": stream.getvalue()}
    archive = b"!<arch>\n"
    for name, content in parts.items():
        archive += f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        archive += content + b"\n" * (len(content) % 2)
    return archive


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
