"""A Hugging Face Hub on loopback, as much of one as `huggingface_hub` needs: repos, commits, LFS, tags, tokens, faults.

Of the standard library only. What a client may see and do follows the real one: large files go through LFS, a commit
names its parent, a repo that a token may not see is not there. `Fault`s, given in order, answer instead.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.helpers.hub_endpoints import READ, ROUTES, WRITE, Answer, Endpoints, RefusedError, Repo


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
        state = {"hub": self, "repos": self.repos, "objects": self.objects}
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), state))
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


class Handler(Endpoints):
    """One request: the connection, and faults."""

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
        except RefusedError as refused:
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

    def answer(self) -> Answer:
        """Status, body and headers."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", WRITE, READ) and not self.way.startswith("/lfs/"):
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        self.token = token
        for method, pattern, respond in ROUTES:
            if (found := re.fullmatch(pattern, self.way)) and self.command in method.split():
                return respond(self, *found.groups())
        raise RefusedError(404, "", f"no such endpoint: {self.command} {self.way}")
