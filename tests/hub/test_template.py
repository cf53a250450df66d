"""The card's template is in the package, and at the top of the repository where its users look for it."""

from tests.helpers.paths import ROOT
from timm_wsms.hub import card


def test_the_template_is_one_file():
    assert (ROOT / "MODEL_CARD.md").resolve() == card.TEMPLATE.resolve()
