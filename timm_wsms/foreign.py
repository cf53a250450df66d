"""Text written by others: read without trusting its form, and shown without control characters."""

import json
import re
import textwrap
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any

from timm_wsms.errors import UserError

MOST_NODES = 10_000  # in a YAML file, every alias counted as what it stands for; the longest recipe has a few hundred
DEEPEST, BRACKETS = 50, {"[": 1, "{": 1, "]": -1, "}": -1}
LONGEST = 2**17  # bytes of a YAML file, which Python reads slowly


def printable(text: str) -> str:
    """The text with every character that may affect the rest of a screen written as in Python: `\\x1b`.

    These are control characters, including line breaks, marks that change the direction of writing, and lone
    surrogates, which cannot be written to a file.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else char.encode("unicode_escape").decode()
        for char in text
    )


def clean(tree: Any) -> Any:
    """The same lists and dictionaries, with all text in them printable."""
    if isinstance(tree, dict):
        return {clean(key): clean(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [clean(value) for value in tree]
    return printable(tree) if isinstance(tree, str) else tree


def markdown(text: str) -> str:
    """The text escaped for Markdown, so that nothing in it is HTML, a link, picture, table cell, or heading."""
    return re.sub(r"[\\`*<\[\]|]|^[#>+-]", r"\\\g<0>", printable(text))


def code(text: str) -> str:
    """The text as code in Markdown, between more backticks than it holds; also in a table, which ends at a `|`."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    blank = " " if len(fence) > 1 else ""
    return f"{fence}{blank}{printable(text)}{blank}{fence}".replace("|", "\\|")


@contextmanager
def understood(what: object, remedy: str = "copy or download it again") -> Iterator[None]:
    """Within it, a file's content is read and parsed, and nothing else: what goes wrong is the file's fault.

    A missing file and a lack of memory are reported as they are.

    Args:
        what: The file.
        remedy: What can be done.

    Raises:
        UserError: In place of any other exception; one line.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        why = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" …")
        message = f"{what} does not hold what it should ({why}); {remedy}"
        raise UserError(printable(message)) from error


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: It is not JSON, or nested too deeply.
        OSError: It cannot be read.
    """
    with understood(path):
        return json.loads(path.read_text(encoding="utf-8"))


def read_last_line(path: Path) -> Any:
    """What the last line of a file of JSON lines holds; raises as `read_json`."""
    with understood(path):
        return json.loads(path.read_text(encoding="utf-8").splitlines()[-1])


def read_yaml(path: Path, remedy: str = "copy or download it again") -> Any:
    """What a YAML file holds: plain values, lists and dictionaries.

    Raises:
        UserError: It is not YAML, has tags other than YAML's own, is nested too deeply, or grows too large.
        OSError: It cannot be read.
    """
    import yaml

    with understood(path, remedy):
        if path.stat().st_size > LONGEST:
            raise ValueError(f"it is longer than {LONGEST} bytes")
        text = path.read_text(encoding="utf-8")
        if max(accumulate(map(BRACKETS.get, text, repeat(0))), default=0) > DEEPEST:
            raise ValueError("its brackets are nested too deeply")  # PyYAML takes seconds to find that out
        if re.search(rf"(?:[-?:] +){{{DEEPEST}}}|^ {{{4 * DEEPEST}}}", text, re.MULTILINE):
            raise ValueError("its blocks are nested too deeply")
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _nodes(node, {}) > MOST_NODES:
                raise ValueError("its aliases stand for too much")
            return loader.construct_document(node)
        finally:
            loader.dispose()


def _nodes(node: Any, known: dict[int, int]) -> int:
    """How many nodes a YAML node stands for; one that contains itself stands for too many."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1
        pairs = node.value if isinstance(node.value, list) else []
        inner = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_nodes(part, known) for part in inner)
    return known[id(node)]
