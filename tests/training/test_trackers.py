"""Trackers are refused in one line if they cannot be used."""

import accelerate.tracking
import pytest

from timm_wsms.errors import UserError
from timm_wsms.training.trackers import check_trackers


def test_unknown_ones_and_those_without_a_package_are_named(monkeypatch):
    check_trackers([])
    check_trackers(["tensorboard"])
    with pytest.raises(UserError, match=r"no tracker tensorbord; Accelerate has .*tensorboard"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [])
    with pytest.raises(UserError, match=r"tracker tensorboard needs .* pip install tensorboard"):
        check_trackers(["tensorboard"])
