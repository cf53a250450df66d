"""transformers' timm wrapper takes the models, once this package is imported. Another process: it is slow to import."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.paths import ROOT

MODEL = ROOT / "hub" / "models" / "wsms_resnet20_cifar10"
CODE = """
import json, sys
import numpy as np
import timm_wsms
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline
folder = sys.argv[1]
images = load_file(folder + "/test/tensors.safetensors")["input"]
model = AutoModelForImageClassification.from_pretrained(folder).eval()
classify = pipeline("image-classification", model=folder)
answer = classify(Image.fromarray(np.full((32, 32, 3), 90, np.uint8)), top_k=10)
print(json.dumps({"logits": model(images).logits.tolist(), "answer": {one["label"]: one["score"] for one in answer}}))
"""


@pytest.mark.sweep
def test_auto_model_and_pipeline():
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(MODEL)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    recorded = load_file(MODEL / "test" / "tensors.safetensors")
    torch.testing.assert_close(torch.tensor(found["logits"]), recorded["logits"], rtol=1e-4, atol=1e-4)
    labels = json.loads((MODEL / "config.json").read_text())["label_names"]
    assert found["answer"].keys() == set(labels)
    assert sum(found["answer"].values()) == pytest.approx(1, abs=1e-3)
