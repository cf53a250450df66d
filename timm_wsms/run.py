"""Runs a script that knows nothing of plugins with this package's models: `python -m timm_wsms.run SCRIPT ARGS…`.

For timm's validate.py, inference.py, benchmark.py, onnx_export.py and the like, which take a model's name:

    python -m timm_wsms.run validate.py --model wsmean_resnet50 --pretrained --data-dir images
"""

import runpy
import sys
from pathlib import Path

import timm_wsms  # registers the names

USAGE = "usage: python -m timm_wsms.run SCRIPT [ARGS ...]"


def main(arguments: list[str]) -> None:
    """Run a script as `python SCRIPT ARGS…` does.

    Args:
        arguments: The script's path, and what it should find in `sys.argv` after its own name.

    Raises:
        UserError: If there is no such script.
    """
    if not arguments:
        raise timm_wsms.UserError(USAGE)
    script = Path(arguments[0])
    if not script.is_file():
        raise timm_wsms.UserError(f"there is no script {script}; check the path ({USAGE})")
    sys.argv = arguments
    sys.path[0] = str(script.resolve().parent)  # where Python looks first for what a script imports
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except timm_wsms.UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
