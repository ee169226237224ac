"""What a user writes: `mypy --strict` and pyright accept it, and it runs."""

import copy
from pathlib import Path

import segmentation_models_pytorch as smp  # type: ignore[import-untyped]
import torch
from torch import Generator, Tensor, nn
from typing_extensions import assert_type

import gmix
from gmix import functional as G
from gmix.data import Batch, Classes, TwoStream, eval_transform, train_transform
from gmix.evaluation import Scores, evaluate
from gmix.methods import FixMatch, GuidedMix, Method, Step, Supervised
from gmix.protocols import LabeledDataset, Reference, Teacher


class ConstantMixer(nn.Module):
    def forward(
        self,
        labeled: Tensor,
        unlabeled: Tensor,
        lam: Tensor | None = None,
        generator: Generator | None = None,
    ) -> gmix.Mixed:
        lam = torch.full((len(unlabeled),), 0.2) if lam is None else lam
        return gmix.Mixed(G.mix(labeled, unlabeled, lam), lam)


class FirstSelector:
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        exclude_self: bool = False,
        generator: Generator | None = None,
    ) -> Tensor:
        return torch.zeros(len(query), dtype=torch.int64)


class Shift:
    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return x + 0.1


class EveryPixel:
    def __call__(self, y: Tensor, generator: Generator | None = None) -> Tensor:
        return torch.ones_like(y, dtype=torch.bool)


class Halves:
    def __call__(self, x: Tensor, generator: Generator | None = None) -> gmix.Pasted:
        box = torch.zeros(len(x), *x.shape[-2:], dtype=torch.bool)
        box[..., : x.shape[-1] // 2] = True
        return gmix.Pasted(box, torch.arange(len(x)).roll(1))


class LastStudent(nn.Module):
    def __init__(self, student: gmix.GuidedMixNet) -> None:
        super().__init__()
        self.net = copy.deepcopy(student).eval().requires_grad_(False)

    def update(self, student: gmix.GuidedMixNet) -> None:
        self.net.load_state_dict(student.state_dict())


class ClassesThatOccur:
    remembers = False

    def remember(self, labeled: LabeledDataset, *, ignore_index: int) -> None:
        masks = [labeled[index][1] for index in range(len(labeled))]
        self.present = torch.cat([y.flatten() for y in masks])
        self.remembers = True

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        occurs = torch.stack([(self.present == k).any() for k in range(probs.shape[1])]).float()
        return G.reweigh(probs, occurs[None, :, None, None].expand_as(probs))


class NoAdjustment:
    def __call__(self, logits: Tensor) -> Tensor:
        return logits

    def add(self, y: Tensor, *, ignore_index: int) -> None:
        pass


def keep(probs_mixed: Tensor, probs_labeled: Tensor, lam: Tensor) -> Tensor:
    return probs_mixed


def smoothed(logits: Tensor, masks: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, masks, ignore_index=255, label_smoothing=0.1)


class Pairs:
    """A data set of one's own: no base class, plain tensors."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
        return image, torch.full((32, 32), index % 3)


class SelfTraining(Method):
    def losses(self, step: Step) -> dict[str, Tensor]:
        supervised = self.supervised(self.net(step.x_labeled), step.y_labeled)
        logits = self.net(step.x_unlabeled)
        unsupervised = gmix.PseudoMask.of(logits, step.valid).loss(logits, threshold=0.9)
        return {"total": supervised + unsupervised}


def methods(net: gmix.GuidedMixNet) -> list[Method]:
    """Each with parts of one's own, of gmix, as options, and without."""
    teacher: Teacher = LastStudent(net)
    reference: Reference = ClassesThatOccur()
    return [
        GuidedMix(
            net,
            direct=0.5,
            mixer=ConstantMixer(),
            selector=FirstSelector(),
            decoupler=keep,
            teacher=teacher,
            reference=reference,
            adjustment=NoAdjustment(),
            color=Shift(),
            blur=Shift(),
            paste=EveryPixel(),
            cutmix=Halves(),
            supervised=smoothed,
        ),
        GuidedMix(
            net,
            variant="paper",
            mixer=gmix.LabeledUnlabeledMixer(max_lambda=0.3),
            selector=gmix.RandomPairSelector(),
            decoupler=gmix.SoftDecoupler(mode="hard"),
            criterion=gmix.GuidedMixLoss(threshold=0.9),
            teacher=gmix.EMATeacher(net),
            adjustment=gmix.LogitAdjustment(net.classes),
            color=gmix.StrongColor(),
            paste=gmix.ClassPaste(net.classes),
            cutmix=gmix.CutMix(),
        ),
        GuidedMix(net, mixer={"alpha": 2.0}, reference=None, blur=None),
        FixMatch(net, teacher=LastStudent(net), supervised=nn.CrossEntropyLoss(ignore_index=255)),
        Supervised(net, supervised=lambda logits, y: smoothed(logits, y)),
        SelfTraining(net),
    ]


def saved(folder: Path, net: gmix.GuidedMixNet) -> None:
    mean = std = (0.5, 0.5, 0.5)
    gmix.SavedModel(net, Classes.of(3), None, mean, std).save_pretrained(folder)
    model = gmix.SavedModel.from_pretrained(folder)
    assert_type(model, gmix.SavedModel)
    assert_type(model.net, gmix.GuidedMixNet)
    gmix.predict_image(model, Pairs()[1][0])


def main(folder: Path) -> None:
    """Train a step with everything, and look at what comes out."""
    transform = train_transform(crop=(32, 32))
    images = [image for image, _ in map(Pairs().__getitem__, range(4))]
    stream = TwoStream(Pairs(), images, 2, 2, transform, transform, seed=0)
    batch = stream[0]
    assert_type(batch, Batch)
    net = gmix.GuidedMixNet(
        smp.Unet(
            "resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(8, 8, 8), classes=3
        )
    )
    assert_type(net(batch.x_labeled), Tensor)
    assert_type(gmix.EMATeacher(net), gmix.EMATeacher[gmix.GuidedMixNet])
    assert_type(gmix.LabeledUnlabeledMixer()(batch.x_labeled, batch.x_labeled), gmix.Mixed)
    for method in methods(net):
        method.remember(list(zip(batch.x_labeled, batch.y_labeled, strict=True)))
        losses = method(batch.x_labeled, batch.y_labeled, batch.x_unlabeled, progress=0.5)
        assert_type(losses, dict[str, Tensor])
        losses["total"].backward()  # type: ignore[no-untyped-call]
    scores = evaluate(net, Pairs(), Classes.of(3), transform=eval_transform())
    assert_type(scores, Scores)
    saved(folder, net)
