"""A loop of your own, with all that loops have: `python own_loop.py [STEPS]`.

Mixed precision, gradient clipping, two learning rates and a schedule, a teacher (EMA of the
weights) that is scored beside the network, and gmix.data: crops, padding, and batches that depend
on (seed, step) alone, so that a run can be taken up anywhere.

Needs `pip install "gmix[demo]"`. Some ten seconds on one core.

Settings, honestly: digits on photographs, crops of 48 x 48 pixels, 10 steps unless you ask for more.
bfloat16 on a CPU, where it may well be slower; float16 with a gradient scaler on a GPU.
"""

import sys

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader
from torchvision.tv_tensors import Image, Mask

import gmix
from gmix.data import Sample, TwoStream, eval_transform, train_transform
from gmix.demo import compose_scenes, load_sources
from gmix.evaluation import ConfusionMatrix
from gmix.nn.weights import encoder_stats, load_encoder_weights

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
CLASSES, ENCODER = 11, "tu-tf_efficientnet_lite0"
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.bfloat16


def scenes(source, n, seed):
    made = compose_scenes(source, n, size=56, rng=np.random.default_rng(seed))
    return [
        Sample(Image(torch.from_numpy(image).permute(2, 0, 1)), Mask(torch.from_numpy(mask)))
        for image, mask in made
    ]


source, new_source = load_sources()
mean, std = encoder_stats(ENCODER)
transform = train_transform(crop=(48, 48), scale=(0.8, 1.2), mean=mean, std=std)
stream = TwoStream(
    labeled=scenes(source, 32, seed=0),
    unlabeled=[sample.image for sample in scenes(source, 64, seed=1)],
    batch_labeled=8,
    batch_unlabeled=8,
    labeled_transform=transform,
    unlabeled_transform=transform,
    seed=0,
)
loader = DataLoader(stream, batch_size=None, sampler=range(STEPS), num_workers=0)

model = smp.Unet(
    ENCODER,
    encoder_weights=None,
    encoder_depth=3,  # small images
    decoder_channels=(96, 64, 48),
    classes=CLASSES,
)
load_encoder_weights(model, "lite0")
net = gmix.GuidedMixNet(model)
method = gmix.methods.GuidedMix(net, mean=mean, std=std, teacher=gmix.EMATeacher(net, decay=0.9))
method.to(device)
normalise = eval_transform(mean, std)
method.remember([normalise(*sample) for sample in stream.labeled])  # as they are tested
method.train()  # the teacher moves along, and stays in eval mode
encoder = {id(p) for p in net.model.encoder.parameters()}
trained = [p for p in method.parameters() if p.requires_grad]  # leaves the teacher out
optimizer = torch.optim.AdamW(
    [
        {"params": [p for p in trained if id(p) in encoder], "lr": 1e-3},
        {"params": [p for p in trained if id(p) not in encoder], "lr": 4e-3},
    ]
)
schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=STEPS, power=0.9)
scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
generator = torch.Generator(device).manual_seed(0)  # of lambda, colours and boxes

for step, batch in enumerate(loader):
    x_l, y_l, x_u, valid = batch.to(device)
    with torch.autocast(device, dtype):
        losses = method(
            x_l, y_l, x_u, progress=step / STEPS, valid_unlabeled=valid, generator=generator
        )
    optimizer.zero_grad()
    scaler.scale(losses["total"]).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(trained, max_norm=5.0)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    if step % 5 == 0 or step == STEPS - 1:
        print(f"step {step:3}  total {losses['total'].item():.3f}  gradient norm {norm.item():.2f}")

samples = [normalise(*sample) for sample in scenes(new_source, 32, seed=2)]
x, y = (torch.stack(parts).as_subclass(torch.Tensor) for parts in zip(*samples, strict=True))
for name, scored in (("network", net.eval()), ("teacher", method.teacher.net)):
    matrix = ConfusionMatrix(CLASSES)
    with torch.inference_mode():
        matrix.update(scored(x.to(device)).argmax(1).cpu(), y.long())
    print(f"{name}: mIoU on new scenes {100 * matrix.scores().miou:.1f}")
