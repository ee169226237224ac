"""A method of your own, with a mixer and a selector of your own: `python own_method.py [STEPS]`.

Instead of blending two images, a box of the labeled partner, with its true mask, covers a part of
the unlabeled image; the rest is learned from the network's own confident predictions. The partner
is drawn from the nearest few.

Needs `pip install "gmix[demo]"`. Some ten seconds on one core.

Settings, honestly: digits on photographs, 48 x 48 pixels, 10 steps unless you ask for more, and a
method made to be short, not good. Other parts: docs/extending.md.
"""

import sys

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import nn

import gmix
from gmix.demo import compose_scenes, load_sources
from gmix.evaluation import eval_mode
from gmix.nn.weights import load_encoder_weights

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
CLASSES = 11


class OneOfTheNearest(nn.Module):
    """Embeddings `(N, D)` and `(M, D)` to indices `(N,)`: any of the `k` nearest."""

    def __init__(self, k=3):
        super().__init__()
        self.k = k

    def forward(self, query, key, exclude_self=False, generator=None):
        near = torch.cdist(query, key).topk(self.k, largest=False).indices
        pick = torch.randint(self.k, (len(query), 1), generator=generator, device=query.device)
        return near.gather(1, pick)[:, 0]


class BoxMixer(nn.Module):
    """Where the partner is to cover an image: bool `(N, H, W)`, one box each."""

    def __init__(self):
        super().__init__()
        self.cutmix = gmix.CutMix(p=1.0, area=(0.1, 0.4))

    def forward(self, x, generator=None):
        return self.cutmix(x, generator).box


class BoxSelfTraining(gmix.methods.Method):
    """`losses` is all that a method has to write."""

    threshold = 0.8

    def __init__(self, net, selector, mixer):
        super().__init__(net)
        self.selector = selector
        self.mixer = mixer

    def losses(self, step):
        x_l, y_l, x_u = step.x_labeled, step.y_labeled, step.x_unlabeled
        with torch.no_grad(), eval_mode(self.net):
            pseudo = gmix.PseudoMask.of(self.net(x_u), step.valid)
            partner = self.selector(
                self.net.embed(x_u), self.net.embed(x_l), generator=step.generator
            )
        target = pseudo.labels.masked_fill(pseudo.confidence < self.threshold, self.ignore_index)
        box = self.mixer(x_u, step.generator)
        mixed = torch.where(box[:, None], x_l[partner], x_u)
        target = torch.where(box, y_l[partner], target)

        logits_l, logits_u = self.net(torch.cat([x_l, mixed])).split([len(x_l), len(x_u)])
        supervised = self.supervised(logits_l, y_l)
        unsupervised = gmix.functional.cross_entropy(logits_u, target)
        total = supervised + step.progress * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


def scenes(source, n, seed):
    made = compose_scenes(source, n, size=48, rng=np.random.default_rng(seed))
    images, masks = map(np.stack, zip(*made, strict=True))
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(masks).long()


source, _ = load_sources()
(images, masks), (unlabeled, _) = scenes(source, 32, seed=0), scenes(source, 64, seed=1)


def train(make_method):
    torch.manual_seed(0)
    model = smp.Unet(
        "tu-tf_efficientnet_lite0",
        encoder_weights=None,
        encoder_depth=3,  # small images
        decoder_channels=(96, 64, 48),
        classes=CLASSES,
    )
    load_encoder_weights(model, "lite0")
    method = make_method(gmix.GuidedMixNet(model))
    method.remember(list(zip(images, masks, strict=True)))  # GuidedMix's reference makes use of it
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    for step in range(STEPS):
        chosen, others = torch.randperm(len(images))[:8], torch.randperm(len(unlabeled))[:8]
        losses = method(images[chosen], masks[chosen], unlabeled[others], progress=step / STEPS)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        if step % 5 == 0 or step == STEPS - 1:
            print(f"step {step:3}", *(f" {name} {x.item():.3f}" for name, x in losses.items()))


print("a method of one's own")
train(lambda net: BoxSelfTraining(net, selector=OneOfTheNearest(), mixer=BoxMixer()))
print("GuidedMix with that selector")  # which chooses what is mixed; the other parts as they are
parts = {"selector": OneOfTheNearest(), "direct": 0.5}
train(lambda net: gmix.methods.GuidedMix(net, mean=0.5, std=0.5, **parts))
