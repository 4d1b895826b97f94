"""A small Hugging Face Hub on loopback, for tests: the HTTP protocol of huggingface_hub, with faults on demand.

Knows create, preupload, commit (regular and LFS basic), tree, paths-info, refs, tags, resolve with ranges, whoami
and tokens; private and gated repositories. Small files come by a relative 307, LFS files by a 302 to another
host name, as on the Hub. Everything is held in memory, and outlives `stop()` and a new `start()`.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]  # status, headers, body

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".png")
LFS_FROM = 1_000_000  # larger files are LFS whatever their name
DATE = "2026-01-01T00:00:00.000Z"
API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.*))?)?$")
RESOLVE = re.compile(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
CACHED = re.compile(r"/api/resolve-cache/(models|datasets|spaces)/([^/]+/[^/]+)/([^/]+)/(.+)$")
LFS_BATCH = re.compile(r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch$")
COMMIT_HASH = re.compile(r"[0-9a-f]{40}$")


@dataclass
class User:
    """Whoever a token belongs to; `orgs` are namespaces beside the own one, `role` is "write" or "read"."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def belongs_to(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs


@dataclass
class Fault:
    """What is to go wrong with the requests that match."""

    status: int = 0  # answer with this status instead; 0 answers as usual
    path: str = ""  # regular expression, searched in the request's path
    method: str = ""  # only this method; any if empty
    times: int = -1  # how often; -1 is for ever
    cut: int = 0  # close the connection after so many bytes of the answer's body
    stall: bool = False  # after `cut` bytes, or before the answer, say nothing until the client goes away
    headers: dict[str, str] = field(default_factory=dict)  # of the answer, in place of the right ones


