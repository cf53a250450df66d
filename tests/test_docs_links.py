"""What documents and examples point to in this repository is there."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FOLDERS = ("timm_wsms", "docs", "examples", "hub", "benchmarks", "tests", "recipes", ".github")
CARDS = {
    ROOT / "MODEL_CARD.md",
    ROOT / "timm_wsms" / "hub" / "MODEL_CARD.md",
    ROOT / "tests" / "hub" / "card_reviewed.md",
}  # of a model whose pictures lie beside it
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
LINK = re.compile(r"""\]\(([^)\s]+)(?: +"[^"]*")?\)|<(?:img|a)[^>]* (?:src|href)="([^"]+)\"""")
FENCED = re.compile(r"^```.*?^```$", flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Of a Markdown file's headings, as GitHub makes them."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(document: Path) -> list[str]:
    """Links of a document to files or headings that are not there."""
    found = []
    for markdown, html in LINK.findall(FENCED.sub("", document.read_text(encoding="utf-8"))):
        link = markdown or html
        if ":" in link:
            continue  # of the web
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path not in CARDS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_link_leads_somewhere(document):
    assert broken(document) == []


def test_a_link_to_a_file_or_a_heading_that_is_not_there_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# A title: `code`, too\n\n```\n# Other\n```\n")
    links = ["there.md", "there.md#a-title-code-too", "#own", "https://x.org/y", "gone.md", "there.md#other", "#gone"]
    others = '[titled](a.md "title") [![badge](b.png)](c.md) <img width="3" src="d.png">\n\n```\n[code](e.md)\n```\n'
    (tmp_path / "one.md").write_text("# Own\n\n" + "\n".join(f"[link]({link})" for link in links) + others)
    expected = ["gone.md", "there.md#other", "#gone", "a.md", "b.png", "c.md", "d.png"]
    assert broken(tmp_path / "one.md") == expected


@pytest.mark.parametrize("book", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_a_notebook_reads_of_the_repository_is_there(book):
    """Its paths begin in the repository's root; what it writes lies in outputs/."""
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    named = re.findall(r'"(?:local-dir:)?((?:hub|recipes|docs|examples)/[^"{}]*)"', code)
    assert [name for name in named if not (ROOT / name).exists()] == []
    globs = re.findall(r'Path\("([^"]+)"\)\.glob\("([^"]+)"\)', code)
    assert [pair for pair in globs if not any((ROOT / pair[0]).glob(pair[1]))] == []
