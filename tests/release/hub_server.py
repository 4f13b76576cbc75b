"""A local stand-in of the Hugging Face hub: the part of its API that uploads and downloads of models use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories with their commits, in memory.

    Attributes:
        commits: files of each commit, by the repository's name and the commit, oldest first.
        requests: method and path of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Add a commit with these files to those of the previous one."""
        before = self.commits.setdefault(name, {})
        merged = {**(list(before.values())[-1] if before else {}), **files}
        digest = hashlib.sha1(str(len(before)).encode())
        for path, content in sorted(merged.items()):
            digest.update(path.encode() + content)
        before[digest.hexdigest()] = merged
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self._parts()
        if self.headers.get("Authorization") != "Bearer right":
            self._json({"error": "Invalid credentials"}, 401)
        elif parts == ["api", "repos", "create"]:
            given = json.loads(body)
            name = f"{given.get('organization') or 'user'}/{given['name']}"
            exists = name in self.server.commits
            self.server.commits.setdefault(name, {})
            self._json({"url": f"{self.server.url}/{name}", "name": name, "id": name}, 409 if exists else 200)
        elif parts == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[-2:-1] == ["preupload"]:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif parts[-2:-1] == ["commit"]:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                each["value"]["path"]: base64.b64decode(each["value"]["content"])
                for each in lines
                if each["key"] == "file"
            }
            name = "/".join(parts[2:4])
            oid = self.server.commit(name, files)
            self._json(
                {"commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}", "success": True}
            )
        else:
            self._json({"error": "unknown"}, 404)

    def do_HEAD(self) -> None:
        self._get(False)

    def do_GET(self) -> None:
        self._get(True)

    def _get(self, body: bool) -> None:
        parts = self._parts()
        model = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if model else parts[:2])
        commits = self.server.commits.get(name)
        if commits is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        revision = (parts[5] if len(parts) > 5 else "main") if model else parts[3]
        commit = (list(commits) or ["0" * 40])[-1] if revision == "main" else revision
        if revision != "main" and commit not in commits:
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        files = commits.get(commit, {})
        if model:
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
            tree = [{"type": "file", "path": each["rfilename"], "oid": commit, **each} for each in siblings]
            is_tree = len(parts) > 4 and parts[4] == "tree"
            self._json(tree if is_tree else {"id": name, "sha": commit, "siblings": siblings})
            return
        content = files.get("/".join(parts[4:]))
        if content is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _parts(self) -> list[str]:
        self.server.requests.append(f"{self.command} {self.path}")
        return unquote(urlsplit(self.path).path).strip("/").split("/")

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