@dataclass(frozen=True)
class Blob:
    """A file's content, and how it is stored."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """The git id, of the content or of the pointer to it."""
        data = f"oid sha256:{self.sha256}\nsize {len(self.content)}\n".encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """The file as `tree` and `paths-info` list it."""
        listed = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        if self.lfs:
            listed["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return listed


@dataclass
class Repo:
    """A repository: `commits` maps a commit to its files, `refs` maps branches and tags to commits."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    admitted: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, Blob], title: str) -> str:
        """Make `files` the content of a branch; returns the new commit's id."""
        oid = hashlib.sha1(f"{self.kind}{self.id}{len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.titles.append(title)
        return oid

    def find(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit id."""
        found = self.branches.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)

    def files(self) -> dict[str, bytes]:
        """The content of the branch main."""
        return {path: blob.content for path, blob in self.commits[self.branches["main"]].items()}


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class HubServer:
    """The server and all that it holds.

    Attributes:
        users: token -> its user.
        repos: (kind, id) -> repository; kind is "models", "datasets" or "spaces".
        faults: what goes wrong; the first that matches a request counts.
        requests: (method, path) of all requests so far.
        page_size: entries a page of `tree`.
        stalled: set once an answer has stalled.
    """

    def __init__(self, port: int) -> None:
        self.port, self.endpoint, self.files_host = port, f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.page_size = 1000
        self.connections: set[socket.socket] = set()
        self.stalled = threading.Event()
        self.lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen on the port."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Stop listening, as a dead server; what is stored stays."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            for connection in tuple(self.connections):  # those that clients keep open
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.connections.clear()

    def clear(self) -> None:
        """Forget everything."""
        for content in (self.users, self.repos, self.stored, self.faults, self.requests):
            content.clear()
        self.page_size = 1000
        self.stalled.clear()

    def repo(self, repo_id: str, kind: str = "models") -> Repo:
        """A repository by its id."""
        return self.repos[(kind, repo_id)]

    def fault(self, method: str, path: str) -> Fault:
        """What is to go wrong with a request; nothing, mostly."""
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.times and fault.method in ("", method) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return Fault()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def handle(self) -> None:
        self.hub.connections.add(self.connection)
        with suppress(OSError):  # the client went away
            super().handle()
        self.hub.connections.discard(self.connection)

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self._body()
        self.now = self.hub.fault(self.command, url.path)
        try:
            if self.now.status:
                raise Refused(self.now.status, "a fault on demand")
            with self.hub.lock:
                self.user = self._authenticate()
                status, headers, content = self._route(url.path, body)
        except Refused as refusal:
            status, headers = refusal.status, {**refusal.headers, "Content-Type": "application/json"}
            content = json.dumps(refusal.body).encode()
        self._send(status, headers, content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        if self.now.stall and not self.now.cut:
            self._stall()
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers, **self.now.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.now.stall or (self.now.cut and len(content) > self.now.cut):
            content, self.close_connection = content[: self.now.cut], True
        self.wfile.write(content)
        if self.now.stall:
            self._stall()

    def _stall(self) -> None:
        self.hub.stalled.set()
        self.connection.recv(1)  # comes back when the client has gone, or the server stops
        self.close_connection = True

    def _authenticate(self) -> User | None:
        given = self.headers.get("Authorization", "")
        if not given:
            return None
        if given.removeprefix("Bearer ") not in self.hub.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.users[given.removeprefix("Bearer ")]

    def _route(self, path: str, body: bytes) -> Answer:
        if path == "/api/whoami-v2":
            if self.user is None:
                raise Refused(401, "Invalid username or password.")
            orgs = [{"name": name} for name in self.user.orgs]
            token = {"accessToken": {"displayName": "test", "role": self.user.role}}
            return _json({"type": "user", "name": self.user.name, "orgs": orgs, "auth": token})
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/stored/"):
            return self._stored(path.removeprefix("/stored/"), body)
        if found := CACHED.fullmatch(path):
            kind, repo_id, revision, name = found.groups()
            commit, blob = self._blob(self._repo(kind, repo_id, files=True), revision, name)
            return self._range(blob.content, {"X-Repo-Commit": commit, "ETag": f'"{blob.oid}"'})
        if found := LFS_BATCH.fullmatch(path):
            self._writable(self._repo((found[1] or "models/")[:-1], found[2]))
            return self._batch(json.loads(body))
        if found := RESOLVE.fullmatch(path):
            return self._resolve((found[1] or "models/")[:-1], found[2], found[3], found[4])
        if found := API.fullmatch(path):
            kind, repo_id, action, rest = found.groups()
            return self._api(self._repo(kind, repo_id), action or "info", unquote(rest or ""), rest or "", body)
        raise Refused(404, f"no such page: {path}")

    # repositories

    def _create(self, asked: dict[str, Any]) -> Answer:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        namespace = asked.get("organization") or self.user.name
        if self.user.role != "write" or not self.user.belongs_to(namespace):
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        kind, repo_id = f"{asked.get('type') or 'model'}s", f"{namespace}/{asked['name']}"
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else f'{kind}/'}{repo_id}"
        if kind == "spaces" and not asked.get("sdk"):
            raise Refused(400, '"sdk" is required')
        if (kind, repo_id) in self.hub.repos:
            raise Refused(409, "You already created this model repo", url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[(kind, repo_id)] = Repo(kind, repo_id, private)
        return _json({"url": url, "name": repo_id, "id": repo_id})

    def _repo(self, kind: str, repo_id: str, files: bool = False) -> Repo:
        """A repository that the user may see; with `files`, whose content the user may read."""
        repo = self.hub.repos.get((kind, unquote(repo_id)))
        member = self.user is not None and self.user.belongs_to(unquote(repo_id).split("/")[0])
        if repo is None or (repo.private and not member):
            if self.user is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        admitted = member or (self.user is not None and self.user.name in repo.admitted)
        if files and repo.gated and not admitted:
            message = f"Access to model {repo.id} is restricted."
            raise Refused(401 if self.user is None else 403, message, "GatedRepo")
        return repo

    def _writable(self, repo: Repo) -> None:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        if self.user.role != "write" or not self.user.belongs_to(repo.id.split("/")[0]):
            raise Refused(403, "Forbidden: this token has no write access")

    def _commit_of(self, repo: Repo, revision: str) -> str:
        commit = repo.find(unquote(revision))
        if commit is None:
            raise Refused(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return commit

    def _blob(self, repo: Repo, revision: str, name: str) -> tuple[str, Blob]:
        commit = self._commit_of(repo, revision)
        if unquote(name) not in repo.commits[commit]:
            raise Refused(404, "Entry not found", "EntryNotFound")
        return commit, repo.commits[commit][unquote(name)]

    def _api(self, repo: Repo, action: str, rest: str, raw: str, body: bytes) -> Answer:
        if action in ("info", "revision"):
            commit = self._commit_of(repo, rest or "main")
            siblings = [{"rfilename": path} for path in repo.commits[commit]]
            fields = {"_id": commit[:24], "id": repo.id, "sha": commit, "private": repo.private, "siblings": siblings}
            fields |= {"gated": "manual" if repo.gated else False, "disabled": False, "lastModified": DATE}
            return _json(fields | {"createdAt": DATE, "tags": [], "downloads": 0, "likes": 0})
        if action == "tree":
            return self._tree(repo, *raw.partition("/")[::2])
        if action == "paths-info":
            entries = self._entries(repo, rest)
            return _json([entries[path] for path in parse_qs(body.decode())["paths"] if path in entries])
        if action == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in repo.branches.items()]
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repo.tags.items()]
            return _json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})
        self._writable(repo)
        if action == "tag":
            repo.tags[json.loads(body)["tag"]] = self._commit_of(repo, rest)
            return _json({})
        if action == "preupload":
            return self._preupload(repo, rest, json.loads(body))
        if action == "commit":
            return self._commit(repo, rest, body)
        raise Refused(404, f"no such action: {action}")

    def _entries(self, repo: Repo, revision: str) -> dict[str, dict[str, Any]]:
        """Every file and folder of a revision."""
        commit = self._commit_of(repo, revision)
        last = {"lastCommit": {"id": commit, "title": repo.titles[-1], "date": DATE}}
        files = {path: {**blob.entry(path), **last} for path, blob in repo.commits[commit].items()}
        folders = {path.rsplit("/", n)[0] for path in files for n in range(1, path.count("/") + 1)}
        return files | {path: {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders}

    def _tree(self, repo: Repo, revision: str, folder: str) -> Answer:
        inside, folder = self._entries(repo, revision), unquote(folder).strip("/")
        if folder and folder not in inside:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        inside = {p: e for p, e in inside.items() if not folder or p.startswith(f"{folder}/")}
        if self.query.get("recursive", "false").lower() not in ("true", "1"):
            inside = {p: e for p, e in inside.items() if "/" not in p[len(folder) :].strip("/")}
        start = int(self.query.get("cursor", 0))
        end = start + self.hub.page_size
        headers = {"Content-Type": "application/json"}
        if end < len(inside):
            query = "&".join(f"{k}={v}" for k, v in {**self.query, "cursor": end}.items())
            headers["Link"] = f'<{self.hub.endpoint}{urlsplit(self.path).path}?{query}>; rel="next"'
        return 200, headers, json.dumps([inside[p] for p in sorted(inside)][start:end]).encode()

    def _resolve(self, kind: str, repo_id: str, revision: str, name: str) -> Answer:
        commit, blob = self._blob(self._repo(kind, repo_id, files=True), revision, name)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.oid}"'}
        if blob.lfs:
            linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
            return 302, {**headers, **linked, "Location": f"{self.hub.files_host}/stored/{blob.sha256}"}, b""
        return 307, {**headers, "Location": f"/api/resolve-cache/{kind}/{repo_id}/{commit}/{name}"}, b""

    def _range(self, content: bytes, headers: dict[str, str]) -> Answer:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked is None:
            return 200, headers, content
        start, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if start >= len(content):
            return 416, {**headers, "Content-Range": f"bytes */{len(content)}"}, b""
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return 206, headers, content[start : end + 1]

    def _stored(self, sha256: str, body: bytes) -> Answer:
        """The host of large files."""
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != sha256:
                raise Refused(400, "the content has another SHA-256")
            self.hub.stored[sha256] = body
            return 200, {}, b""
        if sha256 not in self.hub.stored:
            raise Refused(404, "no such object")
        return self._range(self.hub.stored[sha256], {"ETag": f'"{sha256}"'})

    # writing

    def _preupload(self, repo: Repo, revision: str, asked: dict[str, Any]) -> Answer:
        present = repo.commits[self._commit_of(repo, revision)]
        files = []
        for file in asked["files"]:
            path, large = file["path"], file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_FROM
            oid = present[path].oid if path in present else None
            mode = "lfs" if large else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": files})

    def _batch(self, asked: dict[str, Any]) -> Answer:
        objects = []
        for item in asked["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.stored:
                entry["actions"] = {"upload": {"href": f"{self.hub.files_host}/stored/{item['oid']}"}}
            objects.append(entry)
        return _json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: Repo, revision: str, body: bytes) -> Answer:
        head = self._commit_of(repo, revision)
        files, title = dict(repo.commits[head]), ""
        for line in filter(None, body.splitlines()):
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", head) != head:
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    raise Refused(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = Blob(self.hub.stored[value["oid"]], lfs=True)
            elif key == "deletedFile":
                files.pop(value["path"])
            else:
                raise Refused(400, f"unknown operation {key}")
        oid = repo.commit(revision, files, title)
        return _json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo.id}/commit/{oid}"})


def _json(content: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()
