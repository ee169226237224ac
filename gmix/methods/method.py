"""What every training method is: a network, and one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from gmix import functional as G
from gmix.functional.losses import check_progress
from gmix.functional.shapes import check_ignore_index
from gmix.methods.checks import (
    check_classes,
    check_images,
    check_masks,
    check_place,
    check_types,
    check_unlabeled,
    check_valid,
)
from gmix.methods.moved import weights_version
from gmix.nn.ema import EMATeacher
from gmix.nn.losses import check_unit_interval
from gmix.nn.modes import eval_mode, freeze_statistics
from gmix.nn.network import GuidedMixNet
from gmix.nn.sizes import check_channels
from gmix.nn.states import ChecksState
from gmix.nn.views import StrongColor
from gmix.protocols import LabeledDataset, SupervisedLoss
from gmix.runtime.collectives import check_unwrapped, warn_if_alone

NEEDED = ("encode", "decode", "classes")

__all__ = ["Method", "Step"]


class Step(NamedTuple):
    """What a method learns from in one step; the shapes are checked."""

    x_labeled: Tensor  # (N, C, H, W)
    y_labeled: Tensor  # (N, H, W) int64
    x_unlabeled: Tensor  # (M, C, H, W)
    progress: float | Tensor  # in [0, 1]
    valid: Tensor | None  # (M, H, W) bool: False on the padding of unlabeled images
    generator: torch.Generator | None


class Method(ChecksState):
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
        threshold: Least confidence of a pseudo label that is learned, in [0, 1]; None leaves that of the class.

    Shape:
        - `x_labeled` `(N, C, H, W)`, `y_labeled` `(N, H, W)` of any integer type, `x_unlabeled` `(M, C, H, W)`: a
          batch of normalised float32 images and their masks
        - `progress` in [0, 1]: the share of the training that is done, `step / steps`; methods without a ramp can
          do without. A number or, for `torch.compile`, a 0-dimensional tensor
        - `valid_unlabeled` `(M, H, W)` bool: False on padding
        - `generator`: on the images' device; without it torch's global one is used, the only one that
          `torch.compile` knows
        - `step_started`: whether a loop that splits its batch into micro-batches has called `on_step_start` for
          this step

    Returns:
        Named float32 scalars, each unweighted, and `total`, what is to be minimised.

    Raises:
        TypeError: A network that is not wrapped, images or masks that are no tensors, or a `supervised` loss that
            cannot be called, returns no scalar, or one without a gradient.
        ValueError: Tensors on several devices, no labeled images, no unlabeled ones for a method that needs them,
            shapes that do not fit, no `progress`, or one or a `threshold` outside [0, 1], masks with other values than
            classes and `ignore_index`, or images that are not normalised or not finite. Values are looked at in the
            first images, and where they need not be waited for (not on a GPU) in all masks; a compiled call looks at
            none.
    """

    __call__: Callable[..., dict[str, Tensor]]
    needs_unlabeled = True
    # A method whose losses do not look at it sets this to False.
    needs_progress = True
    # Pixels whose pseudo label is less sure are not learned; a method with a threshold sets its own.
    threshold: float = 0.0

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        check_unwrapped(net)
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
        check_ignore_index(net.classes, ignore_index)
        self.ignore_index = ignore_index
        if threshold is not None:
            check_unit_interval("threshold", threshold)
            self.threshold = threshold
        self.masks_seen = self.images_seen = False
        self.step_started_at: tuple[int, int] | None = None

    def forward(
        self,
        x_labeled: Tensor,
        y_labeled: Tensor,
        x_unlabeled: Tensor | None = None,
        *,
        progress: float | Tensor | None = None,
        valid_unlabeled: Tensor | None = None,
        generator: torch.Generator | None = None,
        step_started: bool = False,
    ) -> dict[str, Tensor]:
        y_labeled = self._check_labeled(x_labeled, y_labeled)
        x_unlabeled = self._unlabeled(x_labeled, x_unlabeled, valid_unlabeled)
        progress = self._progress(progress)
        check_types(self.net, x_labeled=x_labeled, x_unlabeled=x_unlabeled)
        self._look_once(x_labeled, x_unlabeled)
        if self.training and not step_started:
            if self.step_started_at is None and not torch.compiler.is_compiling():
                warn_if_alone(self)
            if torch.compiler.is_compiling() or self.step_started_at != weights_version(self.net):
                self.on_step_start(x_labeled, y_labeled)
            else:  # one more micro-batch of the same step
                self.observe(x_labeled, y_labeled)
        return self.losses(
            Step(x_labeled, y_labeled, x_unlabeled, progress, valid_unlabeled, generator)
        )

    def remember(self, labeled: LabeledDataset) -> None:
        """Look at the labeled images once before training, in a method that asks them later; most do not.

        Args:
            labeled: A list or data set of pairs, an image `(C, H, W)` as it is tested, normalised and not augmented,
                and its mask `(H, W)`.
        """

    def on_step_start(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Begin a step, before anything is learned from it: a teacher moves on, a memory takes the labeled images.

        A call of the method does this itself, at the first call and then whenever the weights have moved since: of
        several calls before one step of the optimizer (gradient accumulation), the first moves the teacher. (A
        compiled call cannot tell, and begins.) A loop that has all labeled images of a step at hand may call it with
        them, and then the method with `step_started=True` for each micro-batch.

        Raises:
            ValueError: Masks that cannot be learned; then nothing has changed.
        """
        y_labeled = self._check_labeled(x_labeled, y_labeled)
        if not torch.compiler.is_compiling():
            self.step_started_at = weights_version(self.net)
        teacher = getattr(self, "teacher", None)
        if teacher is not None:
            teacher.update(self.net)
        self.observe(x_labeled, y_labeled)

    def observe(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Keep what later steps need of labeled images, all of which come here once; nothing unless overridden."""

    def train(self, mode: bool = True) -> Self:
        """Set the mode as ever, but for BatchNorm layers that are frozen: their statistics stay, too."""
        super().train(mode)
        freeze_statistics(self)
        return self

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
        if isinstance(teacher, EMATeacher):
            teacher.catch_up(self.net)
        with eval_mode(net):
            probs = G.probabilities(net(x_unlabeled))
        # torch up to 2.9, at least, keeps weights cast here, without a gradient, for what is learned next.
        torch.clear_autocast_cache()
        return probs

    def supervised(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of the labeled images, the one term all methods have.

        Raises:
            TypeError: The loss the method was given returns no scalar, or one without a gradient.
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
        if logits.requires_grad and not loss.requires_grad:
            raise TypeError(
                "`supervised` must return a loss that gradients flow through, got a constant: compute it from the "
                "logits without .detach(), .item() or argmax, and where nothing counts return 0 * logits.sum()"
            )
        return loss.float()

    def _check_labeled(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the masks as int64; refuse what cannot be learned before a teacher or a memory has changed."""
        if not (torch.compiler.is_compiling() or self.masks_seen):
            check_unwrapped(self)
        check_place(x_labeled=x, y_labeled=y)
        y = check_masks(y, x)
        if isinstance(self.net, GuidedMixNet):
            check_channels(self.net.model.encoder, x)
        if not (torch.compiler.is_compiling() or (self.masks_seen and y.device.type != "cpu")):
            self.masks_seen = True
            check_classes(y, max(self.net.classes, 2), self.ignore_index)
        return y

    def _unlabeled(
        self, x_labeled: Tensor, x_unlabeled: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        """The unlabeled images, if all shapes fit."""
        check_place(x_labeled=x_labeled, x_unlabeled=x_unlabeled, valid_unlabeled=valid)
        if not self.needs_unlabeled:
            return x_labeled[:0] if x_unlabeled is None else x_unlabeled
        if x_unlabeled is None or not len(x_unlabeled):
            raise ValueError(
                f"{type(self).__name__} needs `x_unlabeled`; with labeled images only, "
                "use Supervised"
            )
        check_unlabeled(x_labeled, x_unlabeled)
        check_valid(valid, x_unlabeled)
        return x_unlabeled

    def _progress(self, progress: float | Tensor | None) -> float | Tensor:
        """The share of the training that is done, which a method with a ramp has to be told."""
        if progress is not None:
            check_progress(progress)
        elif self.needs_progress:
            raise ValueError(
                f"{type(self).__name__} needs `progress`, the share of the training that is done: "
                "pass progress=step / steps (1.0: no ramp)"
            )
        return 1.0 if progress is None else progress

    def _look_once(self, *images: Tensor) -> None:
        """Look at the values of the first images, which a GPU has to be waited for."""
        if torch.compiler.is_compiling() or self.images_seen:
            return
        color = next((m for m in self.modules() if isinstance(m, StrongColor)), None)
        for x in images:
            if len(x):
                check_images(x, color)
        self.images_seen = True
        freeze_statistics(self)  # of what was frozen after `train`
