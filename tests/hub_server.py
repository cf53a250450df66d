"""A Hugging Face Hub on loopback, as much of one as `huggingface_hub` needs: repos, commits, LFS, tags, tokens, faults.

Of the standard library only. What a client may see and do follows the real one: large files go through LFS, a commit
names its parent, a repo that a token may not see is not there. `Fault`s, given in order, answer instead.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM = 50_000  # bytes; and whatever ends in .safetensors
WRITE, READ = "hf_may_write_0123456789", "hf_may_read_0123456789"  # the tokens it knows


@dataclass
class Fault:
    """What happens to the next requests that match.

    Attributes:
        where: Regular expression for "METHOD /path".
        status: Answer this instead; 0: the proper answer, but broken as follows.
        times: So often, then no more.
        headers: Of the answer.
        cut: Break the connection after so many bytes of the body; of an upload, after reading so many.
        flip: Flip a bit in the middle of the body.
        after: Do what was asked, then give this answer: the client does not learn that it worked.
    """

    where: str
    status: int = 0
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    flip: bool = False
    after: bool = False


@dataclass
class Repo:
    """A repo: commits by name, each with all its files; branches and tags."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branch: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)  # files that are kept as LFS

    def commit(self, files: dict[str, bytes]) -> str:
        """Makes a commit the branch's newest and returns its name."""
        self.branch = hashlib.sha1(f"{len(self.commits)} {self.branch} {sorted(files)}".encode()).hexdigest()
        self.commits[self.branch] = files
        return self.branch

    def find(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit name stands for."""
        if revision == "main":
            return self.branch
        return self.tags.get(revision, revision if revision in self.commits else None)


class Hub:
    """The server's state, and the server; a context manager."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.faults: list[Fault] = []
        self.requests: list[str] = []

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Answers requests; yields the address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def next_fault(self, request: str) -> Fault | None:
        """The first fault that matches and is not used up."""
        for fault in self.faults:
            if fault.times and re.search(fault.where, request):
                fault.times -= 1
                return fault
        return None


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do(self) -> None:
        """Finds who answers, minds faults, sends the answer."""
        self.address = urlsplit(self.path)
        self.way = unquote(self.address.path)
        request = f"{self.command} {self.way}"
        self.hub.requests.append(request)
        fault = self.hub.next_fault(request)
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.cut is not None and self.command == "PUT":
            self.rfile.read(min(fault.cut, length))
            self.close_connection = True
            return
        self.body = self.rfile.read(length) if length else self.chunks()
        if fault and fault.status and not fault.after:
            return self.send(fault.status, b'{"error": "a fault on order"}', fault.headers)
        try:
            status, body, headers = self.answer()
        except Refused as refused:
            status, code, message = refused.args
            headers = {"X-Error-Code": code, "X-Error-Message": message}
            status, body = status, json.dumps({"error": message}).encode()
        if fault and fault.after:
            return self.send(fault.status, b'{"error": "a fault on order"}', fault.headers)
        self.send(status, body, headers, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do  # noqa: N815

    def chunks(self) -> bytes:
        """The body of a chunked request."""
        parts = []
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        """Sends an answer, broken if that was ordered."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.flip and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if fault and fault.cut is not None:
            body, self.close_connection = body[: fault.cut], True
        self.wfile.write(body)

    def answer(self) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", WRITE, READ) and not self.way.startswith("/lfs/"):
            raise Refused(401, "", "Invalid credentials in Authorization header")
        self.token = token
        for method, pattern, respond in ROUTES:
            if found := re.fullmatch(pattern, self.way):
                if self.command in method.split():
                    return respond(self, *found.groups())
        raise Refused(404, "", f"no such endpoint: {self.command} {self.way}")

    # ---- who may do what

    def repo(self, name: str, read: bool = False, write: bool = False) -> Repo:
        """A repo that the token may see (and read the files of, or write to)."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.token):
            raise Refused(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if read and repo.gated and not self.token:
            raise Refused(401, "GatedRepo", f"Access to model {name} is restricted")
        if write:
            self.may_write(name)
        return repo

    def may_write(self, name: str) -> None:
        """Refuses a token that may only read."""
        if self.token != WRITE:
            raise Refused(403 if self.token else 401, "", f"You don't have the rights to write to {name}")

    # ---- the endpoints

    def create(self) -> tuple[int, bytes, dict[str, str]]:
        """POST /api/repos/create."""
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        self.may_write(name)
        if name in self.hub.repos:
            raise Refused(409, "", "You already created this model repo")
        repo = self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return as_json({"url": f"http://{self.headers['Host']}/{name}"})

    def info(self, name: str, revision: str | None) -> tuple[int, bytes, dict[str, str]]:
        """GET /api/models/…: what a repo holds, with sums if asked."""
        repo = self.repo(name)
        commit = repo.find(revision or "main")
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        blobs = "blobs" in parse_qs(self.address.query)
        files = [self.sibling(repo, path, content, blobs) for path, content in repo.commits[commit].items()]
        return as_json({"id": name, "sha": commit, "private": repo.private, "gated": repo.gated, "siblings": files})

    def sibling(self, repo: Repo, path: str, content: bytes, blobs: bool) -> dict[str, Any]:
        """One file in a list."""
        told: dict[str, Any] = {"rfilename": path}
        if blobs:
            told |= {"size": len(content), "blobId": git_sum(content)}
            if path in repo.bare:
                told["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return told

    def refs(self, name: str) -> tuple[int, bytes, dict[str, str]]:
        """GET /api/models/…/refs."""
        repo = self.repo(name)
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": to} for tag, to in repo.tags.items()]
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.branch}]
        return as_json({"branches": branches, "tags": tags, "converts": []})

    def preupload(self, name: str, _revision: str) -> tuple[int, bytes, dict[str, str]]:
        """POST /api/models/…/preupload/…: which files go through LFS."""
        self.repo(name, write=True)
        told = []
        for file in json.loads(self.body)["files"]:
            large = file["size"] > LFS_FROM or file["path"].endswith(".safetensors")
            told.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
        return as_json({"files": told})

    def batch(self, name: str) -> tuple[int, bytes, dict[str, str]]:
        """POST /….git/info/lfs/objects/batch: where to put large files; what is there already needs no upload."""
        self.repo(name, write=True)
        host = f"http://{self.headers['Host']}"
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            told = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                verify = {"href": f"{host}/lfs/verify"}
                told["actions"] = {"upload": {"href": f"{host}/lfs/{wanted['oid']}"}, "verify": verify}
            objects.append(told)
        return as_json({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> tuple[int, bytes, dict[str, str]]:
        """PUT /lfs/…"""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "", "the content has another SHA-256")
        self.hub.objects[oid] = self.body
        return 200, b"", {}

    def verify(self) -> tuple[int, bytes, dict[str, str]]:
        """POST /lfs/verify."""
        wanted = json.loads(self.body)
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, "", "no such object")
        return as_json({})

    def validate(self) -> tuple[int, bytes, dict[str, str]]:
        """POST /api/validate-yaml: takes any front matter that is there."""
        if not json.loads(self.body)["content"].startswith("---\n"):
            return 400, json.dumps({"errors": [{"message": "no metadata"}], "warnings": []}).encode(), {}
        return as_json({"errors": [], "warnings": []})

    def commit(self, name: str, _revision: str) -> tuple[int, bytes, dict[str, str]]:
        """POST /api/models/…/commit/main: all its operations or none."""
        repo = self.repo(name, write=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        parent = next(line["value"] for line in lines if line["key"] == "header").get("parentCommit")
        if parent not in (None, repo.branch):
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[repo.branch])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, "", "LFS pointer pointed to a file that does not exist")
                files[value["path"]] = self.hub.objects[value["oid"]]
                repo.bare.add(value["path"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = repo.commit(files)
        return as_json({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{made}", "commitOid": made})

    def tag(self, name: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        """POST /api/models/…/tag/…"""
        repo = self.repo(name, write=True)
        tag = json.loads(self.body)["tag"]
        if tag in repo.tags:
            raise Refused(409, "", "Tag reference exists already")
        repo.tags[tag] = str(repo.find(revision))
        return as_json({})

    def resolve(self, name: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        """GET or HEAD /…/resolve/…: a file; a large one lies elsewhere."""
        repo = self.repo(name, read=True)
        commit = repo.find(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = repo.commits[commit].get(path)
        if content is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_sum(content)}"'}
        if path in repo.bare:
            oid = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{oid}"', "Location": f"/lfs/{oid}"}
            return 302, b"", headers
        return self.part(content, headers)

    def get(self, oid: str) -> tuple[int, bytes, dict[str, str]]:
        """GET or HEAD /lfs/…"""
        for repo in self.hub.repos.values():
            for commit, files in repo.commits.items():
                for content in files.values():
                    if hashlib.sha256(content).hexdigest() == oid:
                        headers = {"X-Repo-Commit": commit, "X-Linked-ETag": f'"{oid}"', "ETag": f'"{oid}"'}
                        return self.part(content, {**headers, "X-Linked-Size": str(len(content))})
        raise Refused(404, "EntryNotFound", "Entry not found")

    def part(self, content: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """All of a file, or the rest of it that a client asks for when it goes on."""
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(found[1])
            told = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return 206, content[start:], told
        return 200, content, headers


def as_json(value: Any) -> tuple[int, bytes, dict[str, str]]:
    """An answer that is JSON."""
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def git_sum(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET", rf"/api/models/{NAME}(?:/revision/(.+))?", Handler.info),
    ("GET", rf"/api/models/{NAME}/refs", Handler.refs),
    ("POST", rf"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/api/models/{NAME}/commit/(.+)", Handler.commit),
    ("POST", rf"/api/models/{NAME}/tag/(.+)", Handler.tag),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("POST", r"/lfs/verify", Handler.verify),
    ("PUT", r"/lfs/([0-9a-f]{64})", Handler.put),
    ("GET HEAD", r"/lfs/([0-9a-f]{64})", Handler.get),
    ("GET HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]
