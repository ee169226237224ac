"""Train, write one ONNX file, and predict from it without torch: `python onnx_inference.py [STEPS]`.

Needs `pip install "gmix[demo,export]"`; where the file is used, `pip install onnxruntime` is enough.
Some twenty seconds on one core.

Settings, honestly: digits on photographs, 48 x 48 pixels, 15 steps unless you ask for more. A model
trained by `gmix train` is exported by `gmix export --model runs/first --out model.onnx`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import segmentation_models_pytorch as smp
import torch

import gmix
from gmix.data import Classes
from gmix.demo import compose_scenes, load_sources
from gmix.demo.scenes import NAMES
from gmix.deploy.export import export_model
from gmix.nn.weights import load_encoder_weights

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 15


def segment(session, image):
    """Any image `(H, W, 3)` in 0..255 to class ids `(H, W)`. Nothing of torch or gmix in here."""
    batch = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None]
    (logits,) = session.run(None, {"image": batch})  # normalising and padding are in the file
    return logits[0].argmax(axis=0)


torch.manual_seed(0)
source, new_source = load_sources()
images, masks = map(
    np.stack,
    zip(*compose_scenes(source, 64, size=48, rng=np.random.default_rng(0)), strict=True),
)
x, y = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(masks).long()
model = smp.Unet(
    "tu-tf_efficientnet_lite0",
    encoder_weights=None,
    encoder_depth=3,  # small images
    decoder_channels=(96, 64, 48),
    classes=len(NAMES),
)
load_encoder_weights(model, "lite0")
net = gmix.GuidedMixNet(model)
method = gmix.methods.Supervised(net)
optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
for _ in range(STEPS):
    chosen = torch.randperm(len(x))[:8]
    loss = method(x[chosen], y[chosen])["total"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

saved = gmix.SavedModel(net.eval(), Classes.of(NAMES), size=None, mean=(0.5,) * 3, std=(0.5,) * 3)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.onnx"
    difference = export_model(saved, path, "onnx")  # compares it with the network, on noise
    print(f"{path.stat().st_size / 1e6:.1f} MB, logits at most {difference:.0e} from torch's")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

facts = session.get_modelmeta().custom_metadata_map
print(facts["output"], json.loads(facts["classes"])[:3], "...")

rng = np.random.default_rng(2)
new = [next(compose_scenes(new_source, 1, size=size, rng=rng)) for size in (40, 48, 61, 100)]
for image, mask in new:
    found = segment(session, image)
    with torch.inference_mode():
        expected = net(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1).argmax(1)[0]
    print(image.shape, f"as torch {100 * (found == expected.numpy()).mean():.1f} %", end="  ")
    print(f"right {100 * (found == mask).mean():.1f} %")
