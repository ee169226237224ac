"""DINOv2 with a DPT decoder, the strongest start there is here: `python dinov2_dpt.py [STEPS]`.

The weights (88 MB) come from the Hugging Face hub. Where it cannot be reached, its client gives up
after a minute, and they are random; with `HF_HUB_OFFLINE=1` it does not try.

Needs `pip install "gmix[demo]"`. Some fifteen seconds on one core, and the download.

Settings, honestly: digits on photographs, 64 x 64 pixels (16 patches an image), 3 steps unless you
ask for more: it shows how the model is built, not what it can do. For that:
`gmix train --recipe voc_1-8_dinov2_s --data VOC2012 --out runs/dinov2` on a GPU.
"""

import sys

import numpy as np
import segmentation_models_pytorch as smp
import torch

import gmix
from gmix.demo import compose_scenes, load_sources
from gmix.evaluation import ConfusionMatrix
from gmix.nn.weights import encoder_stats

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
CLASSES, SIZE = 11, 64
ENCODER = "tu-vit_small_patch14_dinov2.lvd142m"
torch.manual_seed(0)


def build(weights):
    # SMP's DPT halves and doubles the grid of patches, which patches of 14 pixels do not allow: timm
    # resamples the pretrained weights to 16, and the positions to the size of the images.
    return smp.DPT(
        ENCODER,
        encoder_weights=weights,
        dynamic_img_size=True,
        patch_size=16,
        img_size=SIZE,
        classes=CLASSES,
    )


try:
    model, weights = build("imagenet"), "pretrained"  # SMP's word for timm's weights, here DINOv2's
except Exception as error:  # the hub's client has many ways to say that it is out of reach
    print(f"no weights from the hub ({type(error).__name__})")
    model, weights = build(None), "random"
net = gmix.GuidedMixNet(model)
millions = sum(p.numel() for p in model.encoder.parameters()) / 1e6
print(f"{weights} encoder of {millions:.0f} million weights, images padded to {net.stride}")

mean, std = encoder_stats(ENCODER)


def scenes(source, n, seed):
    made = compose_scenes(source, n, size=SIZE, rng=np.random.default_rng(seed))
    images, masks = map(np.stack, zip(*made, strict=True))
    x = (torch.from_numpy(images) / 255 - torch.tensor(mean)) / torch.tensor(std)
    return x.permute(0, 3, 1, 2), torch.from_numpy(masks).long()


source, new_source = load_sources()
(images, masks), (unlabeled, _) = scenes(source, 16, seed=0), scenes(source, 32, seed=1)
method = gmix.methods.GuidedMix(net, mean=mean, std=std)
method.remember(
    list(zip(images, masks, strict=True))
)  # measures how far the reference can be trusted
encoder = list(net.model.encoder.parameters())
known = {id(p) for p in encoder}
rest = [p for p in method.parameters() if p.requires_grad and id(p) not in known]
optimizer = torch.optim.AdamW(
    [
        {"params": encoder, "lr": 5e-6 if weights == "pretrained" else 2e-4},  # as UniMatch V2 does
        {"params": rest, "lr": 2e-4},
    ],
    weight_decay=0.01,
)

for step in range(STEPS):
    chosen, others = torch.randperm(len(images))[:4], torch.randperm(len(unlabeled))[:4]
    losses = method(images[chosen], masks[chosen], unlabeled[others], progress=step / STEPS)
    optimizer.zero_grad()
    losses["total"].backward()
    optimizer.step()
    print(f"step {step:3}  total {losses['total'].item():.3f}")

x, y = scenes(new_source, 16, seed=2)
matrix = ConfusionMatrix(CLASSES)
with torch.inference_mode():
    matrix.update(net.eval()(x).argmax(1), y)
print(f"mIoU on new scenes: {100 * matrix.scores().miou:.1f}")
