"""A model published on the Hub on loopback, for the tests of publishing and downloading."""

from tests.helpers.hub_endpoints import READ, WRITE
from tests.helpers.paths import ROOT

MODEL = ROOT / "hub" / "models" / "wsms_resnet20_cifar10"


REPO = "someone/small"


LOGITS = """
model = timm.create_model("hf-hub:{}", pretrained=True).eval()
with torch.no_grad():
    result = model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).tolist()
"""


def publish(client, *arguments, folder=MODEL, token=WRITE):
    return client.command("publish", folder, "--repo", REPO, *arguments, token=token)


def refused(answer):
    """The one line of a command that refused."""
    code, _, told = answer
    lines = [line for line in told.splitlines() if line.startswith("error")]
    assert code == 2 and len(lines) == 1 and told.splitlines()[-1] == lines[0], told
    assert WRITE not in told and READ not in told
    return lines[0]
