"""What a dry run foretells follows from its measurements."""

import pytest
import timm
import torch
from accelerate import Accelerator

import timm_wsms  # noqa: F401  registers the names
import train_accelerate
from tests.helpers.streams import write_shards
from timm_wsms.data import DataSettings, data_config, load_data, make_loader
from timm_wsms.training import dry_run
from timm_wsms.training.builders import build_optimizer
from timm_wsms.training.run import Run
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import Settings
from timm_wsms.training.trainer import Trainer


@pytest.mark.parametrize("streamed", [False, True])
def test_hours_are_those_of_all_steps_and_evaluations(monkeypatch, tmp_path, streamed):
    settings = Settings("resnet20_cifar", epochs=6, eval_every=4, ema_decay=0.9, batch_size=8)
    network = timm.create_model("resnet20_cifar", num_classes=10)
    data = DataSettings(train_limit=40, test_limit=21)
    if streamed:
        source = write_shards(tmp_path / "shards", train=(20, 20), test=(11, 10))
        data = DataSettings(str(source), streaming=True, workers=0)
    train, test = load_data(data, seed=0)
    config = data_config(network, data)
    loaders = [make_loader(split, data, config, batch_size=8, train=split is train, seed=0) for split in (train, test)]
    optimizer = build_optimizer(network, settings)
    schedule = Schedule(optimizer, settings, 5)
    accelerator = Accelerator()
    trainer = Trainer(Run(settings, network, optimizer, schedule, None, config, *loaders), accelerator)
    monkeypatch.setattr(dry_run, "_evaluation_batch", lambda *_: 100.0)
    monkeypatch.setattr(dry_run, "_peak_memory", lambda _: 3 * 2**29)
    found = dry_run.dry_run(trainer, train_accelerate.train_step)
    assert 0 < found.step < 100
    # 6 epochs of 5 steps; after the 4th and the last 3 batches are evaluated with both networks
    assert torch.isclose(torch.tensor(found.seconds), torch.tensor(30 * found.step + 2 * 3 * 2 * 100.0))
    assert str(found).startswith("peak memory 1.50 GiB per process since its start; about 0.3")
    assert ("not counting the time to fill the shuffle buffer" in str(found)) == streamed
