"""A loop of your own: mixed precision, gradient clipping, a schedule: `python own_loop.py [STEPS]`.

Settings, honestly: random tensors, random weights, 3 steps unless you ask for more. bfloat16 on a
CPU, float16 with a gradient scaler on a GPU.
"""

import sys

import segmentation_models_pytorch as smp
import torch

import gmix

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
CLASSES, SIZE = 4, 64
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.bfloat16

net = gmix.GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=CLASSES))
method = gmix.methods.GuidedMix(net).to(device).train()  # moves the teacher as well
encoder = {id(p) for p in net.model.encoder.parameters()}
trained = [p for p in method.parameters() if p.requires_grad]  # leaves the teacher out
optimizer = torch.optim.SGD(
    [
        {"params": [p for p in trained if id(p) in encoder], "lr": 3e-3},
        {"params": [p for p in trained if id(p) not in encoder], "lr": 1e-2},
    ],
    momentum=0.9,
    weight_decay=1e-4,
)
schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=STEPS, power=0.9)
scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
generator = torch.Generator(device).manual_seed(0)  # of lambda, colours and boxes

for step in range(STEPS):
    x_l, y_l = torch.randn(4, 3, SIZE, SIZE), torch.randint(CLASSES, (4, SIZE, SIZE))
    x_u = torch.randn(4, 3, SIZE, SIZE)
    valid = torch.ones(4, SIZE, SIZE, dtype=torch.bool)
    valid[:, -8:] = False  # as if the crop had been padded at the bottom

    with torch.autocast(device, dtype):
        losses = method(
            x_l.to(device),
            y_l.to(device),
            x_u.to(device),
            progress=step / STEPS,
            valid_unlabeled=valid.to(device),
            generator=generator,
        )
    optimizer.zero_grad()
    scaler.scale(losses["total"]).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(trained, max_norm=1.0)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    print(f"step {step}  total {losses['total'].item():.3f}  gradient norm {norm.item():.2f}")
