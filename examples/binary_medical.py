"""One class, one grey channel, one sigmoid: `python binary_medical.py [STEPS]`.

Settings, honestly: bright discs on noise stand for scans; 6 of 30 have masks; random weights, and
5 steps unless you ask for more. For real scans change `scans`, and let `MEAN` and `STD` be what
you normalise with.
"""

import sys

import segmentation_models_pytorch as smp
import torch

import gmix

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
SIZE, MEAN, STD = 64, 0.3, 0.2
torch.manual_seed(0)


def scans(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images `(n, 1, H, W)` and masks `(n, H, W)`: 1 on the disc, 0 elsewhere."""
    grid = torch.arange(SIZE)
    row, col = torch.randint(16, SIZE - 16, (2, n, 1, 1))
    radius = torch.randint(6, 15, (n, 1, 1))
    masks = (grid.view(-1, 1) - row) ** 2 + (grid - col) ** 2 < radius**2
    images = (0.25 + 0.3 * masks + 0.15 * torch.randn(n, SIZE, SIZE)).clamp(0, 1)
    return ((images - MEAN) / STD).unsqueeze(1), masks.long()


net = gmix.GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1))
method = gmix.methods.GuidedMix(net, mean=MEAN, std=STD)
optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
images, masks = scans(6)
unlabeled, _ = scans(24)

for step in range(STEPS):
    labeled_pick, unlabeled_pick = torch.randperm(6)[:4], torch.randperm(24)[:4]
    losses = method(
        images[labeled_pick],
        masks[labeled_pick],  # 0, 1, or 255 for pixels nobody is sure about
        unlabeled[unlabeled_pick],
        progress=step / STEPS,
    )
    optimizer.zero_grad()
    losses["total"].backward()
    optimizer.step()
    print(f"step {step}  total {losses['total'].item():.3f}")

net.eval()
x, y = scans(16)
with torch.inference_mode():
    found, true = net(x).sigmoid()[:, 0] > 0.5, y == 1
iou = (found & true).sum() / (found | true).sum()
print(f"IoU of the foreground on new scans: {100 * iou:.1f}")
