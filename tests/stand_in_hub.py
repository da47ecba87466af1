"""A stand-in for the Hugging Face hub on the loopback interface.

It speaks the parts of the protocol that the libraries use, and knows its kinds of failure.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


def files_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder by their names in a repository."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file()
    }


class Repository:
    """Files by name, and what is wrong with them.

    A fault is "gated" (401 without a token that is let in, 403 with another), "removed", or the name of a file
    whose transfer breaks off.
    """

    def __init__(self, files: dict[str, bytes], fault: str = ""):
        self.files, self.fault = files, fault


class Hub:
    """Serves repositories `owner/name`; `fetched` are the paths of files that were sent whole."""

    def __init__(self, repositories: dict[str, Repository]):
        self.repositories, self.fetched = repositories, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                status, headers, body = hub.answer(
                    self.path.partition("?")[0], bool(self.headers.get("authorization")), self.headers.get("range", "")
                )
                cut = headers.pop("cut", None)
                self.send_response(status)
                for name, value in (
                    {"Content-Type": "application/json"} | headers | {"Content-Length": str(len(body))}
                ).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    hub.fetched += [self.path] if "/resolve/" in self.path and status < 300 and cut is None else []
                    self.wfile.write(body[:cut])
                    self.close_connection = self.close_connection or cut is not None

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, token: bool, part: str) -> tuple[int, dict, bytes]:
        """Status, headers and body of one request."""
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?|/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = found and (found[1] or found[3])
        repository = self.repositories.get(name)
        if (
            repository is None or repository.fault == "removed"
        ):  # the hub says 401 to strangers, since it might be private
            return (
                404 if token else 401,
                {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
                b'{"error": "Repository not found"}',
            )
        if repository.fault == "gated" and (found[3] or (found[2] or "") == "/auth-check"):
            words = f"Access to model {name} is restricted." + (
                " You are not in the authorized list." if token else " You must be authenticated to access it."
            )
            return (
                403 if token else 401,
                {"X-Error-Code": "GatedRepo", "X-Error-Message": words},
                json.dumps({"error": words}).encode(),
            )
        if found[1]:
            return 200, {}, json.dumps(self.about(name, repository, found[2] or "")).encode()
        if found[5] not in repository.files:
            return (
                404,
                {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": COMMIT},
                b"{}",
            )
        body = repository.files[found[5]]
        headers = {
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if repository.fault == found[5]:
            return 200, headers | {"cut": len(body) // 2}, body
        if begin := re.match(r"bytes=(\d+)-", part):
            return (
                206,
                headers | {"Content-Range": f"bytes {begin[1]}-{len(body) - 1}/{len(body)}"},
                body[int(begin[1]) :],
            )
        return 200, headers, body

    def about(self, name: str, repository: Repository, what: str) -> object:
        """A repository as its interface describes it."""
        if "/tree/" in what:
            return [
                {"type": "file", "path": file, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for file, body in repository.files.items()
            ]
        return {
            "id": name,
            "modelId": name,
            "sha": COMMIT,
            "private": False,
            "gated": "manual" if repository.fault == "gated" else False,
            "disabled": False,
            "tags": [],
            "siblings": [{"rfilename": file} for file in repository.files],
        }
