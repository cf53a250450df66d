"""Getting a published model, over HTTP, by the real client: whole, changed, offline, damaged, forbidden."""

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import timm_wsms  # noqa: F401
from tests.helpers.hub_client import Client
from tests.helpers.hub_endpoints import READ, WRITE, Repo
from tests.helpers.hub_server import Fault
from tests.helpers.publishing import LOGITS, MODEL, REPO, refused

pytestmark = pytest.mark.slow  # starts the Hub's client

WEIGHTS = load_file(MODEL / "model.safetensors")


@pytest.fixture
def repo(hub):
    """The model as it lies on the Hub; its weights are LFS."""
    made = hub.repos[REPO] = Repo(bare={"model.safetensors"})
    files = {path.relative_to(MODEL).as_posix(): path.read_bytes() for path in MODEL.rglob("*") if path.is_file()}
    made.commit(files)
    return made


def spoil(repo, **files):
    """A commit with other files; None takes one away."""
    now = {**repo.commits[repo.branch], **{name.replace("__", "."): content for name, content in files.items()}}
    repo.commit({name: content for name, content in now.items() if content is not None})


def create(client, cache, more="", result="model.get_classifier().weight.tolist()", **how):
    """Builds the model from the Hub in the other process."""
    build = f"model = timm.create_model('hf-hub:{REPO}', pretrained=True, cache_dir={str(cache)!r}{more})"
    return client.python(f"{build}\nresult = {result}", **how)


def test_another_number_of_classes_and_channels(repo, client, tmp_path):
    more, result = ", num_classes=5, in_chans=1", "{name: value.tolist() for name, value in model.state_dict().items()}"
    found = {name: torch.tensor(value) for name, value in create(client, tmp_path, more, result).items()}
    assert found.keys() == WEIGHTS.keys() and found.pop("head.fc.weight").shape == (5, 128)
    assert found.pop("head.fc.bias").shape == (5,)
    one_channel = WEIGHTS["backbone.features.conv0.weight"].sum(1, keepdim=True)  # timm adds them up
    torch.testing.assert_close(found.pop("backbone.features.conv0.weight"), one_channel)
    for name, value in found.items():
        torch.testing.assert_close(value, WEIGHTS[name])
    assert list(tmp_path.glob("models--someone--small/blobs/*"))  # cache_dir


def test_offline(repo, client, tmp_path):
    torch.testing.assert_close(torch.tensor(create(client, tmp_path)), WEIGHTS["head.fc.weight"])
    expected = client.python(LOGITS.format(REPO))  # into the usual cache
    with Client(client.endpoint, client.home, HF_HUB_OFFLINE="1") as offline:
        assert offline.python(LOGITS.format(REPO)) == expected
        torch.testing.assert_close(torch.tensor(create(offline, tmp_path)), WEIGHTS["head.fc.weight"])
        line = refused(offline.command("verify", "someone/else"))
        assert "someone/else cannot be reached offline; unset HF_HUB_OFFLINE" in line


def test_a_download_that_is_cut_off_goes_on(repo, hub, client, tmp_path):
    hub.faults.append(Fault("GET /lfs", cut=300_000, times=2))
    found = create(client, tmp_path)
    torch.testing.assert_close(torch.tensor(found), WEIGHTS["head.fc.weight"])
    assert hub.faults[0].times == 0


@pytest.mark.parametrize(("where", "name"), [("GET /lfs", "model.safetensors"), ("GET .*config.json", "config.json")])
def test_a_flipped_byte_is_found_and_downloaded_again(repo, hub, client, tmp_path, where, name):
    config = (MODEL / "config.json").read_bytes()
    spoil(repo, config__json=b'{"note": "' + b"a" * 5_000 + b'",' + config[1:])  # with any of these flipped it is JSON
    hub.faults.append(Fault(where, flip=True))
    assert f"UserError: {name} of {REPO} is corrupted: its sum is not the Hub's" in create(client, tmp_path)
    assert torch.equal(torch.tensor(create(client, tmp_path)), WEIGHTS["head.fc.weight"])


