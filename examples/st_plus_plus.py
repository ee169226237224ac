"""ST++, a method of stages: `python st_plus_plus.py [STEPS]`.

Three trainings, each from pretrained weights: with the masks alone; with the most reliable half of the unlabeled images
as well; with all of them. The labels of a stage are those of the network of the stage before. An image is reliable
if networks on the way to the first labeled it as the last did: the mean IoU between their masks and its.

Needs `pip install "gmix[demo]"`. Some twenty seconds on one core.

Settings, honestly: digits on photographs, 5 steps a stage unless you ask for more. The stages are the authors' (Yang et
al., "ST++", CVPR 2022), with three networks on the way as theirs; the strong view has CutMix where theirs has Cutout.
"""

import copy
import sys

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torchvision.tv_tensors import Image, Mask

import gmix
from gmix.data import Sample, TwoStream, eval_transform, train_transform
from gmix.demo import compose_scenes, load_sources
from gmix.evaluation import ConfusionMatrix
from gmix.nn.weights import encoder_stats, load_encoder_weights

CLASSES, ENCODER = 11, "tu-tf_efficientnet_lite0"
MEAN, STD = encoder_stats(ENCODER)


def scenes(source, n, seed):
    made = compose_scenes(source, n, size=56, rng=np.random.default_rng(seed))
    return [
        Sample(Image(torch.from_numpy(image).permute(2, 0, 1)), Mask(torch.from_numpy(mask)))
        for image, mask in made
    ]


def train(labeled, unlabeled, steps, teacher=None):
    """The networks after each third of a training, with the labels of `teacher` if there is one."""
    transform = train_transform(crop=(48, 48), scale=(0.8, 1.2), mean=MEAN, std=STD)
    stream = TwoStream(labeled, unlabeled, 8, 8, transform, transform, seed=0)
    torch.manual_seed(0)
    model = smp.Unet(
        ENCODER,
        encoder_weights=None,
        encoder_depth=3,  # small images
        decoder_channels=(96, 64, 48),
        classes=CLASSES,
    )
    load_encoder_weights(model, "lite0")
    net = gmix.GuidedMixNet(model)
    method = gmix.methods.Supervised(net)
    if teacher is not None:
        fixed = gmix.FixedTeacher(teacher)
        method = gmix.methods.FixMatch(net, threshold=0.0, teacher=fixed, mean=MEAN, std=STD)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    third, found = max(1, steps // 3), []
    for step in range(steps):
        x_l, y_l, x_u, valid = stream[step].to("cpu")
        generator = torch.Generator().manual_seed(step)
        losses = method(x_l, y_l, x_u, valid_unlabeled=valid, generator=generator)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % third == 0 or step == steps - 1:
            found.append(copy.deepcopy(net).eval())
    return found


@torch.inference_mode()
def classes_of(net, image):
    image, _ = eval_transform(MEAN, STD)(image, Mask(torch.zeros(image.shape[1:])))
    return net(image[None].as_subclass(torch.Tensor)).argmax(1)


def reliability(nets, image):
    """How well the masks of earlier networks agree with that of the last: the sum of their mIoU."""
    *earlier, last = (classes_of(net, image) for net in nets)
    total = 0.0
    for mask in earlier:
        matrix = ConfusionMatrix(CLASSES)
        matrix.update(mask, last)
        total += matrix.scores().miou
    return total


def test(net, samples):
    matrix = ConfusionMatrix(CLASSES)
    for image, mask in samples:
        matrix.update(classes_of(net, image), mask[None].long())
    return 100 * matrix.scores().miou


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    source, new_source = load_sources()
    labeled, new = scenes(source, 32, seed=0), scenes(new_source, 32, seed=2)
    unlabeled = [sample.image for sample in scenes(source, 64, seed=1)]

    nets = train(labeled, unlabeled, steps)
    print(f"masks alone: mIoU on new scenes {test(nets[-1], new):.1f}")
    scores = [reliability(nets, image) for image in unlabeled]
    order = sorted(range(len(unlabeled)), key=lambda i: -scores[i])
    reliable = [unlabeled[i] for i in order[: len(order) // 2]]
    half = train(labeled, reliable, steps, teacher=nets[-1])[-1]
    print(f"and the reliable half: mIoU on new scenes {test(half, new):.1f}")
    every = train(labeled, unlabeled, steps, teacher=half)[-1]
    print(f"and all images: mIoU on new scenes {test(every, new):.1f}")
