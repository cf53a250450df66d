"""Publishes a checkpoint folder on the Hugging Face Hub; the same as `python -m timm_wsms.publish`."""

import sys

from timm_wsms import cli_errors
from timm_wsms.hub.publish import main

if __name__ == "__main__":
    sys.exit(cli_errors.run(main, cli_errors.Remedies()))
