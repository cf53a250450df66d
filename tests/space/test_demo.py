"""The demo without Gradio and without a browser: what the networks say, what the page shows, what a Space needs."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import timm.data
import torch
import yaml
from huggingface_hub.errors import EntryNotFoundError
from packaging.requirements import Requirement
from PIL import Image

from demo import views
from demo.networks import MODELS, Pair, Seen, load_pair
from demo.pictures import find_examples, open_picture, read_credits
from tests.helpers.paths import ROOT
from timm_wsms.errors import UserError
from timm_wsms.evaluation.stages.cam import stage_heat_maps
from timm_wsms.object_scaling import rescale_object

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

SPACE = ROOT / "hub" / "space"


def local(name):
    return f"local-dir:{MODELS / name}"


@pytest.fixture(scope="module")
def pair():
    """Two networks of the same image size."""
    return Pair(local("wsms_resnet20_sizes_cifar10"), local("resnet20_cifar10"))


# ---- networks


def test_answers_are_the_networks(pair):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    picture, same = pair.prepare(image)
    assert torch.equal(picture, same)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.2435, 0.2616])
    torch.testing.assert_close(picture, (pixels - mean[:, None, None]) / std[:, None, None])
    for factor in (0.5, 1.0, 2.0):
        images = rescale_object(picture[None], factor)
        seen = pair.see((picture, same), factor)
        for top5, name in ((seen.wsms, "wsms_resnet20_sizes_cifar10"), (seen.plain, "resnet20_cifar10")):
            model = timm.create_model(local(name), pretrained=True).eval()
            with torch.no_grad():
                probabilities = model(images)[0].softmax(0)
            assert [label for label, _ in top5] == [pair.labels[i] for i in probabilities.argsort(descending=True)[:5]]
            torch.testing.assert_close(torch.tensor([v for _, v in top5]), probabilities.sort().values.flip(0)[:5])
        torch.testing.assert_close(seen.maps, stage_heat_maps(pair.wsms, images)[0])
        assert seen.maps.shape == (2, 8, 8) and seen.factors == [1.0, 0.5]
        if factor == 1:
            torch.testing.assert_close(seen.images, (pixels, pixels))


def test_examples():
    """All have an author; both networks know most of them, and averaging knows more of them at half the size."""
    pair, examples = load_pair(), find_examples()
    assert pair.name.endswith("wsmean_tf_efficientnet_lite0_flowers")
    assert pair.plain.pretrained_cfg["architecture"] == "tf_efficientnet_lite0"
    truths = [path.parent.name for path in examples]
    assert len(examples) == 8 and set(truths) == set(pair.labels) - {"sunflower"}
    pictures = [pair.prepare(open_picture(path)) for path in examples]
    right = {}
    for factor in (0.5, 1.0):
        seen = [pair.see(picture, factor) for picture in pictures]
        for name in ("wsms", "plain"):
            right[name, factor] = sum(
                getattr(one, name)[0][0] == truth for one, truth in zip(seen, truths, strict=True)
            )
    assert right["wsms", 1.0] >= 6 and right["wsms", 0.5] > right["plain", 0.5]
    credits = read_credits()
    assert all(path.name.partition("_")[0].partition(".")[0] in credits for path in examples)


def test_examples_of_ones_own(monkeypatch, tmp_path):
    monkeypatch.setenv("EXAMPLES", str(tmp_path))
    Image.new("RGB", (20, 30)).save(tmp_path / "of no class.png")
    with pytest.raises(UserError, match=f"no pictures in {tmp_path}/<class>/; python hub/space/make_examples.py"):
        find_examples()
    assert read_credits() == ""
    (tmp_path / "README.md").write_text("by *me*")
    assert read_credits() == "by *me*"
    for name in ("cat/b.JPG", "cat/a.png", "a dog/c.webp", ".ipynb_checkpoints/a.png", "cat/._b.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 30)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").touch()
    assert find_examples() == [tmp_path / name for name in ("a dog/c.webp", "cat/a.png", "cat/b.JPG")]
    (tmp_path / "cat" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=f"{tmp_path}/cat/a.png: This file is not a picture"):
        find_examples()


def test_examples_are_made_of_the_first_image_of_each_class(tmp_path, monkeypatch):
    colors = {"a dog": ["red", "blue"], "cat": ["green"], "horse": ["white", "black"]}
    for label, its in colors.items():
        folder = tmp_path / "data" / "test" / label
        folder.mkdir(parents=True)
        for place, color in enumerate(its):
            Image.new("RGB", (20, 30), color).save(folder / f"{place}.png")
    target = tmp_path / "examples"
    command = [sys.executable, "-W", "ignore", str(SPACE / "make_examples.py"), str(tmp_path / "data"), "--output"]
    run = [subprocess.run([*command, str(target)], capture_output=True, text=True, cwd=ROOT) for _ in range(2)]
    assert run[0].returncode == 0 and "3 pictures" in run[0].stdout, run[0].stderr
    monkeypatch.setenv("EXAMPLES", str(target))
    assert [path.parent.name for path in find_examples()] == ["a dog", "cat", "horse"]
    for path, color in zip(find_examples(), ("red", "green", "white"), strict=True):
        assert list(open_picture(path).getdata()) == list(Image.new("RGB", (20, 30), color).getdata())
    assert run[1].returncode == 2 and "is not empty; name another folder with --output" in run[1].stderr
    assert "Traceback" not in run[1].stderr


def test_any_picture_is_cut_to_the_networks_size(pair):
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))  # the middle square
    seen = pair.see(pair.prepare(image), 1.0)
    assert [image.shape for image in seen.images] == 2 * [(3, 32, 32)]
    torch.testing.assert_close(seen.images[0][:, 16, 16], torch.tensor([0.0, 0.0, 1.0]), atol=1e-5, rtol=0)


@pytest.fixture
def saved(tmp_path):
    """A small network's folder, without labels."""
    torch.manual_seed(0)
    model = timm.create_model("wsms_test_resnet", num_classes=3)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    return tmp_path


