"""All that `gmix train` does to train GuidedMix, without the trainer: `python thin_trainer.py [STEPS]`.

Plain torch and parts of gmix: scenes from folders, crops and colours, the method, AdamW with the poly schedule, and a
network finished with unlabeled images. What `gmix train` has beside it: checkpoints, resuming, several processes.

Needs `pip install "gmix[demo]"`. Some thirty seconds on one core, most of them for the scenes.

Settings, honestly: those of `gmix demo`, but 5 steps unless you ask for more. With 300 it is the demo's GuidedMix.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import segmentation_models_pytorch as smp
import torch
from torch.optim.swa_utils import update_bn

import gmix
from gmix import data
from gmix.demo.scenes import Folders, write_scenes
from gmix.evaluation import evaluate
from gmix.nn.weights import encoder_stats, load_encoder_weights
from gmix.training.decide import decide_for_miou, unlabeled_pixels

ENCODER, SIZE = "tu-tf_efficientnet_lite0", (48, 48)
NORM_BATCHES, DECIDING_BATCHES = 40, 10  # of unlabeled images, after the last step
LAYOUT = torch.channels_last
MEAN, STD = encoder_stats(ENCODER)


def train(folders, steps, seed=0):
    """The network GuidedMix trains on the scenes of these folders."""
    classes = data.Classes.of(str(folders.classes))
    images = data.find_images(folders.images)
    masks = data.pair_masks(images, folders.masks)
    labeled = data.SegmentationDataset(images, masks, classes, SIZE)
    unlabeled = data.ImageDataset(data.find_images(folders.unlabeled), SIZE)
    colors = {"jitter": data.ColorJitter(0.3, 0.3, 0.3, 0.05), "mean": MEAN, "std": STD}
    augment = data.train_transform(crop=SIZE, scale=(0.9, 1.1), rotate=5.0, **colors)
    stream = data.TwoStream(labeled, unlabeled, 16, 16, augment, augment, seed)

    torch.manual_seed(seed)
    model = smp.Unet(
        ENCODER,
        encoder_weights=None,
        encoder_depth=3,  # deeper maps would show a whole digit as one or two pixels
        decoder_channels=[96, 64, 48],
        classes=classes.channels,
    )
    load_encoder_weights(model, "lite0")
    net = gmix.GuidedMixNet(model)
    parts = {"criterion": {"threshold": 0.9}, "paste": {}, "reference": {"shorter_side": SIZE[0]}}
    method = gmix.methods.GuidedMix(net, mean=MEAN, std=STD, **parts).to(memory_format=LAYOUT)
    method.remember([data.eval_transform(MEAN, STD)(*sample) for sample in labeled])
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 - t / steps) ** 0.9)

    for step in range(steps):
        x_l, y_l, x_u, valid = stream[step].to("cpu", LAYOUT)
        torch.manual_seed(step)  # of dropout; the method draws from a generator of its own
        draws = {"generator": torch.Generator().manual_seed(step), "valid_unlabeled": valid}
        losses = method(x_l, y_l, x_u, progress=step / steps, **draws)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:3}", *(f" {name} {loss:.3f}" for name, loss in losses.items()))

    # BatchNorm has seen the labeled images too often: unlabeled ones, as they are and as students see them.
    generator = torch.Generator().manual_seed(0)
    color, cutmix = gmix.StrongColor(mean=MEAN, std=STD), gmix.CutMix()
    views = []
    for step in range(NORM_BATCHES):
        x = stream[step].x_unlabeled
        strong = color(x, generator)
        views.append(torch.cat([x, cutmix(strong, generator).apply(strong)]))
    torch.manual_seed(0)
    update_bn(views, net)
    # And its decisions are to be best for the mIoU, not for the share of right pixels.
    batches = (stream[step] for step in range(DECIDING_BATCHES))
    return decide_for_miou(net.eval(), unlabeled_pixels(net, batches, seed)), classes


if __name__ == "__main__":
    with TemporaryDirectory() as home:
        folders = Folders.inside(Path(home))
        write_scenes(folders, labeled=48, unlabeled=400, val=80, size=96, seed=0)
        net, classes = train(folders, steps=int(sys.argv[1]) if len(sys.argv) > 1 else 5)
        images = data.find_images(folders.val_images)
        scenes = data.SegmentationDataset(
            images, data.pair_masks(images, folders.val_masks), classes
        )
        scores = evaluate(net, scenes, classes, transform=data.eval_transform(MEAN, STD), size=SIZE)
    print(f"mIoU on new scenes: {100 * scores.miou:.1f}")
