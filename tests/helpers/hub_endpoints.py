"""What the Hub on loopback answers. `hub_server.py` has the connection and the faults."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import SplitResult, parse_qs

LFS_FROM = 50_000  # bytes; and whatever ends in .safetensors
WRITE, READ = "hf_may_write_0123456789", "hf_may_read_0123456789"  # the tokens it knows
Answer = tuple[int, bytes, dict[str, str]]  # status, body, headers


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


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)


class Endpoints(BaseHTTPRequestHandler):
    """One request: who may do what, and the answers.

    Attributes:
        repos: By `owner/name`.
        objects: LFS's, by SHA-256.
        address: What was asked for.
        body: Of the request.
        token: Of whoever asks.
    """

    repos: dict[str, Repo]
    objects: dict[str, bytes]
    address: SplitResult
    body: bytes
    token: str

    # ---- who may do what

    def repo(self, name: str, read: bool = False, write: bool = False) -> Repo:
        """A repo that the token may see (and read the files of, or write to)."""
        repo = self.repos.get(name)
        if repo is None or (repo.private and not self.token):
            raise RefusedError(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if read and repo.gated and not self.token:
            raise RefusedError(401, "GatedRepo", f"Access to model {name} is restricted")
        if write:
            self.may_write(name)
        return repo

    def may_write(self, name: str) -> None:
        """Refuses a token that may only read."""
        if self.token != WRITE:
            raise RefusedError(403 if self.token else 401, "", f"You don't have the rights to write to {name}")

    # ---- the endpoints

    def create(self) -> Answer:
        """POST /api/repos/create."""
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        self.may_write(name)
        if name in self.repos:
            told = {"error": "You already created this model repo", "url": f"http://{self.headers['Host']}/{name}"}
            return 409, json.dumps(told).encode(), {}
        repo = self.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return as_json({"url": f"http://{self.headers['Host']}/{name}"})

    def info(self, name: str, revision: str | None) -> Answer:
        """GET /api/models/…: what a repo holds, with sums if asked."""
        repo = self.repo(name)
        commit = repo.find(revision or "main")
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
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

    def refs(self, name: str) -> Answer:
        """GET /api/models/…/refs."""
        repo = self.repo(name)
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": to} for tag, to in repo.tags.items()]
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.branch}]
        return as_json({"branches": branches, "tags": tags, "converts": []})

    def preupload(self, name: str, _revision: str) -> Answer:
        """POST /api/models/…/preupload/…: which files go through LFS."""
        self.repo(name, write=True)
        told = []
        for file in json.loads(self.body)["files"]:
            large = file["size"] > LFS_FROM or file["path"].endswith(".safetensors")
            told.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
        return as_json({"files": told})

    def batch(self, name: str) -> Answer:
        """POST /….git/info/lfs/objects/batch: where to put large files; what is there already needs no upload."""
        self.repo(name, write=True)
        host = f"http://{self.headers['Host']}"
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            told = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.objects:
                verify = {"href": f"{host}/lfs/verify"}
                told["actions"] = {"upload": {"href": f"{host}/lfs/{wanted['oid']}"}, "verify": verify}
            objects.append(told)
        return as_json({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> Answer:
        """PUT /lfs/…"""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, "", "the content has another SHA-256")
        self.objects[oid] = self.body
        return 200, b"", {}

    def verify(self) -> Answer:
        """POST /lfs/verify."""
        wanted = json.loads(self.body)
        if len(self.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise RefusedError(404, "", "no such object")
        return as_json({})

    def validate(self) -> Answer:
        """POST /api/validate-yaml: takes any front matter that is there."""
        if not json.loads(self.body)["content"].startswith("---\n"):
            return 400, json.dumps({"errors": [{"message": "no metadata"}], "warnings": []}).encode(), {}
        return as_json({"errors": [], "warnings": []})

    def commit(self, name: str, _revision: str) -> Answer:
        """POST /api/models/…/commit/main: all its operations or none."""
        repo = self.repo(name, write=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        parent = next(line["value"] for line in lines if line["key"] == "header").get("parentCommit")
        if parent not in (None, repo.branch):
            raise RefusedError(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[repo.branch])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise RefusedError(400, "", "LFS pointer pointed to a file that does not exist")
                files[value["path"]] = self.objects[value["oid"]]
                repo.bare.add(value["path"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = repo.commit(files)
        return as_json({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{made}", "commitOid": made})

    def tag(self, name: str, revision: str) -> Answer:
        """POST /api/models/…/tag/…"""
        repo = self.repo(name, write=True)
        tag = json.loads(self.body)["tag"]
        if tag in repo.tags:
            raise RefusedError(409, "", "Tag reference exists already")
        repo.tags[tag] = str(repo.find(revision))
        return as_json({})

    def resolve(self, name: str, revision: str, path: str) -> Answer:
        """GET or HEAD /…/resolve/…: a file; a large one lies elsewhere."""
        repo = self.repo(name, read=True)
        commit = repo.find(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = repo.commits[commit].get(path)
        if content is None:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_sum(content)}"'}
        if path in repo.bare:
            oid = hashlib.sha256(content).hexdigest()
            elsewhere = f"http://{self.headers['Host'].replace('127.0.0.1', 'localhost')}/lfs/{oid}"
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{oid}"', "Location": elsewhere}
            return 302, b"", headers
        return self.part(content, headers)

    def get(self, oid: str) -> Answer:
        """GET /lfs/…, which is another host to the client: it sends no token there."""
        if self.token:
            raise RefusedError(400, "", "a token was sent to where the files are stored")
        stored = [
            content for repo in self.repos.values() for files in repo.commits.values() for content in files.values()
        ]
        for content in stored:
            if hashlib.sha256(content).hexdigest() == oid:
                return self.part(content, {"ETag": f'"{oid}"'})
        raise RefusedError(404, "EntryNotFound", "Entry not found")

    def part(self, content: bytes, headers: dict[str, str]) -> Answer:
        """All of a file, or the rest of it that a client asks for when it goes on."""
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(found[1])
            told = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return 206, content[start:], told
        return 200, content, headers


def as_json(value: Any) -> Answer:
    """An answer that is JSON."""
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def git_sum(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", r"/api/repos/create", Endpoints.create),
    ("POST", r"/api/validate-yaml", Endpoints.validate),
    ("GET", rf"/api/models/{NAME}(?:/revision/(.+))?", Endpoints.info),
    ("GET", rf"/api/models/{NAME}/refs", Endpoints.refs),
    ("POST", rf"/api/models/{NAME}/preupload/(.+)", Endpoints.preupload),
    ("POST", rf"/api/models/{NAME}/commit/(.+)", Endpoints.commit),
    ("POST", rf"/api/models/{NAME}/tag/(.+)", Endpoints.tag),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Endpoints.batch),
    ("POST", r"/lfs/verify", Endpoints.verify),
    ("PUT", r"/lfs/([0-9a-f]{64})", Endpoints.put),
    ("GET", r"/lfs/([0-9a-f]{64})", Endpoints.get),
    ("GET HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", Endpoints.resolve),
]
