"""A loop of your own on any number of devices, with Hugging Face accelerate.

    python accelerate_loop.py [STEPS]
    torchrun --nproc_per_node 2 accelerate_loop.py [STEPS]    # or: accelerate launch ...

Needs `pip install "gmix[demo]" accelerate`. Some fifteen seconds on one core.

Settings, honestly: digits on photographs, 48 x 48 pixels, 8 images of each kind a step and process,
10 steps unless you ask for more. It shows the calls, not a good model.
"""

import sys

import numpy as np
import segmentation_models_pytorch as smp
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

import gmix
from gmix.demo import compose_scenes, load_sources
from gmix.evaluation import ConfusionMatrix
from gmix.nn.weights import load_encoder_weights

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
CLASSES = 11


def scenes(source, n, seed):
    made = compose_scenes(source, n, size=48, rng=np.random.default_rng(seed))
    images, masks = map(np.stack, zip(*made, strict=True))
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1  # mean 0.5, std 0.5
    return TensorDataset(x, torch.from_numpy(masks).long())


def endless(loader):
    while True:
        yield from loader


accelerator = Accelerator(
    cpu=not torch.cuda.is_available(),  # else processes on a CPU would not know of each other
    # BatchNorm's statistics are each process's own; all other buffers, the memory of labeled images
    # among them, are the same in all: nothing that the first would have to send before every step.
    # With encoder_depth=3 the encoder's last blocks are not used, which torch has to be told; where all
    # are used it warns that there was no need.
    kwargs_handlers=[
        DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    ],
)
set_seed(0)
source, new_source = load_sources()
model = smp.Unet(
    "tu-tf_efficientnet_lite0",
    encoder_weights=None,
    encoder_depth=3,  # small images
    decoder_channels=(96, 64, 48),
    classes=CLASSES,
)
load_encoder_weights(model, "lite0")
net = gmix.GuidedMixNet(model)
method = gmix.methods.GuidedMix(net, mean=0.5, std=0.5)
method.remember(scenes(source, 32, seed=0))  # all labeled images, in every process
optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
unlabeled_images = TensorDataset(scenes(source, 64, seed=1).tensors[0])
# The method itself is wrapped, not the network: gradients are averaged over processes when the
# wrapped module is called, and a method calls its network several times a step.
method, optimizer, labeled, unlabeled, new = accelerator.prepare(
    method,
    optimizer,
    DataLoader(scenes(source, 32, seed=0), batch_size=8, shuffle=True),
    DataLoader(unlabeled_images, batch_size=8, shuffle=True),
    DataLoader(scenes(new_source, 32, seed=2), batch_size=32),
)
labeled, unlabeled = endless(labeled), endless(unlabeled)
set_seed(0, device_specific=True)  # from here on each process draws its own lambdas and boxes

method.train()
for step in range(STEPS):
    (x_l, y_l), (x_u,) = next(labeled), next(unlabeled)
    with accelerator.autocast():
        losses = method(x_l, y_l, x_u, progress=step / STEPS)
    optimizer.zero_grad()
    accelerator.backward(losses["total"])
    accelerator.clip_grad_norm_(method.parameters(), 5.0)
    optimizer.step()
    if step % 5 == 0 or step == STEPS - 1:
        total = accelerator.reduce(losses["total"].detach(), "mean").item()
        accelerator.print(f"step {step:3}  total {total:.3f}")

net.eval()
matrix = ConfusionMatrix(CLASSES)
with torch.inference_mode():
    for x, y in new:  # each process its share, all of them counted once
        matrix.update(*accelerator.gather_for_metrics((net(x).argmax(1), y)))
accelerator.print(
    f"mIoU on {int(matrix.counts.sum()) // 48**2} new scenes, {accelerator.num_processes} "
    f"process(es): {100 * matrix.scores().miou:.1f}"
)
accelerator.end_training()