def test_networks_that_do_not_belong_together(saved):
    with pytest.raises(UserError, match="same images and labels"):
        Pair(local("wsms_resnet20_cifar10"), f"local-dir:{saved}")
    with pytest.raises(UserError, match="label_names"):
        Pair(f"local-dir:{saved}", local("resnet20_cifar10"))
    with pytest.raises(UserError, match="several stages"):
        Pair(local("resnet20_cifar10"), local("resnet20_cifar10"))


def test_networks_of_few_classes(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "label_names": ["a", "b", "c"]}))
    pair = Pair(f"local-dir:{saved}", f"local-dir:{saved}")
    seen = pair.see(pair.prepare(Image.new("RGB", (50, 50), "red")), 2.0)
    assert seen.wsms == seen.plain and {label for label, _ in seen.wsms} == {"a", "b", "c"}


def test_each_network_gets_the_picture_at_its_own_size(tmp_path):
    """As timm's own transform makes it, for each; trained for other colors is another kind of image."""
    names = {"wsmean_test_resnet": 48, "test_resnet": 64, "other_colors": 64}
    for name, side in names.items():
        torch.manual_seed(0)
        model = timm.create_model(name.replace("other_colors", "test_resnet"), num_classes=2)
        mean = (0.1 if name == "other_colors" else 0.5,) * 3
        model.pretrained_cfg.update(input_size=(3, side, side), crop_pct=1.0, mean=mean)
        labels = {"label_names": ["a", "b"]}
        timm.models.save_for_hf(model, tmp_path / name, model_config=labels, safe_serialization=True)
    wsms, plain, other = (f"local-dir:{tmp_path / name}" for name in names)
    with pytest.raises(UserError, match="same images and labels"):
        Pair(wsms, other)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    pair = Pair(wsms, plain)
    seen = pair.see(pair.prepare(image), 0.5)
    assert [tuple(one.shape) for one in seen.images] == [(3, 48, 48), (3, 64, 64)]
    for name, top5 in (("wsmean_test_resnet", seen.wsms), ("test_resnet", seen.plain)):
        model = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        with torch.no_grad():
            logits = model(rescale_object(transform(image)[None], 0.5))[0]
        assert dict(top5)["a"] == pytest.approx(logits.softmax(0)[0].item(), abs=1e-6)
    html = views.picture(seen, 0.5)
    assert "WSMS gets 48×48 pixels, its plain backbone 64×64 pixels" in html
    assert images_in(html)[0].shape == (48, 48, 3)


def test_models_by_environment(monkeypatch, saved):
    monkeypatch.setenv("WSMS_MODEL", f"local-dir:{saved}")
    with pytest.raises(UserError, match=f"{saved} does not say"):
        load_pair()
    monkeypatch.delenv("WSMS_MODEL")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (f"local-dir:{saved / 'nowhere'}", "hf-hub:org/name"):
        monkeypatch.setenv("PLAIN_MODEL", name)
        with pytest.raises(UserError, match=r"cannot be loaded .*set WSMS_MODEL and PLAIN_MODEL"):
            load_pair()


