"""GuidedMix in a plain training loop: `python quickstart.py [STEPS]`.

Settings, honestly: coloured squares on noise instead of photos, random encoder weights instead of
pretrained ones (so nothing is downloaded, and the reference to pretrained features has little to
say), 64 x 64 pixels, and 3 steps unless you ask for more. It shows the loop, not what the method
is worth.
"""

import sys

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, TensorDataset

import gmix

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
COLORS = torch.tensor([[2.0, -1.0, -1.0], [-1.0, -1.0, 2.0]])  # class 1 and class 2


def scenes(n: int, size: int = 64) -> TensorDataset:
    images, masks = torch.randn(n, 3, size, size), torch.zeros(n, size, size, dtype=torch.int64)
    for image, mask in zip(images, masks, strict=True):
        for label, color in enumerate(COLORS, 1):
            top, left = torch.randint(size // 2, (2,)).tolist()
            box = (..., slice(top, top + size // 3), slice(left, left + size // 3))
            image[box] = color[:, None, None] + 0.3 * image[box]
            mask[box] = label
    return TensorDataset(images, masks)


def endless(loader):
    while True:  # not itertools.cycle: that would repeat the first epoch's batches
        yield from loader


torch.manual_seed(0)
net = gmix.GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3))
method = gmix.methods.GuidedMix(net)
optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
labeled = endless(DataLoader(scenes(8), batch_size=4, shuffle=True))
unlabeled = endless(DataLoader(scenes(32), batch_size=4, shuffle=True))

for step in range(STEPS):
    (x_l, y_l), (x_u, _never_used) = next(labeled), next(unlabeled)
    losses = method(x_l, y_l, x_u, progress=step / STEPS)
    optimizer.zero_grad()
    losses["total"].backward()
    optimizer.step()
    print(step, "  ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))

net.eval()
images, masks = scenes(16).tensors
with torch.inference_mode():
    correct = (net(images).argmax(1) == masks).float().mean()
print(f"pixel accuracy on new scenes: {100 * correct:.1f}")
