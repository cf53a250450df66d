"""Folders of which each machine has its own: a checkpoint that another process does not see is no silent new start."""

from types import SimpleNamespace

import pytest

from timm_wsms.errors import UserError
from timm_wsms.training.checkpoint_manager import CheckpointManager


@pytest.mark.parametrize(
    ("mine", "others", "told"),
    [
        ("epoch-0002", "epoch-0002", None),
        (None, "none", None),
        ("epoch-0002", "none", "process 0 sees epoch-0002, process 1 on node2 sees none; give --output a folder"),
        (None, "epoch-0001", "process 0 sees none, process 1 on node2 sees epoch-0001; give --output a folder"),
    ],
)
def test_all_processes_see_the_same_newest_checkpoint(tmp_path, monkeypatch, mine, others, told):
    monkeypatch.setattr("accelerate.utils.gather_object", lambda seen: [*seen, ("process 1 on node2", others)])
    folder = tmp_path / "checkpoints" / mine if mine else None
    if folder:
        folder.mkdir(parents=True)
    manager = CheckpointManager.__new__(CheckpointManager)
    manager._output, manager.accelerator = tmp_path, SimpleNamespace(process_index=0)
    if told is None:
        manager._check_seen_by_all(folder and str(folder))
        return
    with pytest.raises(UserError, match=told):
        manager._check_seen_by_all(folder and str(folder))
