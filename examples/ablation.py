"""Take the parts of GuidedMix out one by one: `python ablation.py [STEPS]`.

Needs `pip install "gmix[demo]"`. Some twenty seconds on one core.

Settings, honestly: digits on photographs, 48 x 48 pixels, one seed, and 4 steps a row unless you ask
for more. After so few, rows differ by chance, and what slows learning down looks bad. Rows with
seeds and real images are in docs/experiments.md; yours come from
`gmix compare --methods supervised,guidedmix --seeds 3 ...`.
"""

import sys
import time

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch.optim.swa_utils import update_bn

import gmix
from gmix.demo import compose_scenes, load_sources
from gmix.evaluation import ConfusionMatrix
from gmix.methods import GuidedMix, Supervised
from gmix.nn.weights import load_encoder_weights

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 4
CLASSES = 11


def guided(**parts):
    return lambda net: GuidedMix(net, mean=0.5, std=0.5, **parts)


ROWS = {
    "supervised": Supervised,
    "the default": guided(),
    "no reference": guided(reference=None),
    "no teacher": guided(teacher=None),
    "no strong colours": guided(color=None, blur=None),
    "no boxes": guided(cutmix=None),
    "strong view alone": guided(drop=0.0),
    "with mixing": guided(direct=0.5),
    "mixing at random": guided(direct=0.5, selector=gmix.RandomPairSelector()),
    "as printed": guided(variant="paper"),
}


def scenes(source, n, seed):
    made = compose_scenes(source, n, size=48, rng=np.random.default_rng(seed))
    images, masks = map(np.stack, zip(*made, strict=True))
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(masks).long()


source, new_source = load_sources()
(images, masks), (unlabeled, _) = scenes(source, 32, seed=0), scenes(source, 64, seed=1)
new_images, new_masks = scenes(new_source, 32, seed=2)

print(f"{STEPS} steps            mIoU   pixels right   seconds")
for name, make in ROWS.items():
    torch.manual_seed(0)
    model = smp.Unet(
        "tu-tf_efficientnet_lite0",
        encoder_weights=None,
        encoder_depth=3,  # small images
        decoder_channels=(96, 64, 48),
        classes=CLASSES,
    )
    load_encoder_weights(model, "lite0")
    net = gmix.GuidedMixNet(model)
    method = make(net)
    method.remember(list(zip(images, masks, strict=True)))  # only a reference makes use of it
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    order = torch.Generator().manual_seed(0)  # all rows see the same batches
    began = time.perf_counter()
    for step in range(STEPS):
        chosen = torch.randperm(len(images), generator=order)[:4]
        others = torch.randperm(len(unlabeled), generator=order)[:4]
        losses = method(images[chosen], masks[chosen], unlabeled[others], progress=step / STEPS)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    seconds = time.perf_counter() - began
    update_bn(unlabeled.split(32), net)  # its running means lag behind after so few steps
    matrix = ConfusionMatrix(CLASSES)
    with torch.inference_mode():
        matrix.update(net.eval()(new_images).argmax(1), new_masks)
    scores = matrix.scores()
    print(
        f"{name:18} {100 * scores.miou:5.1f}   {100 * scores.pixel_accuracy:12.1f}   {seconds:7.1f}"
    )
