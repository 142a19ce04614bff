"""A Hugging Face Hub on the loopback device, for tests: real HTTP, spoken to by the real client.

It knows accounts, private repositories, regular and large files (LFS), commits on a parent, tags,
ranges of downloads. What goes wrong on a network is asked for with `trouble`: an answer of an
error, a connection that is dropped before or after the work was done, a body that comes slowly or
half; `kill_at` ends a process at its n-th request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_canaryCANARYcanaryCANARYcanary1234"  # told to nobody: a test greps for it
READER = "hf_readerREADERreaderREADERreader5678"
LARGE = 200_000  # bytes from which a file is kept outside git
_REPO = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(.*))?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_BATCH = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Commit:
    id: str
    title: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool
    commits: list[Commit] = field(default_factory=list)  # the oldest first
    tags: dict[str, str] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)  # paths that are symbolic links

    def commit(self, title: str, message: str, files: dict[str, bytes]) -> Commit:
        made = hashlib.sha1(f"{len(self.commits)} {title} {message}".encode()).hexdigest()
        self.commits.append(Commit(made, title, message, files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        wanted = self.tags.get(revision, self.commits[-1].id if revision == "main" else revision)
        return next((c for c in self.commits if c.id == wanted), None)


@dataclass
class Trouble:
    """What happens to the next `times` requests that match. `kind`: status, drop, lose, slow, half;
    body (200 with `body`), endless (a body that goes on for ever), trickle (a byte at a time)."""

    method: str
    path: str
    kind: str
    status: int = 500
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "trouble"
    body: bytes = b""
    then: Callable[[], None] | None = None


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.accounts = {TOKEN: ("me", "write"), READER: ("reader", "read")}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.trouble: list[Trouble] = []
        self.log: list[str] = []  # "METHOD path", in the order of their arrival
        self.uploaded: list[str] = []  # hashes of the large files that were sent
        self.kill_at: tuple[int, str] | None = None
        self.victim = 0
        self.killed = False
        self.sent = 0  # bytes of bodies that do not end
        self.taken: set[str] = set()  # names that may not be made
        self.lock = threading.RLock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error here."""

    def ask_for(self, method: str, path: str, kind: str, **fields: Any) -> None:
        self.trouble.append(Trouble(method, path, kind, **fields))

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[kind, name]

    def add(
        self, name: str, files: dict[str, bytes], kind: str = "model", private: bool = True
    ) -> Repo:
        """A repository with one commit of these files."""
        repo = Repo(private)
        repo.commit("initial commit", "", {})
        repo.commit("files", "", files)
        self.repos[kind, name] = repo
        return repo


