"""What a user may get wrong: each marked line is an error under mypy, of the kind in brackets; nothing here is run."""

from torch import Tensor, nn

import gmix
from gmix.data import Classes, eval_transform
from gmix.evaluation import evaluate
from gmix.methods import FixMatch, GuidedMix, Supervised


class NoLambda:
    def __call__(self, labeled: Tensor, unlabeled: Tensor) -> gmix.Mixed:
        return gmix.Mixed(unlabeled, unlabeled.new_zeros(len(unlabeled)))


class NoUpdate(nn.Module):
    def __init__(self, net: gmix.GuidedMixNet) -> None:
        super().__init__()
        self.net = net


class OnlyImages:
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Tensor:
        raise IndexError


def loss_of_one(logits: Tensor) -> Tensor:
    return logits.mean()


def misuses(net: gmix.GuidedMixNet, x: Tensor, y: Tensor) -> None:
    print(gmix.GuidedMixNett)  # [attr-defined]
    print(gmix.methods.GuidedMixx)  # [attr-defined]
    gmix.LabeledUnlabeledMixer(max_lamda=0.3)  # [call-arg]
    gmix.SoftDecoupler(mode="sort")  # [arg-type]
    gmix.LabeledUnlabeledMixer()(x)  # [call-arg]
    GuidedMix(net, cutmx=None)  # [call-arg]
    GuidedMix(net, variant="papr")  # [arg-type]
    GuidedMix(net, selector=None)  # [arg-type]
    GuidedMix(net, direct="0.5")  # [arg-type]
    GuidedMix(net, mixer=NoLambda())  # [arg-type]
    GuidedMix(net, mixer=gmix.SoftDecoupler())  # [arg-type]
    GuidedMix(net, decoupler=gmix.RandomPairSelector())  # [arg-type]
    GuidedMix(net, selector=gmix.RandomPairSelector)  # [arg-type]
    GuidedMix(net, teacher=NoUpdate(net))  # [arg-type]
    GuidedMix(net, reference=gmix.ClassPaste(3))  # [arg-type]
    GuidedMix(net).remember(OnlyImages())  # [arg-type]
    FixMatch(net, teacher=net)  # [arg-type]
    Supervised(net, supervised=loss_of_one)  # [arg-type]
    evaluate(net, OnlyImages(), Classes.of(3), transform=eval_transform())  # [arg-type]
    net(x).backwards()  # [attr-defined]
    GuidedMix(net)(x, y, x, progress=0.5)["total"].items()  # [attr-defined]