def test_plot_that_comes_with_the_model(pair, monkeypatch, tmp_path):
    monkeypatch.setattr(pair, "name", f"local-dir:{tmp_path}")
    assert pair.scale_plot() is None
    (tmp_path / "scale.png").write_bytes(b"a plot")
    assert pair.scale_plot() == b"a plot"

    def download(repo, file, revision):
        if (repo, file) != ("org/name", "scale.png"):
            raise EntryNotFoundError("no such file")
        (tmp_path / "scale.png").write_text(f"of {revision}")
        return str(tmp_path / "scale.png")

    monkeypatch.setattr("demo.networks.hf_hub_download", download)
    for name, plot in (("org/name", b"of None"), ("org/name@v1", b"of v1"), ("org/other", None)):
        monkeypatch.setattr(pair, "name", f"hf-hub:{name}")
        assert pair.scale_plot() == plot


# ---- views


@pytest.fixture
def seen():
    image = torch.zeros(3, 4, 4)
    image[0, 0, 0] = 1  # one red pixel
    maps = torch.zeros(2, 2, 2)
    maps[0, 0, 0], maps[1, 1, 1], maps[1, 0, 0] = -4.0, 2.0, 1.0
    return Seen((image, image), [("cat", 0.75), ("<dog>", 0.25)], [("<dog>", 0.6), ("cat", 0.4)], maps, [1.0, 0.5])


def images_in(html):
    files = re.findall(r'src="data:image/png;base64,([^"]*)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))) for file in files]


def test_picture_is_shown_pixel_by_pixel(seen):
    html = views.picture(seen, 0.5)
    (pixels,) = images_in(html)
    assert pixels.shape == (4, 4, 3) and pixels[0, 0].tolist() == [255, 0, 0] and pixels[1:].max() == 0
    assert "× 0.50" in html and "4×4 pixels" in html


def test_bars(seen):
    html = views.answers(seen, "cat")
    rows = re.findall(r'<li><span>(.*?)</span><span>(.*?)</span><i style="width:(.*?)">', html)
    wsms, plain = rows[:2], rows[2:]
    assert wsms == [("✓ cat", "75 %", "75.0%"), ("&lt;dog&gt;", "25 %", "25.0%")]
    assert plain == [("&lt;dog&gt;", "60 %", "60.0%"), ("✓ cat", "40 %", "40.0%")]
    assert "✓" not in views.answers(seen, None) and "2 resolutions" in html


def test_heat_maps(seen):
    html = views.stages(seen)
    _, first, _, second = images_in(html)  # each over the picture
    assert tuple(first[0, 0]) == (*views.AGAINST, 230) and tuple(second[1, 1]) == (*views.FOR, 115)
    assert second[0, 0, 3] == 58 and second[0, 1, 3] == 0  # opaque by strength, on one scale for all stages
    assert re.findall(r"<b>([+-].*?)</b>stage (\d)", html) == [("-4.0", "1"), ("+3.0", "2")]
    assert "Stage 2 carried" in html and "cat" in html
    assert "stage 1<br>full size" in html and "stage 2<br>1/2 size" in html


def test_stages_of_other_sizes_than_halves(seen):
    html = views.stages(replace(seen, factors=[0.7, 2.0]))
    assert "stage 1<br>0.7 × the size" in html and "stage 2<br>2 × the size" in html


def test_nothing_to_explain(seen):
    _, heat, _, _ = images_in(views.stages(replace(seen, maps=torch.zeros(2, 2, 2))))
    assert heat[..., 3].max() == 0


def test_message_and_plot():
    assert "&lt;b&gt;" in views.message("<b>") and 'role="alert"' in views.message("wrong")
    assert "python -m timm_wsms.object_size" in views.scale(None)
    assert base64.b64encode(b"plot").decode() in views.scale(b"plot")


def test_what_they_know():
    assert "know cat, &lt;dog&gt;, and" in views.known(["cat", "<dog>"])
    assert "1,000 kinds" in views.known([str(number) for number in range(1000)])


# ---- the Space


def test_a_space_installs_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (SPACE / "requirements.txt").read_text().splitlines() if line and line[0] not in "#-"]
    assert set(project["dependencies"]) <= set(lines)
    front = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    (gradio,) = [Requirement(line) for line in project["optional-dependencies"]["demo"]]
    assert front["sdk"] == "gradio" and front["sdk_version"] in gradio.specifier
    assert (SPACE / front["app_file"]).is_file() and len(front["short_description"]) <= 60


WITHOUT_TRAINING = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # importing it is an ImportError
import demo.networks, demo.pictures, demo.views
"""


@pytest.mark.slow
def test_the_demo_needs_no_package_of_the_train_extra():
    names = ["accelerate", "datasets", "jinja2", "jsonargparse", "matplotlib", "sklearn", "scipy", "simplejpeg"]
    paths = os.pathsep.join([str(SPACE), str(ROOT)])
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_TRAINING, *names, "tensorboard", "torchmetrics", "gradio"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert ended.returncode == 0, ended.stderr
