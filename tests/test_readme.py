"""README.md and the other documents: every figure comes from a results file, every command and link leads somewhere."""

import json
import re
import statistics

import pytest
import timm
import torch

import timm_wsms  # noqa: F401
from benchmarks import photographs_tables
from benchmarks.object_size.report_tables import load
from tests.helpers.paths import ROOT
from tests.helpers.snippets import run_snippet
from timm_wsms.evaluation.cost import multiplications

RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md"))
    if path.name != "MODEL_CARD.md"  # a template: its links hold in a checkpoint folder
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECOMMENDED = "mean 1 .5 each, own statistics"
# What is said with these numbers is no result: settings, versions, names, arithmetic that follows from its factors.
NO_RESULTS = ("timm 1.0.31", "Python 3.10", "Apache-2.0", "`[1, 0.5]`", "`[1, 0.5, 0.25]`", "0.25 to 4 times its size")
FIGURE = re.compile(r"\d+\.\d+|\d+(?:\.\d+)? %|× \d|\bp [=<]|± ?\d|\d,\d{3}")


def one_line(text: str) -> str:
    return " ".join(text.split())


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def gains(group: str) -> list[float]:
    seeds = load("unseen_sizes")[RECOMMENDED, group]["seeds"]
    return [seed["against_plain"]["area_difference"] for seed in seeds]


def sizes_statements() -> list[str]:
    """What is said of CIFAR-10 and object size."""
    report = load("unseen_sizes")
    plain, jitter = report["plain", "size 1"], report["plain", "jitter"]
    at_twice = (row["top1"][5]["mean"] for row in (plain, jitter))
    before, after = ((min(found), max(found)) for found in (gains("size 1"), gains("jitter")))
    assert len(gains("size 1")) == len(gains("jitter")) == 3
    return [
        f"by {before[0]:.2f} to {before[1]:.2f} points of area when trained at one size, and by {after[0]:.2f} to "
        f"{after[1]:.2f} with scale jitter, in each of three seeds ({plain['test_images']:,} test images)",
        "(on CIFAR-10, twice the size: {:.1f} % without, {:.1f} % with it)".format(*at_twice),
    ]


def mnist_statement() -> str:
    report = load("mnist_scale")
    rows = [report[key] for key in (("mean 1.4 1 0.7, each", "28"), ("plain", "28"), ("plain", "56"))]
    (ours, plain, larger) = (f"{100 - row['at_one']['mean']:.2f} ± {row['at_one']['std']:.2f}" for row in rows)
    assert {row["n"] for row in rows} == {6}
    model = timm.create_model("wsms_mnist_cnn", num_classes=10, fusion="mean", pyramid=[1.4, 1, 0.7])
    cnn = timm.create_model("mnist_cnn", num_classes=10)
    times = multiplications(model, (1, 28, 28)) / multiplications(cnn, (1, 28, 28))
    assert round(multiplications(cnn, (1, 56, 56)) / multiplications(cnn, (1, 28, 28)), 1) == 4
    return (
        f"averaging over 1.4, 1, 0.7 makes {ours} % errors, the plain CNN {plain} (n = 6), for {times:.2f} times the "
        f"MACs; the plain CNN with four times the MACs, on larger images, makes {larger}."
    )


def papers_form_statement() -> str:
    """It is ahead nowhere else: the table of CIFAR-10 from scratch has it behind or level."""
    rows = {row["form"]: row for row in read("photographs")["screening"] if row["regime"] == "default"}
    ours, low, high = rows["concat"]["against_plain"]["area"]
    mean, _, _ = rows["mean"]["against_plain"]["area"]
    assert low > 0 and mean > ours
    return f"by {ours:.2f} ({low:.2f} to {high:.2f}) points, averaging by {mean:.2f}"


