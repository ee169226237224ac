"""Virtual adversarial training: predictions do not change along the step that would change them most."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gmix import functional as G
from gmix.functional.masks import of_all_classes
from gmix.methods.cct import adversarial
from gmix.methods.method import Method, Step
from gmix.nn.losses import check_positive, check_weight
from gmix.nn.modes import eval_mode
from gmix.nn.network import GuidedMixNet
from gmix.protocols import SupervisedLoss

__all__ = ["VAT"]

EPSILON = {"images": 10.0, "features": 2.0}


class VAT(Method):
    r"""Predict after the worst small step away from an unlabeled image what is predicted for the image itself.

    $$L = L_{sup} + w\,\mathrm{KL}(\hat y(x_u) \,\Vert\, \hat y(x_u + r)), \quad
    r = \epsilon \frac{g}{\lVert g \rVert}, \quad
    g = \nabla_{d} \mathrm{KL}(\hat y(x_u) \,\Vert\, \hat y(x_u + \xi d))$$

    $d$ is a random direction of length 1: one iteration of the power method finds the direction of the largest change.
    The network is in eval mode while it does: BatchNorm statistics stay, and images do not depend on each other. It
    is computed in float32 under autocast, too, because the trial step is small. The target $\hat y(x_u)$ is detached.

    Steps go from the image, as Miyato et al. publish it, or with `at="features"` from the deepest feature map, from
    where the network's own decoder continues; this is how CCT uses it, with decoders of its own.

    Args:
        net: The network to train.
        unsupervised: $w$.
        at: `"images"` or `"features"`: what is changed.
        epsilon: $\epsilon$, the length of the step, over all values of an image or of its features. By default 10 for
            images (Miyato et al. for CIFAR-10; they choose it for each data set) and 2 for features (CCT).
        xi: $\xi$, the length of the trial step. The papers' 1e-6 rounds to 0 in float32; this is the default of the
            function of CCT's authors.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `unsupervised` and `total`.

    Raises:
        ValueError: If `at` is unknown, or `epsilon` or `xi` is not above 0.

    Reference:
        Miyato, Maeda, Koyama, Ishii, "Virtual Adversarial Training", TPAMI 2018 (github.com/takerum/vat_tf); on
        features Ouali et al., CVPR 2020 (github.com/yassouali/CCT). The radius that French et al., BMVC 2020, adapt to
        each image, and their teacher, are not implemented.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = VAT(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u))
        ['supervised', 'total', 'unsupervised']
    """

    multilabel = True
    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        unsupervised: float = 1.0,
        at: Literal["images", "features"] = "images",
        epsilon: float | None = None,
        xi: float = 0.1,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index)
        if at not in EPSILON:
            raise ValueError(f"`at` must be 'images' or 'features', got {at!r}")
        self.at = at
        self.epsilon = EPSILON[at] if epsilon is None else epsilon
        self.xi = xi
        check_weight("unsupervised", unsupervised)
        check_positive("epsilon", self.epsilon)
        check_positive("xi", xi)
        self.weight = unsupervised

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised loss, and the divergence after the adversarial step."""
        x_labeled, y_labeled, x_unlabeled, _, valid, generator = step
        n, m, size = len(x_labeled), len(x_unlabeled), (x_labeled.shape[2], x_labeled.shape[3])
        options: dict[str, Any] = {"xi": self.xi, "length": self.epsilon, "generator": generator}
        options["weight"] = valid
        if self.at == "images":
            with eval_mode(self.net):
                r = adversarial(x_unlabeled, self.net, **options)
            logits = self.net(torch.cat([x_labeled, x_unlabeled, x_unlabeled + r]))
        else:
            features = self.net.encode(torch.cat([x_labeled, x_unlabeled]))
            *finer, z = (f[n:] for f in features)
            given = [f.detach().float() for f in finer]
            with eval_mode(self.net):
                r = adversarial(z.detach(), lambda z: self.net.decode([*given, z], size), **options)
            again = [torch.cat([f, f[n:]]) for f in features[:-1]]
            logits = self.net.decode([*again, torch.cat([features[-1], z + r])], size)
        labeled, clean, moved = torch.split(logits, [n, m, m])
        supervised = self.supervised(labeled, y_labeled)
        unsupervised = divergence(moved, G.probabilities(clean).detach(), valid)
        total = supervised + self.weight * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


def divergence(logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Compute the Kullback-Leibler divergence of predictions from a target, mean over the pixels; 0 if none is valid.

    Args:
        logits: `(N, K, H, W)`; K = 1 is binary, one sigmoid channel.
        target: `(N, K, H, W)` probabilities.
        valid: `(N, H, W)` bool: False on padding.

    Examples:
        >>> target = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)
        >>> divergence(target.log(), target), divergence(torch.tensor([0.0, 2.0]).view(1, 2, 1, 1), target)
        (tensor(0.), tensor(0.4338))
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = logits.float(), of_all_classes(target.float())
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        pixels = (torch.xlogy(target, target) - target * logits.log_softmax(1)).sum(1)
        if valid is None:
            return pixels.mean()
        return (pixels * valid).sum() / valid.sum().clamp(min=1)
