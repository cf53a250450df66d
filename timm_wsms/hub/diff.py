"""What publishing would change in a repo, file by file and, in short texts, line by line."""

from __future__ import annotations

import difflib
import hashlib
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from timm_wsms.foreign import printable
from timm_wsms.hub.client import Remote
from timm_wsms.hub.download import file_sum
from timm_wsms.hub.verify_folder import FILES

TEXTS = (".json", ".yaml", ".md")
MARKS = {True: "~", False: "+"}  # already there?


def changed(files: dict[str, Path | bytes], there: Remote) -> list[str]:
    """The files that are new or changed, and those of an earlier version that would be left over.

    Files that somebody else put into the repo are not touched.
    """
    new = [name for name, content in files.items() if there.sums.get(name) != _sum_like(content, there.sums.get(name))]
    return new + [name for name in there.sums if name in FILES and name not in files]


def describe(api: HfApi, repo: str, files: dict[str, Path | bytes], there: Remote | None) -> str:
    """A line for each file (+ new, ~ changed, - removed, = as it is, blank: not ours), then the texts' differences."""
    there_is = there or Remote("", {}, {}, False)
    of_interest = changed(files, there_is)
    lines = [f"{repo}, {there.commit[:7] if there else 'a new repo'}: {sum(map(_size, files.values())):,} bytes in all"]
    for name in sorted({*files, *there_is.sums}):
        mark = MARKS[name in there_is.sums] if name in files else "-"
        if name not in of_interest:
            mark = "=" if name in files else " "
        lines.append(f"{mark} {name}  {_size(files[name]) if name in files else there_is.sizes[name]:,} bytes")
    with tempfile.TemporaryDirectory() as cache:
        for name in of_interest:
            if name in files and name in there_is.sums and name.endswith(TEXTS):
                old = Path(api.hf_hub_download(repo, name, revision=there_is.commit, cache_dir=cache))
                before, now = (_text(content).splitlines() for content in (old, files[name]))
                lines += difflib.unified_diff(before, now, f"{repo}/{name}", name, lineterm="", n=1)
    return "\n".join(map(printable, lines))  # the repo's files may be anybody's


def _sum_like(content: Path | bytes, other: str | None) -> str:
    """A file's checksum of the same kind as the other one."""
    kind = "sha256" if other is not None and len(other) == 64 else "git"
    if isinstance(content, Path):
        return file_sum(content, kind)
    made = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % len(content))
    made.update(content)
    return made.hexdigest()


def _size(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _text(content: Path | bytes) -> str:
    """A file's text; what is not UTF-8 is shown as �."""
    return (content.read_bytes() if isinstance(content, Path) else content).decode(errors="replace")
