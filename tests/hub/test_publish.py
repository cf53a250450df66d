"""Publishing, over HTTP, by the real client: what arrives, what a dry run shows, what faults leave behind."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open

import timm_wsms  # noqa: F401
from tests.helpers.hub_endpoints import READ, WRITE, Repo
from tests.helpers.hub_server import Fault
from tests.helpers.publishing import LOGITS, MODEL, REPO, publish, refused
from timm_wsms.training.checkpoint_folder import run_hash

pytestmark = pytest.mark.slow  # starts the Hub's client

NO_WAIT = {"Retry-After": "0"}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder to change."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def newest(hub):
    repo = hub.repos[REPO]
    return repo.commits[repo.branch]


def test_round_trip(hub, client):
    code, shown, told = publish(client, "--dry-run")
    assert code == 0, told
    assert not hub.repos and not any(request.startswith(("POST", "PUT")) for request in hub.requests)
    assert "a new repo" in shown and "+ model.safetensors  1,177,032 bytes" in shown

    code, shown, told = publish(client, "--tag", "v1")
    assert code == 0, told
    assert WRITE not in shown + told
    files = newest(hub)
    local = {path.relative_to(MODEL).as_posix(): path.read_bytes() for path in MODEL.rglob("*") if path.is_file()}
    assert files.keys() == {*local, ".gitattributes"}
    assert all(files[name] == content for name, content in local.items() if name != "README.md")
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in files["README.md"].decode()
    assert hub.repos[REPO].tags == {"v1": hub.repos[REPO].branch} and len(hub.repos[REPO].commits) == 2

    code, shown, told = client.command("verify", REPO)
    assert code == 0, told
    assert hub.repos[REPO].branch in shown and "the outputs are those recorded" in shown
    local_model = timm.create_model(f"local-dir:{MODEL}", pretrained=True).eval()
    with torch.no_grad():
        expected = local_model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32))
    for place in (REPO, f"{REPO}@v1", f"{REPO}@{hub.repos[REPO].branch}"):
        torch.testing.assert_close(torch.tensor(client.python(LOGITS.format(place))), expected, rtol=1e-4, atol=1e-5)

    code, shown, _ = publish(client, "--dry-run")  # nothing left to do
    assert code == 0 and {line[0] for line in shown.splitlines()[1:]} == {"=", " "}
    assert publish(client)[0] == 0 and len(hub.repos[REPO].commits) == 2


def test_weights_say_what_they_are():
    with safe_open(MODEL / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "run": run_hash(MODEL)}


def test_a_dry_run_shows_the_difference(hub, client, folder):
    assert publish(client)[0] == 0
    repo = hub.repos[REPO]
    readme = repo.commits[repo.branch]["README.md"].replace(b"| Seed | 1 |", b"| Seed | 7 |")
    repo.commit({**newest(hub), "README.md": readme, "notes.txt": b"by hand"})
    (folder / "curves.png").unlink()
    code, shown, told = publish(client, "--dry-run", folder=folder)
    assert code == 0, told
    lines = shown.splitlines()
    readme_now = newest(hub)["README.md"].replace(b"| Seed | 7 |", b"| Seed | 1 |")
    for line in (f"~ README.md  {len(readme_now):,} bytes", "- curves.png  80,964 bytes", "= config.json  865 bytes"):
        assert line in lines
    assert "  notes.txt  7 bytes" in lines
    assert "-| Seed | 7 |" in lines and "+| Seed | 1 |" in lines
    assert publish(client, folder=folder)[0] == 0
    assert "curves.png" not in newest(hub) and newest(hub)["notes.txt"] == b"by hand"
    assert b"| Seed | 1 |" in newest(hub)["README.md"]


FAULTS = {
    "503 when asked what is there": [Fault("GET /api/models", 503, times=2, headers=NO_WAIT)],
    "503 when the repo is made": [Fault("POST /api/repos/create", 503)],
    "its answer is lost": [Fault("POST /api/repos/create", 502, headers=NO_WAIT, after=True)],
    "429 and Retry-After": [Fault("/commit/", 429, headers={"Retry-After": "1"})],
    "500 where large files are announced": [Fault("objects/batch", 500)],
    "an upload is cut off": [Fault("PUT /lfs", cut=50_000)],
    "503 at the upload": [Fault("PUT /lfs", 503)],
    "504 at the commit": [Fault("/commit/", 504, times=2, headers=NO_WAIT)],
    "the commit's answer is lost": [Fault("/commit/", 502, headers=NO_WAIT, after=True)],
    "503 at the tag": [Fault("/tag/", 503, headers=NO_WAIT)],
    "no JSON at the card's check": [Fault("validate-yaml", 503, headers=NO_WAIT)],
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_pass(hub, client, name):
    hub.faults += FAULTS[name]
    code, _, told = publish(client, "--tag", "v1")
    assert code == 0, told
    assert not any(fault.times for fault in hub.faults)  # it did happen
    repo = hub.repos[REPO]
    assert len(repo.commits) == 2 and repo.tags == {"v1": repo.branch}  # one commit, not two
    assert newest(hub)["model.safetensors"] == (MODEL / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            Fault("PUT /lfs", 503, 99, NO_WAIT),
            "the Hub failed each time (HTTP 503); someone/small is unchanged",
        ),
        (Fault("/commit/", 500, 99, NO_WAIT), "the Hub failed each time (HTTP 500)"),
        (Fault("/commit/", 429, 99, {"Retry-After": "900"}), "too many requests to the Hub; run it again in 900 s"),
        (Fault("/commit/", 412), "someone/small has changed meanwhile"),
        (Fault("/preupload/", 403), "the token may not write to someone/small; make one with write access"),
        (Fault("/commit/", 400), "the Hub refuses this for someone/small: a fault on order"),
    ],
)
def test_faults_that_stay_leave_the_repo_as_it_was(hub, client, folder, fault, words):
    hub.repos[REPO] = Repo()
    old = hub.repos[REPO].commit({"config.json": b"old"})
    hub.faults.append(fault)
    assert words in refused(publish(client, folder=folder))
    assert hub.repos[REPO].branch == old and len(hub.repos[REPO].commits) == 1


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hf_wrong", "the Hub does not know this token; `hf auth login` again"),
        (READ, "the token may not write to someone/small; make one with write access"),
        ("", "no token was found; `hf auth login`, or set HF_TOKEN"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_tokens(hub, client, token, words, there):
    if there:
        hub.repos[REPO] = Repo()
        hub.repos[REPO].commit({})
    line = refused(publish(client, token=token))
    assert words in line and "hf_wrong" not in line
    assert len(getattr(hub.repos.get(REPO), "commits", [0])) == 1


def test_private_repos(hub, client):
    assert publish(client, "--private")[0] == 0
    assert hub.repos[REPO].private
    assert "there is no someone/small, or it is private" in refused(client.command("verify", REPO))
    assert client.command("verify", REPO, token=READ)[0] == 0
    hub.repos[REPO].private = False
    assert "someone/small already exists and is public" in refused(publish(client, "--private"))


def test_a_tag_is_not_moved(hub, client, folder):
    assert publish(client, "--tag", "v1")[0] == 0
    assert publish(client, "--tag", "v1")[0] == 0  # it stands where it would be set
    first = hub.repos[REPO].branch
    (folder / "curves.png").unlink()
    line = refused(publish(client, "--tag", "v1", folder=folder))
    assert "has a tag v1 already, of another commit" in line and hub.repos[REPO].branch == first


@pytest.mark.parametrize("name", ["small", "some one/small", "someone/small/deep", "someone/-small"])
def test_names_that_are_none(hub, client, name):
    line = refused(client.command("publish", MODEL, "--repo", name, token=WRITE))
    assert "is not a name on the Hub; it must be owner/name" in line and not hub.requests


def test_what_fails_its_check_is_not_sent(hub, client, folder):
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "is pickled, and pickles are not published" in refused(publish(client, folder=folder))
    assert not hub.requests


FEW = [
    *("--model", "wsms_resnet20_cifar", "--model_kwargs.stages", "2", "--epochs", "1", "--batch_size", "16"),
    *("--data.train_limit", "32", "--data.test_limit", "21"),
]


def test_the_training_script_publishes(hub, client, tmp_path):
    output = tmp_path / "run"
    train = [*FEW, "--output", output, "--hub.push", REPO, "--hub.private", "true", "--hub.tag", "v1"]
    line = refused(client.command("train", *train, token=""))
    assert "no token was found" in line and not output.exists()  # before any work
    hub.faults.append(Fault("/commit/", 400))
    code, shown, told = client.command("train", *train, token=WRITE)
    assert code == 2 and "the Hub refuses this for someone/small" in told
    assert f"python hub/publish.py {output}/model --repo {REPO}" in shown
    code, _, told = client.command("train", *train, "--resume", "auto", token=WRITE)
    assert code == 0, told
    repo = hub.repos[REPO]
    assert repo.private and repo.tags == {"v1": repo.branch}
    weights = (output / "model" / "model.safetensors").read_bytes()
    assert repo.commits[repo.branch]["model.safetensors"] == weights
    assert "scale.png" in repo.commits[repo.branch] and b"test_top1" in repo.commits[repo.branch]["metrics.jsonl"]
    code, _, told = client.command("verify", REPO, token=READ)
    assert code == 0, told