def photographs_statements() -> list[str]:
    report = read("photographs")
    tested = {(row["regime"], row["form"]): row for row in report["test"]}
    imagenette = {(row["regime"], row["form"]): row for row in report["imagenette_test"]}
    alone = "mean at 128, stage 1 alone"
    rival = "one size per batch"

    def said(gain: list[float]) -> str:
        return "{:.2f} ({:.2f} to {:.2f})".format(*gain).replace("-", "−")

    def gains(regime: str, form: str, other: str) -> list[float]:
        gain = tested[regime, form][f"against {other}"]["area"]
        assert (gain[1] > 0) == (regime == "jitter" or (form, other) == ("mean", "plain"))  # else called insignificant
        return gain

    jitter = {form: [said(gains("jitter", form, other)) for other in ("plain", rival)] for form in ("mean", alone)}
    crop = {form: [gains("default", form, other) for other in ("plain", rival)] for form in ("mean", alone)}
    for other in ("plain", rival):
        gain = tested["jitter", alone][f"against {other}"]
        assert gain["large"][0] < 0 < gain["small"][1]
    assert {tested[regime, alone]["arithmetic"] for regime in ("default", "jitter")} == {1.0}
    assert {tuple(tested[regime, form]["folds"]) for regime, form in tested if form in jitter} == {(0, 2, 3, 4)}
    folds = {(row["regime"], row["form"]): row["against plain"] for row in report["folds"] if "against plain" in row}
    validation, of_stage1 = folds["jitter", "mean"]["area"], folds["jitter", "mean at 128"]["stage 1 alone"]
    of_distilled = folds["jitter", "mean at 128, distilled"]["stage 1 alone"]
    assert (len(validation), len(of_stage1), len(of_distilled)) == (5, 5, 5)
    distilled = [said(gains("jitter", "mean at 128, distilled, stage 1 alone", other)) for other in ("plain", rival)]
    runs = {"20 epochs": 1, "default": 3, "jitter": 3}
    assert all(len(imagenette[regime, alone]["folds"]) == n for regime, n in runs.items())
    at_same_cost = [
        " and ".join(said(imagenette[regime, alone]["against plain"][part]) for part in ("area", "size 1"))
        for regime in runs
    ]
    behind = [
        said([-mean, -high, -low])
        for mean, low, high in (
            imagenette[regime, "mean"]["against plain"]["area"] for regime in ("default", "20 epochs")
        )
    ]
    small, *_, large = report["sizes"]
    borders = read("photographs_borders")["trained_with"]
    on = {
        regime: [found["borders"][name]["averaging at 128, stage 1 alone"]["against plain"] for name in BORDERS]
        for regime, found in borders.items()
    }
    assert all(low > 0 for _, low, _ in on["jitter"]) and len(borders["jitter"]["folds"]) == 3
    at_one = report["sizes"].index(1.0)
    lost = imagenette["default", "plain"]["top1"][at_one] - imagenette["jitter", "plain"]["top1"][at_one]
    return [
        f"its object at {small:.2f} to {large:.2f} times its size",
        "with a 95 % interval over the four runs",
        f"averaging gains {jitter['mean'][0]} points of area over the plain network and {jitter['mean'][1]} over one",
        f"at the plain network's cost, {' and '.join(jitter[alone])}, all of it on small objects; with",
        f"[distillation](docs/choosing.md#distillation) {' and '.join(distilled)}. With the crop alone",
        f"averaging gains {said(crop['mean'][0])} over the plain network; stage 1's {crop[alone][0][0]:.2f}, and",
        f"validation images show less: {statistics.mean(validation):.2f} ± {statistics.stdev(validation):.2f} for "
        f"averaging (five folds), {statistics.mean(of_stage1):.2f} ± {statistics.stdev(of_stage1):.2f} for stage 1 "
        f"(distilled {statistics.mean(of_distilled):.2f} ± {statistics.stdev(of_distilled):.2f}).",
        f"in use, gains {at_same_cost[0]} points of area and of top-1 at size 1 after 20 epochs (one run); "
        f"{at_same_cost[1]} after 5 (three runs), with scale jitter {at_same_cost[2]}. Averaging at 112 pixels loses "
        f"{behind[0]} points of area after 5 epochs and {behind[1]} after 20.",
        "{} points on the image's mean color, {} on its reflection, {} on its blurred copy,".format(
            *map(said, on["jitter"])
        ),
        f"on Imagenette, 5 epochs, plain loses {lost:.1f} points at size 1",
    ]


BORDERS = ("mean", "reflect", "blur")


def cascade_statements() -> list[str]:
    found = read("photographs_cascade")["flowers"]["jitter"]["mean"]
    one, area = ({row["allowed"]: row for row in found[what]["cascade"]}["calibrate(2)"] for what in ("size 1", "area"))
    rivals = {name: its[0] for name, its in found["size 1"]["rivals"].items()}
    sides = (112, 96, 80, 64)
    smaller = [rivals[f"plain at {side}"] for side in sides]
    *most, last = (f"{row['accuracy']:.1f} % at {row['cost']:.2f}" for row in smaller)
    assert all(row["accuracy"] < one["accuracy"] for row in smaller)
    gain = "{:.2f} ({:.2f} to {:.2f})".format(*area["against plain"])
    assert area["against plain"][1] > 0
    return [
        f"{one['accuracy']:.1f} % top-1 at {one['cost']:.2f} of the MACs of the plain network, which has "
        f"{rivals['plain']['accuracy']:.1f} %; plain networks trained at 112, 96, 80 and 64 pixels have "
        f"{', '.join(most)} and {last}.",
        f"it gains {gain} points of area over the plain network at {area['cost']:.2f} of its MACs",
    ]