@contextmanager
def running() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(server: HubServer, home: Path, token: str = TOKEN) -> dict[str, str]:
    """What a process is started with to speak to this server, logged in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {
        **kept,
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        **({"HF_TOKEN": token} if token else {}),
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self._take()

    do_POST = do_PUT = do_HEAD = do_GET

    # what goes wrong

    def _take(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        with hub.lock:
            if (
                path != "/api/agent-harnesses"
            ):  # some clients ask for it at their start, some do not
                hub.log.append(f"{self.command} {path}")
            number = len(hub.log)
            found = next(
                (
                    t
                    for t in hub.trouble
                    if t.times and t.method == self.command and re.search(t.path, path)
                ),
                None,
            )
            if found is not None:
                found.times -= 1
        length = int(self.headers.get("Content-Length") or 0)
        if hub.kill_at is not None and hub.kill_at[0] == number and hub.kill_at[1] != "after":
            self.rfile.read(length // 2 if hub.kill_at[1] == "half" else 0)
            return self._kill()
        body = self._body(length)
        if found is not None and found.then is not None:
            found.then()
        if found is not None and found.kind in ("status", "drop"):
            if found.kind == "drop":
                return self._hang_up()
            return self.answer(found.status, {"error": found.message}, dict(found.headers))
        if found is not None and found.kind == "body":
            return self.answer(200, found.body, dict(found.headers))
        with hub.lock:
            status, value, headers = self._route(path, body)
        if found is not None and found.kind in ("endless", "trickle"):
            return self._go_on(headers, found.kind)
        if hub.kill_at is not None and hub.kill_at[0] == number:
            return self._kill()
        if found is not None and found.kind == "lose":
            return self._hang_up()
        self.answer(status, value, headers, pace=found.kind if found is not None else "")

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _kill(self) -> None:
        if not self.server.killed:
            self.server.killed = True
            os.kill(self.server.victim, signal.SIGKILL)
        self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(
        self, status: int, value: Any, headers: Mapping[str, str] | None = None, pace: str = ""
    ) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        given = {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }
        for name, text in given.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "HEAD":
            return
        if pace == "half":
            self.wfile.write(content[: len(content) // 2])
            return self._hang_up()
        for at in range(0, len(content), max(len(content) // 8, 1)) if pace == "slow" else ():
            self.wfile.write(content[at : at + max(len(content) // 8, 1)])
            self.wfile.flush()
            time.sleep(0.05)
        if pace != "slow":
            self.wfile.write(content)

    def _go_on(self, headers: Mapping[str, str], kind: str) -> None:
        """A body without a length and without an end."""
        self.send_response(200)
        for name, text in {**headers, "Connection": "close"}.items():
            if name.lower() != "content-length":
                self.send_header(name, text)
        self.end_headers()
        self.close_connection = True
        piece = b" " * 65536 if kind == "endless" else b" "
        try:
            while True:
                self.wfile.write(piece)
                self.wfile.flush()
                self.server.sent += len(piece)
                time.sleep(0.001 if kind == "endless" else 0.01)
        except OSError:  # the client has gone
            return

    # what it does

    def _who(self) -> tuple[str, str] | None:
        return self.server.accounts.get(
            self.headers.get("Authorization", "").removeprefix("Bearer ")
        )

    def _route(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        who = self._who()
        if path == "/api/whoami-v2":
            if who is None:
                return (
                    401,
                    {"error": "Invalid credentials in Authorization header"},
                    {"X-Error-Message": "Invalid credentials in Authorization header"},
                )
            return (
                200,
                {
                    "name": who[0],
                    "type": "user",
                    "orgs": [{"name": "team"}],
                    "auth": {"accessToken": {"role": who[1]}},
                },
                {},
            )
        if path == "/api/validate-yaml":
            text = json.loads(body)["content"]
            wrong = not text.startswith("---\n")
            return (
                (400, {"errors": [{"message": "no metadata"}], "warnings": []}, {})
                if wrong
                else (200, {"errors": [], "warnings": []}, {})
            )
        if path == "/api/repos/create":
            return self._create(json.loads(body), who)
        if match := _BATCH.fullmatch(path):
            return self._batch(json.loads(body), who, match[1])
        if path.startswith("/lfs/"):
            return self._large(path.removeprefix("/lfs/"), body)
        if match := _REPO.fullmatch(path):
            return self._repo(match[1], match[2], match[3] or "", body, who)
        if match := _FILE.fullmatch(path):
            return self._file("dataset" if match[1] else "model", match[2], match[3], match[4], who)
        return 404, {"error": f"nothing at {path}"}, {}

    def _create(
        self, asked: dict[str, Any], who: tuple[str, str] | None
    ) -> tuple[int, Any, dict[str, str]]:
        if who is None:
            return 401, {"error": "log in"}, {}
        owner = asked.get("organization") or who[0]
        name, kind = f"{owner}/{asked['name']}", asked.get("type") or "model"
        url = f"{self.server.address}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if owner not in (who[0], "team"):
            return 403, {"error": "not yours"}, {"X-Error-Message": "not yours"}
        if name in self.server.taken or (kind, name) in self.server.repos:
            return 409, {"error": "You already created this repo", "url": url}, {}
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.repos[kind, name] = Repo(private)
        self.server.repos[kind, name].commit(
            "initial commit", "", {".gitattributes": b"*.safetensors filter=lfs\n"}
        )
        return 200, {"url": url, "name": name}, {}

    def _batch(
        self, asked: dict[str, Any], who: tuple[str, str] | None, name: str
    ) -> tuple[int, Any, dict[str, str]]:
        if who is None or who[1] != "write":
            return 403, {"error": "no right to write"}, {}
        objects = []
        for one in asked["objects"]:
            there = one["oid"] in self.server.blobs
            actions = {
                "upload": {"href": f"{self.server.address}/lfs/{one['oid']}", "header": {}},
                "verify": {"href": f"{self.server.address}/lfs/verify", "header": {}},
            }
            objects.append({**one, **({} if there else {"actions": actions})})
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _large(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if name == "verify":
            there = json.loads(body)["oid"] in self.server.blobs
            return (200, {}, {}) if there else (404, {"error": "not there"}, {})
        if hashlib.sha256(body).hexdigest() != name:
            return 400, {"error": "another hash"}, {}
        self.server.blobs[name] = body
        self.server.uploaded.append(name)
        return 200, {}, {}

    def _repo(
        self, kind: str, name: str, rest: str, body: bytes, who: tuple[str, str] | None
    ) -> tuple[int, Any, dict[str, str]]:
        repo = self._seen(kind, name, who)
        if repo is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        what, _, tail = rest.partition("/")
        if what == "preupload":
            return 200, {"files": [self._mode(repo, f) for f in json.loads(body)["files"]]}, {}
        if what == "commit":
            return self._commit(repo, name, body, who)
        if what == "tag":
            tag, at = json.loads(body)["tag"], repo.at(tail)
            if tag in repo.tags:
                return 409, {"error": "Tag reference exists already"}, {}
            repo.tags[tag] = at.id if at else ""
            return 200, {}, {}
        revision, _, folder = tail.partition("/") if what else ("main", "", "")
        at = repo.at(revision)
        if at is None:
            return 404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"}
        if what in ("", "revision"):
            siblings = [{"rfilename": path} for path in at.files]
            return (
                200,
                {
                    "id": name,
                    "modelId": name,
                    "sha": at.id,
                    "private": repo.private,
                    "siblings": siblings,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                },
                {},
            )
        if what == "commits":
            page = repo.commits[: repo.commits.index(at) + 1][::-1]
            return (
                200,
                [
                    {
                        "id": c.id,
                        "title": c.title,
                        "message": c.message,
                        "authors": [{"user": "me"}],
                        "date": "2026-01-01T00:00:00.000Z",
                    }
                    for c in page
                ],
                {},
            )
        if what == "tree":
            return self._tree(repo, at, folder)
        return 404, {"error": f"nothing at {rest}"}, {}

    def _mode(self, repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
        old = repo.commits[-1].files.get(file["path"])
        large = file["size"] > LARGE or file["path"].endswith((".safetensors", ".bin"))
        oid = None if old is None else hashlib.sha256(old).hexdigest() if large else _blob(old)
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": oid,
        }

    def _commit(
        self, repo: Repo, name: str, body: bytes, who: tuple[str, str] | None
    ) -> tuple[int, Any, dict[str, str]]:
        if who is None or who[1] != "write" or name.partition("/")[0] not in (who[0], "team"):
            return 403, {"error": "no right to write"}, {"X-Error-Message": "no right to write"}
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        head = lines[0]["value"]
        if head.get("parentCommit") not in (None, repo.commits[-1].id):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(repo.commits[-1].files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    return 400, {"error": f"{value['path']} was not uploaded"}, {}
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = repo.commit(head["summary"], head.get("description") or "", files)
        return (
            200,
            {"commitUrl": f"{self.server.address}/{name}/commit/{made.id}", "commitOid": made.id},
            {},
        )

    def _tree(self, repo: Repo, at: Commit, under: str) -> tuple[int, Any, dict[str, str]]:
        deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{under}/" if under else ""
        paths = [path for path in at.files if path.startswith(prefix)]
        if under and not paths:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        entries: list[dict[str, Any]] = []
        folders = {
            "/".join(path.split("/")[:i]) for path in paths for i in range(1, path.count("/") + 1)
        }
        for folder in sorted(folders):
            if folder.startswith(prefix) and (deep or "/" not in folder.removeprefix(prefix)):
                entries.append(
                    {"type": "directory", "path": folder, "size": 0, "oid": _blob(folder.encode())}
                )
        for path in paths:
            if not deep and "/" in path.removeprefix(prefix):
                continue
            content = at.files[path]
            large = len(content) > LARGE or path.endswith((".safetensors", ".bin"))
            sha = hashlib.sha256(content).hexdigest()
            kind = "symlink" if path in repo.links else "file"
            entries.append(
                {
                    "type": kind,
                    "path": path,
                    "size": len(content),
                    "oid": _blob(content),
                    **(
                        {"lfs": {"oid": sha, "size": len(content), "pointerSize": 130}}
                        if large
                        else {}
                    ),
                }
            )
        return 200, entries, {}

    def _file(
        self, kind: str, name: str, revision: str, path: str, who: tuple[str, str] | None
    ) -> tuple[int, Any, dict[str, str]]:
        repo = self._seen(kind, name, who)
        at = repo.at(revision) if repo else None
        if at is None:
            code = "RepoNotFound" if repo is None else "RevisionNotFound"
            return 404, {"error": code}, {"X-Error-Code": code}
        if path not in at.files:
            return (
                404,
                {"error": "Entry not found"},
                {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": at.id},
            )
        content = at.files[path]
        headers = {
            "X-Repo-Commit": at.id,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part and self.command == "GET":
            start = int(part[1])
            end = min(int(part[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return 206, content[start : end + 1], headers
        return 200, content, headers

    def _seen(self, kind: str, name: str, who: tuple[str, str] | None) -> Repo | None:
        repo = self.server.repos.get((kind, name))
        mine = who is not None and name.partition("/")[0] in (who[0], "team")
        return repo if repo is not None and (not repo.private or mine) else None


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
