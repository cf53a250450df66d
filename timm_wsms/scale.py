"""The old name of the command `python -m timm_wsms.object_size`; it will go in a later version."""

import sys

from timm_wsms import cli_errors
from timm_wsms.evaluation.options import REMEDIES
from timm_wsms.object_size import main

if __name__ == "__main__":
    print("timm_wsms.scale is now timm_wsms.object_size; this name will be removed", file=sys.stderr)
    sys.exit(cli_errors.run(main, REMEDIES))
