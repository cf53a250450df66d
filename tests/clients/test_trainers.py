"""Training loops of other packages: two steps of SGD give the parameters of a loop written out."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers.clients import CLOSE, build, client, run
from tests.helpers.networks import check_same, images

X, LABELS = images(64, number=8), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
RATE = 0.05


def loader():
    return DataLoader(TensorDataset(X, LABELS), batch_size=4)


def sgd(model):
    return torch.optim.SGD(model.parameters(), RATE, momentum=0.9)


def check(found, form):
    model = build(form)
    optimizer = sgd(model.train())
    for x, labels in loader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    check_same(found.state_dict(), model.state_dict(), **CLOSE)
    assert (run(found.eval(), X) - run(build(form), X)).abs().max() > 1e-2


@client("lightning", "`Trainer.fit`")
def test_lightning(form, tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = build(form)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return sgd(self)

        def on_train_start(self):
            self.train()  # it keeps the mode that it finds

    module = Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet)
    trainer.fit(module, loader())
    check(module.model, form)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Module.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    check_same(again.state_dict(), module.state_dict())


@client("pytorch-ignite", "`create_supervised_trainer`, and `Accuracy` of `create_supervised_evaluator`")
def test_ignite(form):
    from ignite.engine import create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy

    model = build(form)
    create_supervised_trainer(model, sgd(model), nn.CrossEntropyLoss()).run(loader(), max_epochs=1)
    check(model, form)
    state = create_supervised_evaluator(model, {"top1": Accuracy()}).run(loader())
    assert state.metrics["top1"] == pytest.approx((run(model, X).argmax(1) == LABELS).float().mean().item())


@client("skorch", "`NeuralNetClassifier.fit`, and `predict_proba`")
def test_skorch(form):
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        build(form), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, optimizer__momentum=0.9, lr=RATE,
        max_epochs=1, batch_size=4, train_split=None, verbose=0,
    )  # fmt: skip
    net.fit(X.numpy(), LABELS.numpy())
    check(net.module_, form)
    found = torch.from_numpy(net.predict_proba(X.numpy()))
    torch.testing.assert_close(found, run(net.module_.eval(), X).softmax(1), **CLOSE)


@client("transformers", "`Trainer.train` with a `TimmWrapper`")
def test_transformers_trainer(form, tmp_path):
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, Trainer, TrainingArguments

    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_resnet", num_labels=5))
    model.timm_model = build(form)
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=4, use_cpu=True, report_to=[], max_grad_norm=1e9,
        lr_scheduler_type="constant", save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    data = [{"pixel_values": x, "labels": label} for x, label in zip(X, LABELS, strict=True)]
    Trainer(model, arguments, train_dataset=data, optimizers=(sgd(model), None)).train()
    check(model.timm_model, form)


@client("accelerate", "`prepare`, `backward`, `save_model`, `load_checkpoint_in_model`")
def test_accelerate(form, tmp_path):
    from accelerate import Accelerator, load_checkpoint_in_model

    accelerator = Accelerator(cpu=True)
    model = build(form)
    model, optimizer, batches = accelerator.prepare(model, sgd(model), loader())
    model.train()
    for x, labels in batches:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(x), labels))
        optimizer.step()
    check(accelerator.unwrap_model(model), form)
    accelerator.save_model(model, tmp_path)
    other = build(form, seed=1)
    load_checkpoint_in_model(other, tmp_path)
    check_same(other.state_dict(), accelerator.unwrap_model(model).state_dict())


@client("torchmetrics", "`MulticlassAccuracy` of its logits")
def test_torchmetrics(form):
    from torchmetrics.classification import MulticlassAccuracy

    logits = run(build(form), X)
    found = MulticlassAccuracy(5, average="micro")(logits, LABELS)
    assert found.item() == pytest.approx((logits.argmax(1) == LABELS).float().mean().item())


IN_PLACE = ("timm's residual blocks add in place, which its hooks forbid, in the plain backbone too", RuntimeError)


@client("opacus", "per-sample gradients of a network with group norms", plain=IN_PLACE, concat=IN_PLACE, mean=IN_PLACE)
def test_opacus(form):
    from opacus.grad_sample import GradSampleModule

    model, expected = (build(form, norm_layer="groupnorm1") for _ in range(2))
    for network in (model, expected):
        for module in network.modules():
            if hasattr(module, "inplace"):
                module.inplace = False  # as opacus asks for
    wrapped = GradSampleModule(model.train())
    wrapped(X[:2]).square().sum().backward()
    for number in range(2):
        expected.zero_grad()
        expected(X[number : number + 1]).square().sum().backward()
        found = {name: one.grad_sample[number] for name, one in model.named_parameters()}
        check_same(found, {name: one.grad for name, one in expected.named_parameters()}, rtol=1e-3, atol=1e-4)
