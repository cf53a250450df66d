"""Publishes a checkpoint folder on the Hugging Face Hub: checks first, then one commit.

python -m timm_wsms.publish OUT/model --repo owner/name [--private] [--tag v1] [--dry-run] [--register]
"""

import sys

from timm_wsms import cli_errors
from timm_wsms.hub.publish import main

REMEDIES = cli_errors.Remedies(place="set TMPDIR to a folder on another disk")  # it writes only temporary files

if __name__ == "__main__":
    sys.exit(cli_errors.run(main, REMEDIES))
