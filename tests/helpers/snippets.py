"""Lines of Python that a document or a command gives its readers, run as a file is."""

import runpy
import tempfile
from pathlib import Path
from typing import Any


def run_snippet(code: str, **names: Any) -> dict[str, Any]:
    """Run lines of Python.

    Args:
        code: The lines.
        names: What is defined before the first line.

    Returns:
        Every name that is defined after the last one.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "snippet.py"
        file.write_text(code, encoding="utf-8")
        return runpy.run_path(str(file), init_globals=names)
