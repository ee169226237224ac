"""GuidedMix in PyTorch Lightning: `python lightning_module.py [STEPS]`.

The method is a part of the LightningModule, so that Lightning moves and saves it, teacher included;
a CombinedLoader serves both streams. `accumulate_grad_batches` may be what you like: the optimizer's
step moves the teacher, not the call. The progress of the ramp is counted in steps of the optimizer, so
that it also rises in a trainer without an end (`max_steps=-1`). That some modules are in eval mode,
of which Lightning warns, is right: they are the teacher's.

Needs `pip install "gmix[demo]" pytorch-lightning` (with the package `lightning`, write
`import lightning.pytorch as pl`). Some fifteen seconds on one core.

Settings, honestly: digits on photographs, 48 x 48 pixels, 10 steps unless you ask for more. It
shows the calls, not a good model.
"""

import sys

import numpy as np
import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex

import gmix
from gmix.demo import compose_scenes, load_sources
from gmix.nn.weights import load_encoder_weights

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
CLASSES = 11


class GuidedMixModule(pl.LightningModule):
    def __init__(self, model, steps, lr=2e-3):
        super().__init__()
        self.method = gmix.methods.GuidedMix(gmix.GuidedMixNet(model), mean=0.5, std=0.5)
        self.steps, self.lr = steps, lr
        self.miou = MulticlassJaccardIndex(
            CLASSES, ignore_index=255
        )  # one matrix, not a mean of batches

    def training_step(self, batch, _index):
        (x_l, y_l), (x_u,) = batch["labeled"], batch["unlabeled"]
        progress = min(self.global_step / self.steps, 1)
        losses = self.method(x_l, y_l, x_u, progress=progress)
        self.log_dict(losses, prog_bar=True, batch_size=len(x_l))
        return losses["total"]

    def test_step(self, batch, _index):
        x, y = batch
        self.miou.update(self.method.net(x).argmax(1), y)
        self.log("mIoU", self.miou)

    def configure_optimizers(self):
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=self.lr)


def scenes(source, n, seed):
    made = compose_scenes(source, n, size=48, rng=np.random.default_rng(seed))
    images, masks = map(np.stack, zip(*made, strict=True))
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1  # mean 0.5, std 0.5
    return TensorDataset(x, torch.from_numpy(masks).long())


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    source, new_source = load_sources()
    unlabeled = TensorDataset(scenes(source, 64, seed=1).tensors[0])
    # The shorter stream begins anew, and is shuffled anew, whenever it is through.
    streams = {
        "labeled": DataLoader(scenes(source, 32, seed=0), batch_size=8, shuffle=True),
        "unlabeled": DataLoader(unlabeled, batch_size=8, shuffle=True),
    }
    model = smp.Unet(
        "tu-tf_efficientnet_lite0",
        encoder_weights=None,
        encoder_depth=3,  # small images
        decoder_channels=(96, 64, 48),
        classes=CLASSES,
    )
    load_encoder_weights(model, "lite0")
    module = GuidedMixModule(model, STEPS)
    # How far can the labeled images be trusted as a reference?
    module.method.remember(scenes(source, 32, seed=0))
    trainer = pl.Trainer(
        max_steps=STEPS,
        accumulate_grad_batches=1,
        gradient_clip_val=5.0,
        accelerator="auto",
        logger=False,  # nothing is written or drawn; leave these four out for all of it
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, CombinedLoader(streams, mode="max_size_cycle"))
    print({name: round(loss.item(), 3) for name, loss in trainer.callback_metrics.items()})
    (scores,) = trainer.test(
        module, DataLoader(scenes(new_source, 32, seed=2), batch_size=32), verbose=False
    )
    print(f"mIoU on new scenes: {100 * scores['mIoU']:.1f}")