def equal_training_statements() -> list[str]:
    """Averaging and its stage 1 against a plain network that was trained longer."""
    report, alone = read("photographs"), "mean at 128, stage 1 alone"

    def gain(data: str, regime: str, form: str) -> list[float]:
        (longer,) = (row for row in report[data] if (row["regime"], row["form"]) == (regime, "plain longer"))
        mean, low, high = longer[f"against {form}"]["area"]
        return [-mean, -high, -low]

    def said(gains: list[float]) -> str:
        return "{:.2f} ({:.2f} to {:.2f})".format(*gains).replace("-", "−")

    ours = {(form, regime): gain("test", regime, form) for form in ("mean", alone) for regime in ("default", "jitter")}
    theirs = [gain("imagenette_test", regime, alone) for regime in ("default", "jitter", "20 epochs")]
    assert {key for key, (_, low, _) in ours.items() if low > 0} == {("mean", "default")}  # the others: insignificant
    assert theirs[0][2] < 0 and theirs[1][2] < 0 < theirs[2][1]
    lost = [said([-mean, -high, -low]) for mean, low, high in theirs[:2]]
    return [
        "trained 1.2 to 1.25 times as long",
        f"on flowers averaging gains {said(ours['mean', 'default'])} points of area; the gain of stage 1, "
        f"{ours[alone, 'default'][0]:.2f}, and those with jitter, {ours['mean', 'jitter'][0]:.2f} and "
        f"{ours[alone, 'jitter'][0]:.2f}, are not significant.",
        f"stage 1 loses {lost[0]} after 5 epochs, with jitter {lost[1]}, and gains {said(theirs[2])} after 20.",
    ]


def cost_statements() -> list[str]:
    lines = {(line["backbone"], line["batch"], line["mode"]): line["ratios"] for line in read("forward_cost")["lines"]}
    arithmetic = [ratios["wsms_multiplications"] for ratios in lines.values()]
    return [
        f"× {min(arithmetic):.1f} to {max(arithmetic):.1f}",
        f"× {1 + 0.5**2:.2f}",
        f"× {1.4**2 + 1 + 0.7**2:.2f}",
    ]


def backbones_statement() -> str:
    table = json.loads((ROOT / "timm_wsms" / "registry" / "stageable.json").read_text(encoding="utf-8"))
    refused = len(table["not_stageable"])
    return f"All but {refused} of the {len(table['stageable']) + refused - 12:,} architectures of timm {table['timm']}"


def test_every_figure_in_the_readme_comes_from_a_results_file():
    rows = photographs_tables.of_headline(read("photographs")["test"])
    assert len(rows) >= 7
    assert [row for row in rows if row not in README] == []
    text = one_line(BLOCK.sub("", README))
    statements = [
        *rows,
        *sizes_statements(),
        mnist_statement(),
        *photographs_statements(),
        *cascade_statements(),
        *cost_statements(),
    ]
    statements += [*equal_training_statements(), backbones_statement(), papers_form_statement()]
    for statement in map(one_line, statements):
        assert statement in text, statement
        text = text.replace(statement, "")
    for words in NO_RESULTS:
        text = text.replace(words, "")
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)  # code and addresses
    leftover = [text[max(0, found.start() - 40) : found.end() + 20] for found in FIGURE.finditer(text)]
    assert leftover == [], "figures that no results file answers for"


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 130 and not line.startswith("|")] == []


def test_its_code_runs():
    (code,) = (code for language, code in BLOCK.findall(README) if language == "python")
    assert len([line for line in code.splitlines() if line.strip()]) == 9
    small = code.replace("wsmean_resnet50.a1_in1k", "wsmean_test_resnet").replace("pretrained=True", "pretrained=False")
    assert small != code
    names = run_snippet(small)
    assert names["logits"].shape == (2, 4, 10) and names["predictions"].shape == (4,)
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
    stages = names["logits"]
    mean = torch.nn.functional.cross_entropy(stages.mean(0), names["labels"])
    own = torch.nn.functional.cross_entropy(stages.flatten(0, 1), names["labels"].repeat(2))
    torch.testing.assert_close(names["loss"], mean + own)


def test_its_commands_name_what_exists():
    commands = "\n".join(code for language, code in BLOCK.findall(README) if language == "")
    for path in re.findall(r"\b(?:recipes|hub)/[\w/.]+|\b\w+\.py\b", commands):
        assert (ROOT / path).exists() or (ROOT / "hub" / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", commands):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    documents = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {
        name for pair in re.findall(r"`make ([\w-]+)|^make ([\w-]+)", documents, re.MULTILINE) for name in pair if name
    }
    assert {"train", "test", "check"} <= named <= {*targets}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    for link in links:
        path = link.split("#")[0]
        if path and not re.match(r"https?://|mailto:", path):
            assert (document.resolve().parent / path).exists(), f"{document.name}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(document):
    text = document.read_text(encoding="utf-8")
    for path in re.findall(
        r"`((?:benchmarks|tests|timm_wsms|recipes|examples|hub)/[\w/.]+\.(?:py|json|csv|yaml|md))`", text
    ):
        assert (ROOT / path).exists(), f"{document.name}: {path}"
