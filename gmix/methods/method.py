"""The base class of all training methods: a network, and one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from gmix import functional as G
from gmix.functional.losses import check_progress
from gmix.functional.shapes import check_classes, check_ignore_index
from gmix.methods.checks import (
    check_logits,
    check_masks,
    check_place,
    check_planes,
    check_types,
    check_unlabeled,
    check_valid,
)
from gmix.methods.moved import weights_version
from gmix.nn.ema import EMATeacher
from gmix.nn.images import check_images
from gmix.nn.logits import describe
from gmix.nn.losses import check_unit_interval
from gmix.nn.modes import eval_mode, forget_casts, freeze_statistics
from gmix.nn.network import GuidedMixNet
from gmix.nn.states import ChecksState
from gmix.nn.views import StrongColor
from gmix.protocols import LabeledDataset, SupervisedLoss
from gmix.runtime.collectives import check_unwrapped, warn_if_alone

MULTILABEL = "Supervised, MeanTeacher, ICT, VAT, CutMixSeg, CPS, FixMatch, UniMatch, UniMatchV2, PrevMatch or GuidedMix"
NEEDED = ("encode", "decode", "pool", "classes")

__all__ = ["Method", "Step"]


class Step(NamedTuple):
    """The inputs of one step, with checked shapes."""

    x_labeled: Tensor  # (N, C, H, W)
    y_labeled: Tensor  # (N, H, W) int64
    x_unlabeled: Tensor  # (M, C, H, W)
    progress: float | Tensor  # in [0, 1]
    valid: Tensor | None  # (M, H, W) bool: False on the padding of unlabeled images
    generator: torch.Generator | None


def inside_of(step: Step) -> Tensor:
    """Return which unlabeled pixels are no padding: bool `(M, H, W)`, also where all are."""
    if step.valid is not None:
        return step.valid
    return torch.ones_like(step.x_unlabeled[:, 0], dtype=torch.bool)


class Method(ChecksState):
    """Train a network on labeled and unlabeled images. Every method is called like this one.

    A subclass implements `losses`; `forward` is the same for all.

    Everything that a method needs besides the network (a teacher, a second student, auxiliary decoders) is part of the
    method: it is saved and resumed with it, and is not part of `net.model`, the model that is deployed.

    Args:
        net: The network to train: a GuidedMixNet, or your own with the interface of `gmix.protocols.Network`.
        supervised: Loss of the labeled images instead of cross-entropy, for instance
            `smp.losses.DiceLoss("multiclass", ignore_index=255)`: called with float32 logits `(N, K, H, W)` and
            masks `(N, H, W)`, returns a scalar. It handles ignored pixels itself. With a
            [`MultiLabelNet`][gmix.MultiLabelNet] both have K planes: `(N, 1, K, H, W)` and `(N, K, H, W)`.
        ignore_index: Mask value without a class.
        threshold: Least confidence of a pseudo label that is learned, in [0, 1]; None keeps the default of the class.

    Shape:
        - `x_labeled` `(N, C, H, W)`, `y_labeled` `(N, H, W)` of any integer type, `x_unlabeled` `(M, C, H, W)`: a
          batch of normalised float32 images and their masks.
          With a `MultiLabelNet`, `y_labeled` is `(N, K, H, W)`.
        - `progress` in [0, 1]: the share of the training that is done, `step / steps`; methods without a ramp do
          not need it. A number or, for `torch.compile`, a 0-dimensional tensor.
        - `valid_unlabeled` `(M, H, W)` bool: False on padding.
        - `generator`: on the images' device; by default torch's global generator, the only one that
          `torch.compile` supports.
        - `step_started`: whether a loop that splits its batch into micro-batches has called `on_step_start` for
          this step.

    Returns:
        Named float32 scalars, each unweighted, and `total`, the value to minimise.

    Raises:
        TypeError: If the network is not wrapped, or is a `MultiLabelNet` and the method has no meaning for it; if
            images or masks are no tensors, or the `supervised` loss cannot be called, or returns no scalar, or one
            without a gradient.
        ValueError: If tensors are on several devices; if there are no labeled images, or no unlabeled images for a
            method that needs them; if shapes do not fit; if `progress` is missing, or it or `threshold` is outside
            [0, 1]; if masks have other values than classes and `ignore_index`; or if images are not normalised or not
            finite. Values are checked in the first images, and on a CPU in all masks; a compiled call checks none.
    """

    __call__: Callable[..., dict[str, Tensor]]
    needs_unlabeled = True
    # A method whose losses do not depend on it sets this to False.
    needs_progress = True
    # Whether the method has a meaning for classes that overlap, with a MultiLabelNet.
    multilabel = False
    # Pixels whose pseudo label has a lower confidence are not learned; a method with a threshold sets its own.
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
        self.planes: int | None = getattr(net, "planes", None)
        if self.planes is not None and not self.multilabel:
            raise TypeError(
                f"{type(self).__name__} has no meaning for classes that overlap (MultiLabelNet): use {MULTILABEL}, "
                "or a GuidedMixNet and one class per pixel"
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

    def require(self, *names: str, otherwise: str = "wrap the model, GuidedMixNet(model)") -> None:
        """Refuse a network that lacks what this method needs besides `gmix.protocols.Network`.

        Raises:
            TypeError: If an attribute of `net` is missing.
        """
        missing = [f"`{name}`" for name in names if not hasattr(self.net, name)]
        if missing:
            raise TypeError(
                f"{type(self).__name__} needs {', '.join(missing)} of the network, as GuidedMixNet has, which "
                f"{type(self.net).__name__} lacks: {otherwise}"
            )

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
        """Check the inputs, begin a step where one begins, and compute its named losses."""
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
            else:  # another micro-batch of the same step
                self.observe(x_labeled, y_labeled)
        valid = valid_unlabeled
        if self.planes is not None:  # one value per class and pixel
            valid = torch.ones_like(x_unlabeled[:, 0], dtype=torch.bool) if valid is None else valid
            valid = valid[:, None].expand(-1, self.planes, -1, -1)
        return self.losses(Step(x_labeled, y_labeled, x_unlabeled, progress, valid, generator))

    def remember(self, labeled: LabeledDataset) -> None:
        """Remember the labeled images before training, in a method that refers to them later; most do not.

        Args:
            labeled: A list or data set of pairs, an image `(C, H, W)` as for testing, normalised and not augmented,
                and its mask `(H, W)`.
        """

    def on_step_start(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Begin a step, before anything is learned from it: update the teacher and observe the labeled images.

        A call of the method does this itself, at the first call and then whenever the weights have changed: among
        several calls before one step of the optimizer (gradient accumulation), the first updates the teacher. (A
        compiled call cannot tell, and always begins a step.) A loop that has all labeled images of a step may call
        this with them, and then the method with `step_started=True` for each micro-batch.

        Raises:
            ValueError: If masks cannot be learned; then nothing has changed.
        """
        y_labeled = self._check_labeled(x_labeled, y_labeled)
        if not torch.compiler.is_compiling():
            if self.step_started_at is None:
                self.on_first_step()
            self.step_started_at = weights_version(self.net)
        teacher = getattr(self, "teacher", None)
        if teacher is not None:
            teacher.update(self.net)
        self.observe(x_labeled, y_labeled)

    def on_first_step(self) -> None:
        """Take up weights that were loaded into the network since the method was built.

        The first step calls this, unless it is compiled; does nothing unless overridden.
        """

    def observe(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Observe each labeled image once, for use in later steps; does nothing unless overridden."""

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but keep frozen BatchNorm layers in eval mode, so that their statistics do not change."""
        super().train(mode)
        freeze_statistics(self)
        return self

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the named losses of one step; every method implements this."""
        raise NotImplementedError

    @torch.no_grad()
    def pseudo_masks(
        self,
        x_labeled: Tensor,
        y_labeled: Tensor,
        x_unlabeled: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Compute the pseudo masks that this method would learn for `x_unlabeled`: probabilities `(M, K, H, W)`.

        Changes nothing, so the pseudo masks of images whose masks are known can be judged at any time.
        By default this is the prediction of the teacher or, without a teacher, of the network, in eval mode.
        """
        teacher = getattr(self, "teacher", None)
        net = self.net if teacher is None else teacher.net
        if isinstance(teacher, EMATeacher):
            teacher.catch_up(self.net)
        with eval_mode(net):
            probs = G.probabilities(net(x_unlabeled))
        forget_casts()
        return probs

    def supervised(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of the labeled images, the one term all methods have.

        Raises:
            TypeError: If the given loss returns no scalar, or one without a gradient.
        """
        if self.supervised_loss is None:
            return G.cross_entropy(logits, y, ignore_index=self.ignore_index)
        with torch.autocast(logits.device.type, enabled=False):
            # Contiguous, because losses of other libraries use `view`: SMP's Dice of 0.5 does.
            loss = self.supervised_loss(logits.float().contiguous(), y.contiguous())
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            vector = isinstance(loss, Tensor) and loss.dim()
            remedy = (
                'build the loss with reduction="mean"'
                if vector
                else "return one tensor, computed from the logits"
            )
            raise TypeError(
                "`supervised` must return a scalar of floating point, the mean over the images, "
                f"got {describe(loss)}: {remedy}"
            )
        if logits.requires_grad and not loss.requires_grad:
            raise TypeError(
                "`supervised` must return a loss that gradients flow through, got a constant: compute it from the "
                "logits without .detach(), .item() or argmax, and where nothing counts return 0 * logits.sum()"
            )
        return loss.float()

    def _check_labeled(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the masks as int64; refuse those that cannot be learned, before a teacher or a memory changes."""
        if not (torch.compiler.is_compiling() or self.masks_seen):
            check_unwrapped(self)
        check_place(x_labeled=x, y_labeled=y)
        y = check_masks(y, x) if self.planes is None else check_planes(y, x, self.planes)
        if isinstance(self.net, GuidedMixNet):
            self.net.check_images(x)
        if not (torch.compiler.is_compiling() or (self.masks_seen and y.device.type != "cpu")):
            self.masks_seen = True
            check_classes("y_labeled", y, max(self.net.classes, 2), self.ignore_index)
        return y

    def _unlabeled(
        self, x_labeled: Tensor, x_unlabeled: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        """Return the unlabeled images, if all shapes fit."""
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
        """Return the share of the training that is done, which a method with a ramp needs."""
        if progress is not None:
            check_progress(progress)
        elif self.needs_progress:
            raise ValueError(
                f"{type(self).__name__} needs `progress`, the share of the training that is done: "
                "pass progress=step / steps (1.0: no ramp)"
            )
        return 1.0 if progress is None else progress

    def _look_once(self, *images: Tensor) -> None:
        """Check the values of the first images, which waits for a GPU."""
        if torch.compiler.is_compiling() or self.images_seen:
            return
        self.check_values(*images)
        own = not isinstance(self.net, GuidedMixNet)
        if own:  # GuidedMixNet has tried its model
            check_logits(self.net, images[0][:1])
        self.images_seen = True
        freeze_statistics(self)  # for layers frozen after `train`

    def check_values(self, *images: Tensor) -> None:
        """Refuse batches `(N, C, H, W)` that are not normalised with this method's `mean` and `std`; waits for a GPU.

        Raises:
            ValueError: If they are not normalised, or not finite.
        """
        color = next((m for m in self.modules() if isinstance(m, StrongColor)), None)
        for x in images:
            if len(x):
                check_images(x, color)