def test_a_damaged_cache_is_found(repo, client, tmp_path):
    create(client, tmp_path)
    blob = next(path for path in tmp_path.glob("models--someone--small/blobs/*") if len(path.name) == 64)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert "model.safetensors of someone/small is corrupted" in create(client, tmp_path)
    assert torch.equal(torch.tensor(create(client, tmp_path)), WEIGHTS["head.fc.weight"])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("HEAD .*model.safetensors", 503, 99, {"Retry-After": "0"}), "the Hub failed each time (HTTP 503)"),
        (Fault("GET /lfs", 500), "the Hub failed each time (HTTP 500)"),
        (Fault("GET /lfs", 404), "the Hub refuses this for someone/small"),
    ],
)
def test_weights_that_do_not_come(repo, hub, client, tmp_path, fault, words):
    hub.faults.append(fault)
    told = create(client, tmp_path)
    assert told.startswith("UserError: ") and words in told and "\n" not in told
    hub.faults.clear()
    assert torch.equal(torch.tensor(create(client, tmp_path)), WEIGHTS["head.fc.weight"])  # nothing half is left


def test_pickled_weights_are_not_read(repo, hub, client, tmp_path):
    spoil(repo, model__safetensors=None, pytorch_model__bin=b"pickle")
    told = create(client, tmp_path)
    assert told.startswith("UserError: ") and "has no model.safetensors" in told and "pickled" in told
    assert "pickled weights are not read" in refused(client.command("verify", REPO))
    assert not any("pytorch_model" in request for request in hub.requests)


def test_configs_from_a_stranger(repo, client, tmp_path):
    config = (MODEL / "config.json").read_bytes()
    spoil(repo, config__json=config.replace(b'"custom_load": false', b'"url": "http://127.0.0.1/evil.pth"'))
    words = "pretrained_cfg has 'url'"
    assert create(client, tmp_path).startswith("UserError: ") and words in create(client, tmp_path)
    assert words in refused(client.command("verify", REPO))


@pytest.mark.parametrize(
    ("state", "token", "words"),
    [
        ({"gated": True}, "", "asks for consent: accept its terms on its page, then `hf auth login`"),
        ({"private": True}, "", "there is no someone/small, or it is private and the token may not see it"),
        ({}, "hf_wrong", "the Hub does not know this token; `hf auth login` again, or correct HF_TOKEN"),
    ],
)
def test_who_may_not_see_it(repo, client, state, token, words):
    vars(repo).update(state)
    line = refused(client.command("verify", REPO, token=token))
    assert words in line and "hf_wrong" not in line
    code, _, told = client.command("verify", REPO, token=READ)
    assert code == 0, told


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("someone/nothing", "there is no someone/nothing, or it is private"),
        (f"{REPO}@v9", f"{REPO}@v9 has no such revision"),
        ("no name", "'no name' is not a name on the Hub; it must be owner/name"),
    ],
)
def test_places_that_are_not_there(repo, client, place, words):
    assert words in refused(client.command("verify", place, token=WRITE))


def test_verify_finds_what_is_not_right(repo, hub, client):
    hub.faults.append(Fault("GET .*settings.yaml", flip=True))
    assert f"settings.yaml of {REPO} is corrupted" in refused(client.command("verify", REPO))
    hub.faults.append(Fault("GET .*results.json", cut=100, times=99))
    code, _, told = client.command("verify", REPO, largest_file=500_000)
    assert code == 2 and "the disk is full; free some space, or set HF_HOME" in told
    spoil(repo, metrics__jsonl=(MODEL / "metrics.jsonl").read_bytes() + b"\n")
    hub.faults.clear()
    assert "is from another run" in refused(client.command("verify", REPO))


def test_verify_measures(repo, client, tmp_path):
    model = timm.create_model(f"local-dir:{MODEL}", pretrained=True)
    assert model.num_classes == 10
    line = refused(client.command("verify", REPO, "--data", "digits"))  # ten classes, but not those
    assert "digits has other classes than the model; give a source of the images that it was tested on" in line
    for name in model.pretrained_cfg["label_names"]:  # its classes, but other images
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "test" / name / "black.png")
    line = refused(client.command("verify", REPO, "--data", str(tmp_path)))
    assert "is 10.00 %, but someone/small says 86.32 %; is it that data set?" in line
