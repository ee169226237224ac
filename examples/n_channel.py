"""Images of more than three channels, with pretrained weights: `python n_channel.py [STEPS]`.

Red, green, blue and near infrared, against red, green and blue alone.

Needs `pip install "gmix[demo]"`. Some fifteen seconds on one core.

Settings, honestly: digits on photographs with an infrared that is made up, and tells even digits
from odd ones almost by itself; 48 x 48 pixels, 10 steps unless you ask for more.
"""

import sys

import numpy as np
import segmentation_models_pytorch as smp
import torch

import gmix
from gmix.demo import compose_scenes, load_sources
from gmix.evaluation import ConfusionMatrix
from gmix.nn.weights import load_encoder_weights

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
CLASSES = 3  # background, even, odd
MEAN, STD = (0.5, 0.5, 0.5, 0.4), (0.5, 0.5, 0.5, 0.3)  # of each channel, for images in 0..1


def scenes(source, n, seed):
    """Normalised images `(n, 4, 48, 48)` and masks `(n, 48, 48)`."""
    rng = np.random.default_rng(seed)
    rgb, digits = map(np.stack, zip(*compose_scenes(source, n, size=48, rng=rng), strict=True))
    masks = np.where(digits == 0, 0, 1 + (digits + 1) % 2)  # value v is the digit v - 1
    infrared = np.array([0.4, 0.9, 0.1])[masks] + rng.normal(0, 0.1, masks.shape)
    x = np.concatenate([rgb / 255, infrared[..., None]], axis=-1).clip(0, 1)
    x = (x - MEAN) / STD
    return torch.from_numpy(x).float().permute(0, 3, 1, 2), torch.from_numpy(masks).long()


source, new_source = load_sources()
images, masks = scenes(source, 32, seed=0)
unlabeled, _ = scenes(source, 64, seed=1)
new_images, new_masks = scenes(new_source, 32, seed=2)

for channels in (3, 4):
    torch.manual_seed(0)
    model = smp.Unet(
        "tu-tf_efficientnet_lite0",
        encoder_weights=None,
        encoder_depth=3,  # small images
        decoder_channels=(96, 64, 48),
        in_channels=channels,
        classes=CLASSES,
    )
    # The weights are those of red, green and blue; infrared starts with red's, and all are scaled by
    # 3 / 4, so that the sum over channels stays what it was. SMP does the same with "imagenet".
    load_encoder_weights(model, "lite0")
    first = next(p for p in model.encoder.parameters() if p.dim() == 4)
    print(f"{channels} channels, first weights {tuple(first.shape)}")
    if channels == 4:
        print("infrared begins as red:", torch.equal(first[:, 3], first[:, 0]))

    net = gmix.GuidedMixNet(model)
    method = gmix.methods.GuidedMix(net, mean=MEAN[:channels], std=STD[:channels])
    method.remember(list(zip(images[:, :channels], masks, strict=True)))
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    for step in range(STEPS):
        chosen, others = torch.randperm(len(images))[:8], torch.randperm(len(unlabeled))[:8]
        x_l, x_u = images[chosen, :channels], unlabeled[others, :channels]
        losses = method(x_l, masks[chosen], x_u, progress=step / STEPS)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()

    matrix = ConfusionMatrix(CLASSES)
    with torch.inference_mode():
        matrix.update(net.eval()(new_images[:, :channels]).argmax(1), new_masks)
    print(f"{channels} channels, mIoU on new scenes: {100 * matrix.scores().miou:.1f}")
