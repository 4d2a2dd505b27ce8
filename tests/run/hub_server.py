"""A hub on this machine: what the real one's HTTP interface answers to pushes and pulls, over a real port."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, READER = "hf_writer", "hf_reader"


class FakeHub:
    """Repositories in memory: name -> commits, each name -> bytes. A file travels inside its commit, as small ones do on the real hub."""

    def __init__(self) -> None:
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.fetched: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit_id(self, repo: str, number: int = -1) -> str:
        count = len(self.repos[repo])
        return hashlib.sha1(f"{repo}{number % count if count else 0}".encode()).hexdigest()

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        commits = self.repos[repo]
        if revision == "main":
            return commits[-1] if commits else {}
        return next((files for number, files in enumerate(commits) if self.commit_id(repo, number) == revision), None)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, {"X-Error-Code": code})

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    def find(self, repo: str, revision: str) -> dict[str, bytes] | None:
        if repo not in self.hub.repos or (self.hub.private[repo] and self.token not in (TOKEN, READER)):
            self.refuse(401 if not self.token else 404, "RepoNotFound")
            return None
        files = self.hub.files(repo, revision)
        if files is None:
            self.refuse(404, "RevisionNotFound")
        return files

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            repo, revision = match[1], match[2] or "main"
            if (files := self.find(repo, revision)) is not None:
                sha = self.hub.commit_id(repo) if revision == "main" else revision
                self.answer(200, {"id": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            if (files := self.find(match[1], match[2])) is not None:
                rows = [{"type": "file", "path": name, "size": len(body), "oid": _oid(body)} for name, body in files.items()]
                self.answer(200, rows)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = match.groups()
            if (files := self.find(repo, revision)) is None:
                return
            if name not in files:
                self.refuse(404, "EntryNotFound")
                return
            if self.command == "GET":
                self.hub.fetched.append(name)
            sha = self.hub.commit_id(repo) if revision == "main" else revision
            self.answer(200, files[name], {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": sha})
        else:
            self.answer(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.token != TOKEN:
            self.refuse(403 if self.token == READER else 401, "Forbidden")
        elif self.path == "/api/validate-yaml":
            known = any(f"license: {name}" in json.loads(body)["content"] for name in ("mit", "other"))
            self.answer(200 if known else 400, {"errors": [] if known else [{"message": '"license" must be one of [...]'}], "warnings": []})
        elif self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            named = [row["path"] for row in json.loads(body)["files"]]
            self.answer(200, {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in named]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404)

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        known = repo in self.hub.repos
        if not known:
            self.hub.repos[repo] = []
            self.hub.private[repo] = bool(asked.get("private") or asked.get("visibility") == "private")
        self.answer(409 if known else 200, {"url": f"{self.hub.url}/{repo}"})

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.hub.files(repo, "main") or {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.repos[repo].append(files)
        sha = self.hub.commit_id(repo)
        self.answer(200, {"commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "success": True})


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
