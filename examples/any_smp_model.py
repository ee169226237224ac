"""GuidedMix around different SMP models, for images of any size: `python any_smp_model.py`.

Needs `pip install gmix`. Some ten seconds on one core.

Settings, honestly: random images of 70 x 90 pixels, random weights, one training step each.
"""

import segmentation_models_pytorch as smp
import torch

import gmix

torch.manual_seed(0)
CLASSES = 6
MODELS = {
    "U-Net, ResNet": smp.Unet("resnet18", encoder_weights=None, classes=CLASSES),
    "FPN, MobileNet": smp.FPN("mobilenet_v2", encoder_weights=None, classes=CLASSES),
    "DeepLabV3+, timm": smp.DeepLabV3Plus(
        "tu-tf_efficientnet_lite0", encoder_weights=None, classes=CLASSES
    ),
    "SegFormer": smp.Segformer("mit_b0", encoder_weights=None, classes=CLASSES),
    "the paper's network": gmix.GuidedMixUnet("resnet18", encoder_weights=None, classes=CLASSES),
}
x_l, y_l = torch.randn(2, 3, 70, 90), torch.randint(CLASSES, (2, 70, 90))
x_u = torch.randn(2, 3, 70, 90)

for name, model in MODELS.items():
    net = gmix.GuidedMixNet(model)  # pads to what the model can divide, cuts the logits back
    method = gmix.methods.GuidedMix(net)
    method.remember(list(zip(x_l, y_l, strict=True)))
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-4)
    losses = method(x_l, y_l, x_u, progress=1.0)
    losses["total"].backward()
    optimizer.step()
    shape = tuple(net(x_u).shape)
    print(f"{name:20} total {losses['total'].item():.3f}  logits {shape}  pads to {net.stride}")

# Attention (MITrans) before the decoder of any of them; `export` builds it into a plain module.
net = gmix.GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=CLASSES), mitrans=True)
deployed = net.eval().export()
x = torch.randn(1, 3, 64, 96)  # what is exported takes sizes that `net.stride` divides
print("exported, the same logits:", torch.equal(deployed(x), net(x)))
