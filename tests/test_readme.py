"""README.md and the other documents: every figure comes from a results file, every command and link leads somewhere."""

import itertools
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
    report, cascade = read("photographs"), read("photographs_cascade")["flowers"]["default"]
    tested = {(row["regime"], row["form"]): row for row in report["test"]}

    def ahead(regime: str, form: str, other: str) -> str:
        return "{:.2f} ({:.2f} to {:.2f})".format(*tested[regime, form][f"against {other}"]["area"])

    default, jitter = tested["default", "mean"], tested["jitter", "mean"]
    assert default["folds"] == jitter["folds"] == [0, 2, 3, 4]
    rivals = cascade["size 1"]["rivals"]
    plain, at64 = rivals["plain"][0], rivals["plain at 64"][0]
    one = {row["allowed"]: row for row in cascade["size 1"]["cascade"]}
    alone = "mean at 128, stage 1 alone"
    assert (
        tested["jitter", alone]["against plain"]["large"][0] < 0 < tested["jitter", alone]["against plain"]["small"][1]
    )
    assert {tested[regime, alone]["arithmetic"] for regime in ("default", "jitter")} == {1.0}
    imagenette = {row["regime"]: row["against plain"] for row in report["imagenette_test"] if row["form"] == "mean"}
    behind = [
        "{:.2f} ({:.2f} to {:.2f})".format(*(-x for x in (mean, high, low)))
        for mean, low, high in (imagenette[regime]["area"] for regime in ("default", "20 epochs"))
    ]
    (alone20,) = (row for row in report["imagenette_test"] if (row["regime"], row["form"]) == ("20 epochs", alone))
    (alone_jitter,) = (r for r in report["imagenette_test"] if (r["regime"], r["form"]) == ("jitter", alone))
    (alone5,) = (row for row in report["imagenette_test"] if (row["regime"], row["form"]) == ("default", alone))
    assert alone20["arithmetic"] == alone5["arithmetic"] == 1 and alone5["folds"] == [0, 1, 2] == alone_jitter["folds"]
    at_same_cost = [
        "{:.2f} ({:.2f} to {:.2f}) and {:.2f} ({:.2f} to {:.2f})".format(
            *row["against plain"]["area"], *row["against plain"]["size 1"]
        )
        for row in (alone20, alone5, alone_jitter)
    ]
    folds = {(row["regime"], row["form"]): row["against plain"] for row in report["folds"] if "against plain" in row}
    validation, of_stage1 = folds["jitter", "mean"]["area"], folds["jitter", "mean at 128"]["stage 1 alone"]
    assert (len(validation), len(of_stage1)) == (5, 4)
    small, *_, large = report["sizes"]
    borders = read("photographs_borders")["trained_with"]
    on = {
        (regime, name, row): borders[regime]["borders"][name][row]["against plain"]
        for regime in borders
        for name in ("mean", "reflect", "blur")
        for row in ("averaging", "averaging at 128, stage 1 alone")
    }
    assert on["default", "blur", "averaging"][1] < 0 < on["default", "blur", "averaging"][2]

    def on_border(regime: str, name: str) -> str:
        return "{:.2f} ({:.2f} to {:.2f})".format(*on[regime, name, "averaging at 128, stage 1 alone"])

    with_jitter = [on["jitter", name, "averaging at 128, stage 1 alone"] for name in ("mean", "reflect", "blur")]
    assert all(low > 0 for _, low, _ in with_jitter)

    return [
        f"with its object at {small:.2f} to {large:.2f} times its size",
        "with a 95 % bootstrap interval over images",
        f"{on_border('default', 'mean')} points on the image's mean color, {on_border('default', 'reflect')} on its "
        f"reflection, {on_border('default', 'blur')} on its blurred copy; with jitter "
        "{:.2f}, {:.2f} and {:.2f}.".format(*(gain for gain, _, _ in with_jitter)),
        f"averaging gains {ahead('default', 'mean', 'plain')} and {ahead('default', 'mean', 'one size per batch')}; "
        f"with scale jitter, {ahead('jitter', 'mean', 'plain')} and {ahead('jitter', 'mean', 'one size per batch')}.",
        f"gains {ahead('default', alone, 'plain')} and {ahead('default', alone, 'one size per batch')}; with jitter, "
        f"{ahead('jitter', alone, 'plain')} and {ahead('jitter', alone, 'one size per batch')}, all of it on small",
        f"validation images show less: {statistics.mean(validation):.2f} ± {statistics.stdev(validation):.2f} for "
        f"averaging (five folds), {statistics.mean(of_stage1):.2f} ± {statistics.stdev(of_stage1):.2f} for stage 1.",
        f"at equal cost, gains {at_same_cost[0]} after 20 epochs (one run); {at_same_cost[1]} after 5 (three runs), with "
        f"scale jitter {at_same_cost[2]}. Averaging at 112 pixels loses {behind[0]} points of area after 5 epochs and "
        f"{behind[1]} after 20.",
        f"{one[1.0]['accuracy']:.1f} % at {one[1.0]['cost']:.2f} of the plain network's MACs and "
        f"{one[2.0]['accuracy']:.1f} % at {one[2.0]['cost']:.2f}. Plain networks have {plain['accuracy']:.1f} % at 1 "
        f"and, trained at 64 pixels, {at64['accuracy']:.1f} % at {at64['cost']:.2f}",
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
    theirs = {regime: gain("imagenette_test", regime, alone) for regime in ("default", "jitter")}
    assert ours["mean", "jitter"][1] > 0 and ours[alone, "jitter"][1] < 0 < ours[alone, "jitter"][2]
    lost = [said([-mean, -high, -low]) for mean, low, high in theirs.values()]
    return [
        "trained 1.2 to 1.25 times as long",
        f"averaging gains {said(ours['mean', 'default'])} points of area, with jitter {said(ours['mean', 'jitter'])}; "
        f"stage 1 {said(ours[alone, 'default'])} and {said(ours[alone, 'jitter'])}, which is not significant.",
        f"stage 1 loses {lost[0]} after 5 epochs, with jitter {lost[1]}",
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
    statements = [*rows, *sizes_statements(), mnist_statement(), *photographs_statements(), *cost_statements()]
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
