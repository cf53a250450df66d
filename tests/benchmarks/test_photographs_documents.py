"""README.md and docs/ against the results files of photographs: every table, and every interval in the prose."""

import json
import re

import pytest

from benchmarks import photographs_documents as documents

FILES = (
    "photographs",
    "photographs_cascade",
    "photographs_borders",
    "photographs_resized_batches",
    "photographs_calibration",
)
INTERVAL = re.compile(r"[+−]?\d+\.\d\d [\[(][+−]?\d+\.\d\d(?:,| to) [+−]?\d+\.\d\d[\])]")


@pytest.mark.parametrize("path", documents.DOCUMENTS, ids=lambda path: path.name)
def test_all_tables_are_those_of_the_results_files(path):
    text = path.read_text(encoding="utf-8")
    assert documents.filled(text, documents.all_tables()) == text, "run python -m benchmarks.photographs_documents"
    assert all(len(body.splitlines()) >= 3 for _, _, body in documents.TABLE.findall(text))


def test_a_table_of_another_name_is_an_error():
    text = "<!-- table: of something -->\n\n| a |\n| --- |\n| 1 |\n"
    assert documents.filled(text, {"of something": ["| 2 |", "| 3 |"]}) == text.replace("| 1 |", "| 2 |\n| 3 |")
    with pytest.raises(KeyError, match="of something"):
        documents.filled(text, {})
    with pytest.raises(ValueError, match="has to follow each"):
        documents.filled(text.replace("-->\n\n", "-->\n\n\n"), {"of something": []})


def triples(found):
    """Every mean with its interval in a results file."""
    if isinstance(found, dict):
        for value in found.values():
            yield from triples(value)
    elif isinstance(found, list):
        if len(found) == 3 and all(isinstance(value, float) for value in found) and found[1] <= found[0] <= found[2]:
            yield tuple(found)
        for value in found:
            yield from triples(value)


@pytest.mark.parametrize("path", documents.DOCUMENTS, ids=lambda path: path.name)
def test_every_interval_in_the_prose_is_in_a_results_file(path):
    """In either direction: by how much one is ahead, or the other behind."""
    text = path.read_text(encoding="utf-8")
    if path.name == "results.md":  # the other sections are of other files
        text = text[text.index("5. Fine-tuned on photographs") : text.index("\n## CIFAR-10 from scratch")]
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    known = set()
    for name in FILES:
        for mean, low, high in triples(json.loads((documents.RESULTS / f"{name}.json").read_text(encoding="utf-8"))):
            known |= {(mean, low, high), (-mean, -high, -low)}
    quoted = INTERVAL.findall(" ".join(prose.split()))
    assert quoted or path.name == "cascade.md"
    numbers = [tuple(float(x.replace("−", "-")) for x in re.findall(r"[+−]?\d+\.\d\d", one)) for one in quoted]
    assert [said for said, one in zip(quoted, numbers, strict=True) if one not in known] == []
