"""What the Hub may answer, by a server on this machine that answers so, and the line that follows from it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from tests.helpers.paths import ROOT
from timm_wsms.data import DataSettings
from timm_wsms.data.hub_source import open_source
from timm_wsms.errors import UserError

pytestmark = pytest.mark.slow  # starts processes

ASK = """
import json, os, sys
from timm_wsms.data import DataSettings, load_data
from timm_wsms import cli_errors
from timm_wsms.training import builders
def data(name): load_data(DataSettings(name, streaming=name.endswith("streamed")), 0)
def model(name): builders.build(name, {}, 2)
for what, name, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try: {"data": data, "model": model}[what](name)
    except Exception as error: print(cli_errors.explain(error))
"""


class Hub(BaseHTTPRequestHandler):
    """The Hub's answers about repositories that one may not see: 401 without a token, 403 or 404 with one."""

    def do_GET(self) -> None:
        known = "authorization" in self.headers
        gated = "/gated/" in self.path
        self.send_response((403 if gated else 404) if known else 401)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815  the base class's name

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def told(endpoint: str, home: Path, *asked: tuple[str, str, str]) -> list[str]:
    """What is told of (kind, name, token), each; nothing else may be printed to stdout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(asked)], env=environment, capture_output=True, text=True, cwd=home
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_the_hub_refuses_is_one_line_with_its_remedy(hub, tmp_path):
    cases = {
        ("data", "gated/whole", ""): [
            "is gated: accept its terms at https://",
            "log in (hf auth login, or set HF_TOKEN)",
        ],
        ("data", "gated/streamed", ""): ["is gated: accept its terms", "log in"],
        ("data", "gated/whole", "hf_x"): ["is gated, and your token has no access", "with the same account"],
        ("data", "nobody/aggregated", ""): ["is not a local folder", "Fix data.source", "log in", "if it is private"],
        ("data", "nobody/aggregated", "hf_x"): ["is not a local folder", "Fix data.source", "data.config"],
        ("model", "hf-hub:gated/model", ""): ["the Hub did not deliver", "log in", "accept its terms"],
        ("model", "hf-hub:nobody/model", "hf_x"): ["the Hub did not deliver", "check the name", "HF_HUB_OFFLINE=1"],
    }
    lines = told(hub, tmp_path, *cases)
    assert len(lines) == len(cases), lines
    for ((_, name, _), parts), line in zip(cases.items(), lines, strict=True):
        assert all(part in line for part in (*parts, name.removeprefix("hf-hub:"))), line


@pytest.mark.sweep  # the Hub's client tries again for half a minute
def test_a_hub_that_cannot_be_reached_names_prefetching(tmp_path):
    data, model = told("http://127.0.0.1:9", tmp_path, ("data", "a/b", ""), ("model", "hf-hub:a/b", ""))
    assert "the Hub cannot be reached" in data
    for line in (data, model):
        assert "HF_HUB_OFFLINE=1" in line and "copy" in line


@pytest.mark.parametrize("streaming", [False, True])
def test_without_the_hub_what_was_never_fetched_is_not_there(monkeypatch, tmp_path, streaming):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError) as error:
        open_source(DataSettings("nobody/nothing", streaming=streaming))
    parts = ["the Hub cannot be reached", "datasets.load_dataset('nobody/nothing')", "HF_HUB_OFFLINE=1", "local folder"]
    assert all(part in str(error.value) for part in parts), error.value
    assert ("data.streaming=false" in str(error.value)) == streaming


@pytest.mark.parametrize(
    ("raised", "parts"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)"), ["HF_HUB_OFFLINE=1"]),
        (
            FileNotFoundError("Couldn't find any data file\nat … either: LocalEntryNotFoundError: …"),
            ["HF_HUB_OFFLINE=1"],
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist\non the Hub"),
            ["data.source", "log in"],
        ),
        (ValueError("Config name is missing.\nPlease pick one among: ['x', 'y']"), ["data.config", "['x', 'y']"]),
    ],
)
def test_a_hub_that_does_not_deliver_is_one_clear_line(monkeypatch, raised, parts):
    def load_dataset(*_, **__):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as error:
        open_source(DataSettings("a/b"))
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert all(part in message for part in ("'a/b'", "local folder", *parts, *str(raised).split("\n"))), message
