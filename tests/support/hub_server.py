"""A stand-in for the Hugging Face hub on this machine: what `create_repo` and `create_commit` call, without Xet."""

import base64
import hashlib
import json
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml
from file_server import answering

TOKEN, USER = "hf_of_this_test", "jane"
LARGE = (".safetensors", ".onnx")  # files that are uploaded by themselves, before the commit


class Hub(ThreadingHTTPServer):
    """The repositories with their files, the commits, and the visibility that was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {"someone/model": {}}
        self.visibility: dict[str, str | None] = {}
        self.commits: list[tuple[str, list[str]]] = []
        self.objects: dict[str, bytes] = {}
        self.fails: dict[str, int] = {}  # status of the answer, by the last part of the path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        repository = self.path.removeprefix("/api/models/")
        if repository in self.server.repositories:
            self.answer(200, {"id": repository})
        else:
            self.answer(404, {"error": "Repository not found"})

    def do_PUT(self) -> None:
        content = self.body()
        name = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != name:
            self.answer(400, {"error": "wrong checksum"})
            return
        self.server.objects[name] = content
        self.answer(200, {})

    def do_POST(self) -> None:
        server, path, content = self.server, self.path.partition("?")[0], self.body()
        lines: list[Any] = [json.loads(line) for line in content.splitlines()]
        status = next((status for name, status in server.fails.items() if name in path), None)
        if status is not None:
            self.answer(status, {"error": "as the test asks"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self.create(**lines[0])
        elif path == "/api/validate-yaml":
            header = yaml.safe_load(lines[0]["content"].split("---\n")[1])
            valid = isinstance(header.get("license"), str) and isinstance(header.get("tags"), list)
            self.answer(200 if valid else 400, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{server.address}/objects/{each['oid']}"}}}
                for each in lines[0]["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        else:
            self.change(path.removeprefix("/api/models/"), lines)

    def create(self, name: str, organization: str, visibility: str | None = None, **_: Any) -> None:
        repository = f"{organization}/{name}"
        if organization != USER:
            self.answer(403, {"error": f"You don't have the rights to create a model under {organization}"})
        elif repository in self.server.repositories:
            self.answer(409, {"error": "exists", "url": f"{self.server.address}/{repository}"})
        else:
            self.server.repositories[repository] = {}
            self.server.visibility[repository] = visibility
            self.answer(200, {"url": f"{self.server.address}/{repository}"})

    def change(self, path: str, lines: list[Any]) -> None:
        repository, action, _ = path.rsplit("/", 2)
        if not repository.startswith(f"{USER}/"):
            self.answer(403, {"error": "Forbidden"})
        elif action == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in lines[0]["files"]
            ]
            self.answer(200, {"files": files})
        else:
            assert action == "commit"
            changes = [line for line in lines if line["key"] != "header"]
            for line in changes:
                value = line["value"]
                content = self.server.objects[value["oid"]] if line["key"] == "lfsFile" else decoded(value)
                self.server.repositories[repository][value["path"]] = content
            self.server.commits.append((repository, [line["value"]["path"] for line in changes]))
            address = f"{self.server.address}/{repository}/commit/{'0' * 40}"
            self.answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": address})

    def body(self) -> bytes:
        """Read the body of the request, whose length may be stated for each piece only."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while length := int(self.rfile.readline(), 16):
            content += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on the terminal."""


def decoded(value: dict[str, str]) -> bytes:
    assert value["encoding"] == "base64"
    return base64.b64decode(value["content"])


def hub() -> AbstractContextManager[Hub]:
    """A hub that answers in this context."""
    return answering(Hub())
