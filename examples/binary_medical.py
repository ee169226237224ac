"""One class, one grey channel, one sigmoid: `python binary_medical.py [STEPS]`.

Needs `pip install "gmix[demo]"`. Some ten seconds on one core.

Settings, honestly: bright strokes on dark, noisy pictures stand for vessels in scans; 8 of 72 have
masks; 10 steps unless you ask for more. For real scans change `scans`, and let `MEAN` and `STD` be
what you normalise with. From folders: `gmix train --recipe medical --images scans ...`.
"""

import sys

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

import gmix
from gmix.demo import compose_scenes, load_sources
from gmix.nn.weights import load_encoder_weights

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
MEAN, STD = 0.5, 0.5
torch.manual_seed(0)


def scans(source, n, seed):
    """Normalised images `(n, 1, H, W)` and masks `(n, H, W)`: 1 on vessels, 0 elsewhere, 255 between."""
    made = compose_scenes(source, n, size=64, rng=np.random.default_rng(seed))
    images, masks = map(np.stack, zip(*made, strict=True))
    x = torch.from_numpy(images).float().mean(-1) / 255  # grey
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    vessel = torch.from_numpy(masks > 0).float()
    # Nobody agrees on the outermost pixel: what is ignored is not learned and not scored.
    wide = F.max_pool2d(vessel[:, None], 3, stride=1, padding=1)[:, 0]
    return ((x - MEAN) / STD).unsqueeze(1), torch.where(wide > vessel, 255, vessel).long()


source, new_source = load_sources()
images, masks = scans(source, 8, seed=0)
unlabeled, _ = scans(source, 64, seed=1)

model = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, in_channels=1, classes=1)
load_encoder_weights(
    model, "lite0"
)  # for grey, the first weights of red, green and blue are added up
net = gmix.GuidedMixNet(model)
method = gmix.methods.GuidedMix(net, mean=MEAN, std=STD)
method.remember(
    list(zip(images, masks, strict=True))
)  # measures how far the reference can be trusted
optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)

for step in range(STEPS):
    chosen, others = torch.randperm(len(images))[:4], torch.randperm(len(unlabeled))[:4]
    losses = method(images[chosen], masks[chosen], unlabeled[others], progress=step / STEPS)
    optimizer.zero_grad()
    losses["total"].backward()
    optimizer.step()
    if step % 5 == 0 or step == STEPS - 1:
        print(f"step {step:3}  total {losses['total'].item():.3f}")

net.eval()
x, y = scans(new_source, 32, seed=2)
with torch.inference_mode():
    found = net(x).sigmoid()[:, 0] > 0.5
found, true = found & (y != 255), y == 1
dice = 2 * (found & true).sum() / (found.sum() + true.sum())
print(f"Dice on new scans: {100 * dice:.1f}, IoU {100 * dice / (2 - dice):.1f}")
