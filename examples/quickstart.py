"""GuidedMix in a plain training loop: `python quickstart.py [STEPS]`.

Needs `pip install "gmix[demo]"`. Some ten seconds on one core.

Settings, honestly: digits on photographs, 48 x 48 pixels, and 15 steps unless you ask for more. It
shows the calls, not a good model: for what the method is worth see docs/results.md.
"""

import sys

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import gmix
from gmix.demo import compose_scenes, load_sources
from gmix.evaluation import ConfusionMatrix
from gmix.nn.weights import load_encoder_weights

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 15
CLASSES = 11  # background and ten digits
torch.manual_seed(0)


def scenes(source, n, seed):
    """Normalised images `(n, 3, 48, 48)` and masks `(n, 48, 48)`. Put your own data here."""
    made = compose_scenes(source, n, size=48, rng=np.random.default_rng(seed))
    images, masks = map(np.stack, zip(*made, strict=True))
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    return (x - 0.5) / 0.5, torch.from_numpy(masks).long()


def endless(loader):
    while True:  # not itertools.cycle: that would repeat the first epoch's batches
        yield from loader


source, new_source = load_sources()
images, masks = scenes(source, 32, seed=0)
more_images, _ = scenes(source, 64, seed=1)  # their masks are thrown away
labeled = endless(DataLoader(TensorDataset(images, masks), batch_size=8, shuffle=True))
unlabeled = endless(DataLoader(TensorDataset(more_images), batch_size=8, shuffle=True))

# Where a hub can be reached: smp.Unet("resnet34", encoder_weights="imagenet", classes=CLASSES).
model = smp.Unet(
    "tu-tf_efficientnet_lite0",
    encoder_weights=None,
    encoder_depth=3,  # small images
    decoder_channels=(96, 64, 48),
    classes=CLASSES,
)
load_encoder_weights(model, "lite0")  # before the method is made, which keeps a copy

net = gmix.GuidedMixNet(model)
method = gmix.methods.GuidedMix(net, mean=0.5, std=0.5)
method.remember(TensorDataset(images, masks))  # measures how far the reference can be trusted
optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)

for step in range(STEPS):
    (x_l, y_l), (x_u,) = next(labeled), next(unlabeled)
    losses = method(x_l, y_l, x_u, progress=step / STEPS)
    optimizer.zero_grad()
    losses["total"].backward()
    optimizer.step()
    if step % 5 == 0 or step == STEPS - 1:
        print(f"step {step:3}", *(f" {name} {loss.item():.3f}" for name, loss in losses.items()))

# BatchNorm has seen too much of the labeled images: docs/experiments.md.
update_bn(more_images.split(32), net)
net.eval()
x, y = scenes(new_source, 32, seed=2)
matrix = ConfusionMatrix(CLASSES)
with torch.inference_mode():
    matrix.update(net(x).argmax(1), y)
print(f"mIoU on new scenes: {100 * matrix.scores().miou:.1f}")
