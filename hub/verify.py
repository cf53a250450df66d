"""Verifies a published model or a checkpoint folder; the same as `python -m timm_wsms.hub.verify`."""

import sys

from timm_wsms import cli_errors
from timm_wsms.hub.verify import main

if __name__ == "__main__":
    sys.exit(cli_errors.run(main, cli_errors.Remedies()))
