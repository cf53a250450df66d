"""A process in which `huggingface_hub`, timm and the commands of hub/ run against a test server.

The client reads its environment when it is imported, so each setting takes a process of its own; one process then does
many things. This file is both sides: `Client` starts itself and talks to it, a line of JSON each way.
"""

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT
from tests.helpers.snippets import run_snippet

ENVIRONMENT = {
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
}


class Client:
    """The process; a context manager.

    Args:
        endpoint: The server's address.
        home: Takes the client's cache.
        environment: Anything else it is to find.
    """

    def __init__(self, endpoint: str, home: Path, **environment: str) -> None:
        self.environment = {**os.environ, **ENVIRONMENT, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **environment}
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
            self.environment.pop(name, None)

    def __enter__(self) -> "Client":
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**self.environment, "PYTHONPATH": str(ROOT)},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def command(self, name: str, *arguments: object, **how: Any) -> tuple[int, str, str]:
        """Runs `hub/<name>.py`, or the training script; returns its exit code, what it printed, and the errors it told.

        Args:
            name: Of the command; `train`.
            arguments: Of the command line.
            how: `token`; `largest_file`, in bytes: the disk is full then.
        """
        answer = self._ask({"command": name, "arguments": [str(each) for each in arguments], **how})
        return answer["code"], answer["out"], answer["err"]

    def python(self, code: str, **how: Any) -> Any:
        """Runs lines of Python; returns what they leave in `result`, or the error they raise as "Type: message"."""
        return self._ask({"python": code, **how})["result"]

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """The other side."""
    import timm
    import torch

    import timm_wsms  # noqa: F401
    import train_accelerate
    from timm_wsms import cli_errors
    from timm_wsms.hub import publish, verify

    commands = {"publish": publish.main, "verify": verify.main, "train": train_accelerate.main}
    answers = sys.stdout
    for line in sys.stdin:
        what = json.loads(line)
        out, err = io.StringIO(), io.StringIO()
        answer: dict[str, Any] = {}
        os.environ["HF_TOKEN"] = what.get("token", "")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), full_disk(what.get("largest_file")):
            if "command" in what:
                try:
                    answer["code"] = cli_errors.run(lambda what=what: commands[what["command"]](what["arguments"]))
                except Exception:
                    answer["code"] = 1
                    traceback.print_exc()
            else:
                try:
                    answer["result"] = run_snippet(what["python"], timm=timm, torch=torch).get("result")
                except Exception as error:
                    answer["result"] = f"{type(error).__name__}: {error}"
        answers.write(json.dumps({**answer, "out": out.getvalue(), "err": err.getvalue()}) + "\n")
        answers.flush()


@contextlib.contextmanager
def full_disk(largest_file: int | None) -> Any:
    """Lets no file grow above so many bytes, which ends writing as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


if __name__ == "__main__":
    serve()
