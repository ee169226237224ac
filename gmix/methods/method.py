"""What every training method is: a network, and one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gmix import functional as G
from gmix.modes import eval_mode
from gmix.network import GuidedMixNet

NEEDED = ("encode", "decode", "classifier", "classes")

__all__ = ["Method", "Step", "SupervisedLoss"]

# Logits (N, K, H, W) and masks (N, H, W) to a scalar.
SupervisedLoss = Callable[[Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """What a method learns from in one step; the shapes are checked."""

    x_labeled: Tensor  # (N, C, H, W)
    y_labeled: Tensor  # (N, H, W) int64
    x_unlabeled: Tensor  # (M, C, H, W)
    progress: float | Tensor  # in [0, 1]
    valid: Tensor | None  # (M, H, W) bool: False on the padding of unlabeled images
    generator: torch.Generator | None


class Method(nn.Module):
    """A way to train a network on labeled and unlabeled images. Every method is called like this one.

    A subclass writes `losses`; `forward` is the same for all.

    Whatever a method needs besides the network (a teacher, a second student, auxiliary decoders) is part of the
    method: it is saved and resumed with it, and never reaches `net.model`, the model that is deployed.

    Args:
        net: The network to train.
        supervised: Loss of the labeled images in place of cross-entropy, for instance
            `smp.losses.DiceLoss("multiclass", ignore_index=255)`: called with float32 logits `(N, K, H, W)` and
            masks `(N, H, W)`, returns a scalar. What it ignores is its own business.
        ignore_index: Mask value without a class.

    Shape:
        - `x_labeled` `(N, C, H, W)`, `y_labeled` `(N, H, W)` int64, `x_unlabeled` `(M, C, H, W)`: a batch
        - `progress` in [0, 1]: the share of the training that is done, for ramps; a number or, for
          `torch.compile`, a 0-dimensional tensor
        - `valid_unlabeled` `(M, H, W)` bool: False on padding
        - `generator`: on the images' device; without it torch's global one is used, the only one that
          `torch.compile` knows
        - `begun`: whether `begin` has been called for this step, by a loop that goes through its batch in parts

    Returns:
        Named float32 scalars, each unweighted, and `total`, what is to be minimised.

    Raises:
        TypeError: A network that is not wrapped, or a `supervised` loss that cannot be called or returns no scalar.
        ValueError: No labeled images, no unlabeled ones for a method that needs them, shapes or types that do not fit,
            or masks with other values than classes and `ignore_index`. Where these would have to be waited for, on a
            GPU, only the first masks are looked at; a compiled call looks at none.
    """

    __call__: Callable[..., dict[str, Tensor]]
    needs_unlabeled = True
    # Pixels whose pseudo label is less sure are not learned; a method with a threshold sets its own.
    threshold: float = 0.0

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if not all(hasattr(net, name) for name in NEEDED):
            raise TypeError(
                f"`net` must be a GuidedMixNet, got {type(net).__name__}: "
                "wrap the model, GuidedMixNet(model)"
            )
        if supervised is not None and (not callable(supervised) or isinstance(supervised, type)):
            raise TypeError(
                "`supervised` must be a loss to call with logits and masks, None for cross-entropy, "
                f"got {supervised!r}"
            )
        self.net = net
        self.supervised_loss = supervised
        self.ignore_index = ignore_index
        self.masks_seen = False
        # Only GuidedMix trains it, and a parameter without a gradient must not be trained.
        net.classifier.requires_grad_(False)

    def forward(
        self,
        x_labeled: Tensor,
        y_labeled: Tensor,
        x_unlabeled: Tensor | None = None,
        *,
        progress: float | Tensor = 1.0,
        valid_unlabeled: Tensor | None = None,
        generator: torch.Generator | None = None,
        begun: bool = False,
    ) -> dict[str, Tensor]:
        self._check_labeled(x_labeled, y_labeled)
        x_unlabeled = self._unlabeled(x_labeled, x_unlabeled, valid_unlabeled)
        if self.training and not begun:
            self.begin(x_labeled, y_labeled)
        return self.losses(
            Step(x_labeled, y_labeled, x_unlabeled, progress, valid_unlabeled, generator)
        )

    def begin(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """What happens once a step, before anything is learned from it: a teacher moves on.

        A call of the method does this itself. A loop that goes through a step's batch in parts calls it with the
        labeled images of all of them, and then the method with `begun=True` for each.

        Raises:
            ValueError: Masks that cannot be learned; then nothing has changed.
        """
        self._check_labeled(x_labeled, y_labeled)
        teacher = getattr(self, "teacher", None)
        if teacher is not None:
            teacher.update(self.net)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """What a method is: the named losses of one step."""
        raise NotImplementedError

    @torch.no_grad()
    def pseudo_masks(
        self,
        x_labeled: Tensor,
        y_labeled: Tensor,
        x_unlabeled: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """What this method would learn from if it met `x_unlabeled`: probabilities `(M, K, H, W)`.

        Changes nothing, so that the pseudo masks of images whose masks are known can be judged at any time.
        Unless a method says otherwise, its teacher's prediction, or without one its own in eval mode.
        """
        teacher = getattr(self, "teacher", None)
        net = self.net if teacher is None else teacher.net
        with eval_mode(net):
            probs = G.probabilities(net(x_unlabeled))
        # torch up to 2.9, at least, keeps weights cast here, without a gradient, for what is learned next.
        torch.clear_autocast_cache()
        return probs

    def supervised(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of the labeled images, the one term all methods have.

        Raises:
            TypeError: The loss the method was given returns no scalar.
        """
        if self.supervised_loss is None:
            return G.cross_entropy(logits, y, ignore_index=self.ignore_index)
        with torch.autocast(logits.device.type, enabled=False):
            loss = self.supervised_loss(logits.float(), y)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise TypeError(
                "`supervised` must return a scalar of floating point, the mean over the images, "
                f"got {found}"
            )
        return loss.float()

    def _check_labeled(self, x: Tensor, y: Tensor) -> None:
        """Refuse what cannot be learned, before a teacher or a memory has changed."""
        if x.dim() != 4 or not len(x):
            raise ValueError(
                f"`x_labeled` must be one image or more, shape (N, C, H, W), got {tuple(x.shape)}"
            )
        pixels = (len(x), *x.shape[2:])
        if y.shape != pixels or y.dtype != torch.int64:
            raise ValueError(
                f"`y_labeled` must have shape {pixels} and type torch.int64, one class per pixel of "
                f"`x_labeled`, got {tuple(y.shape)} and {y.dtype}"
            )
        if torch.compiler.is_compiling() or (self.masks_seen and y.device.type != "cpu"):
            return
        self.masks_seen = True
        classes = max(self.net.classes, 2)
        wrong = y[((y < 0) | (y >= classes)) & (y != self.ignore_index)]
        if len(wrong):
            raise ValueError(
                f"`y_labeled` must hold classes 0 to {classes - 1}, or {self.ignore_index} "
                f"(`ignore_index`) where there is none, got {wrong[0].item()}"
            )

    def _unlabeled(
        self, x_labeled: Tensor, x_unlabeled: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        """The unlabeled images, if all shapes fit."""
        if not self.needs_unlabeled:
            return x_labeled[:0] if x_unlabeled is None else x_unlabeled
        if x_unlabeled is None or not len(x_unlabeled):
            raise ValueError(
                f"{type(self).__name__} needs `x_unlabeled`; with labeled images only, "
                "use Supervised"
            )
        if x_unlabeled.shape[1:] != x_labeled.shape[1:]:
            raise ValueError(
                "`x_labeled` and `x_unlabeled` must have the same shape but for their number, "
                f"got {tuple(x_labeled.shape)} and {tuple(x_unlabeled.shape)}"
            )
        pixels = (len(x_unlabeled), *x_unlabeled.shape[2:])
        if valid is not None and (valid.shape != pixels or valid.dtype != torch.bool):
            raise ValueError(
                f"`valid_unlabeled` must have shape {pixels} and type torch.bool, one value per pixel "
                f"of `x_unlabeled`, got {tuple(valid.shape)} and {valid.dtype}"
            )
        return x_unlabeled
