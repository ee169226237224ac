"""GuidedMix: learn pseudo masks with labeled images as a reference."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from gmix import functional as G
from gmix import protocols
from gmix.functional.shapes import within
from gmix.methods.guidedmix_parts import (
    REQUIRED,
    VARIANTS,
    GuidedMixParts,
    Variant,
    check_criterion,
    make_parts,
)
from gmix.methods.method import Method, Step
from gmix.nn.ema import EMATeacher
from gmix.nn.given import Options
from gmix.nn.losses import check_unit_interval
from gmix.nn.mixed_head import MixedHead
from gmix.nn.modes import eval_mode, forget_casts
from gmix.nn.network import GuidedMixNet
from gmix.nn.reference import LabeledReference
from gmix.nn.views import disturb
from gmix.runtime.collectives import gather

__all__ = ["Guidance", "GuidedMix", "GuidedMixParts", "Mix", "Partners"]


class Mix(NamedTuple):
    """Unlabeled images mixed with their partners, and the decoupled predictions."""

    image: Tensor  # (N, C, H, W)
    lam: Tensor  # (N,) share of the partner
    predicted: Tensor  # (N, K, H, W) probabilities
    labeled: Tensor  # (N, K, H, W) probabilities of the partners, which are subtracted
    decoupled: Tensor  # (N, K, H, W) without the labeled part


class Partners(NamedTuple):
    """The labeled image that each unlabeled one was paired with."""

    chosen: Tensor  # (N,) int64: its index
    x: Tensor  # (N, C, H, W) the images
    y: Tensor  # (N, H, W) their masks
    query: Tensor  # (N, D) pooled deepest features of the unlabeled images
    key: Tensor  # (L, D) those of all labeled images that could be chosen


class Guidance(NamedTuple):
    """The pseudo masks of a batch of unlabeled images, and the steps that made them."""

    partners: Partners | None  # None if nothing is mixed or pasted, as by default
    direct: Tensor  # (N, K, H, W) probabilities of the unchanged unlabeled images
    mix: Mix | None  # None if nothing is mixed, with `direct=1.0`
    pseudo: Tensor  # (N, K, H, W) the target of the student


class GuidedMix(Method):
    r"""Mix each unlabeled image with its most similar labeled one and learn what the labeled one does not explain.

    Each call is one step:

    1. **embed** labeled and unlabeled images: pooled deepest features;
    2. **pair** each unlabeled image with its nearest labeled one;
    3. **mix** the two images, $\lambda x_l + (1-\lambda) x_u$;
    4. **predict** the mix;
    5. **decouple**: subtract $\lambda$ times the labeled part; the rest is a pseudo mask;
    6. **refer**: weight it by the classes of labeled pixels with similar features
       ([`LabeledReference`][gmix.LabeledReference]);
    7. **view**: change the unlabeled images strongly, and paste the same boxes into them and the pseudo masks;
    8. **loss**: train the network on these, and on the labeled images.

    Before the first step, [`remember`][gmix.methods.GuidedMix.remember] shows the labeled images to the reference.

    `variant="official"` is what the authors released, another algorithm: labeled and unlabeled images are encoded and
    decoded together; the decoder's maps are mixed, with random partners; a second head, which is not deployed
    ([`MixedHead`][gmix.nn.mixed_head.MixedHead]), predicts the mix; $\lambda$ times the labeled logits are subtracted
    from its logits, and what is left learns the most probable class of the direct prediction. Nothing but $L_{sup}$
    and this loss trains the network. `docs/differences-from-the-paper.md` has all three side by side.

    | step | `variant="default"` | `variant="paper"` |
    |---|---|---|
    | 4 | an EMA teacher, in eval mode | the network itself, in train mode |
    | 1 to 3, 5 | skipped: the direct prediction is better | $\lambda \le 0.5$, subtracts the partner's prediction |
    | 6 | yes, as far as labeled images show that it can be trusted | no |
    | 7 | a strong view; and the image with half of its feature channels dropped | the unchanged image |
    | 8 | cross-entropy of pixels that are 95 % sure | squared error; $L_{cla}$, $L_{dec}$ |

    With `direct` below 1 the default mixes as well: at 0.5 the mask is the mean of the direct and the decoupled mask.
    `docs/parts.md` shows what each of these contributes. `paste=ClassPaste(classes)` also pastes a class of the
    labeled partner into the image before the loss, with its true mask ([`ClassPaste`][gmix.ClassPaste]).

    Args:
        net: The network to train; `net.model` is deployed.
        variant: The source of the parts that are not given.
        mean: Mean per channel that the images (in 0..1) were normalised with.
        std: Standard deviation per channel that they were normalised with. The strong colours use both.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class; None leaves it to the criterion, which ignores 255.
        **parts: Any of [`GuidedMixParts`][gmix.methods.GuidedMixParts]. `direct` is the weight of the direct
            prediction against the decoupled one, in [0, 1]; `true_masks` subtracts the partner's mask instead of
            its prediction; `pair_across` looks for partners among the labeled images of all processes that train
            together; `views` is the number of strong views learned per image; `drop` is the probability of
            dropping each feature channel when the unchanged image is learned (0: it is not learned).
            `criterion={"classification": 0.1}` and `criterion=GuidedMixLoss(classification=0.1)` both change only this
            option and keep the variant's values of the others.

    Returns:
        `supervised`, `unsupervised` and `total`, with `variant="paper"` also `classification` and
        `decoupling`.

    Raises:
        TypeError: If a value is not a part, or a part does not have an option.
        ValueError: If a part is unknown, a required part is None, or `ignore_index` has two different values.

    Reference:
        Tu et al., "GuidedMix-Net: Learning to Improve Pseudo Masks Using Labeled Images as Reference", 2022.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> _ = torch.manual_seed(0)
        >>> net = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3))
        >>> method = GuidedMix(net)
        >>> x_l, y_l = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
        >>> method.remember(list(zip(x_l, y_l)))
        >>> losses = method(x_l, y_l, torch.randn(4, 3, 64, 64), progress=0.5)
        >>> losses["total"].backward()
        >>> sorted(losses)
        ['supervised', 'total', 'unsupervised']
    """

    multilabel = True

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        variant: Variant = "default",
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        supervised: protocols.SupervisedLoss | None = None,
        ignore_index: int | None = None,
        **parts: Unpack[GuidedMixParts],
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"`variant` must be one of {[*VARIANTS]}, got {variant!r}")
        if unknown := sorted(parts.keys() - VARIANTS[variant].keys()):
            known = sorted(VARIANTS[variant])
            raise ValueError(f"GuidedMix has no part {unknown[0]!r}: choose from {known}")
        if missing := [name for name in REQUIRED if parts.get(name, "") is None]:
            raise ValueError(f"`{missing[0]}` cannot be None: no step does without it")
        further: dict[str, Options] = {
            "color": {"mean": mean, "std": std},
            "criterion": {} if ignore_index is None else {"ignore_index": ignore_index},
        }
        super().__init__(net, supervised=supervised)
        asked = {**VARIANTS[variant], **parts}
        if isinstance(asked.get("reference"), Mapping):
            self.require("encoder", otherwise="wrap the model, or pass reference=None")
        if asked.get("mixed_head") is not None:
            self.require("head", "decoder_map", "crop")
        if self.planes is not None:
            check_overlap(asked)
        chosen = make_parts(net, variant, parts, further)
        if not within(chosen["direct"], 0, 1):
            raise ValueError(f"`direct` is a weight in [0, 1], got {chosen['direct']!r}")
        check_criterion(chosen["criterion"], ignore_index)
        self.ignore_index = chosen["criterion"].ignore_index
        if not within(chosen["views"], 1, kind=Integral):
            raise ValueError(
                f"`views` must be at least 1 and a whole number, got {chosen['views']!r}"
            )
        check_unit_interval("drop", chosen["drop"])
        # Only with its loss: the optimizer must not get a parameter without a gradient.
        self.classifier: nn.Linear | None = None
        if chosen["criterion"].classification > 0:
            if self.planes is not None:
                raise ValueError(
                    "with classes that overlap (MultiLabelNet) there is no image-level classifier: pass "
                    'criterion={"classification": 0.0}'
                )
            self.require("embedding_dim")
            device = next(net.parameters()).device
            self.classifier = nn.Linear(net.embedding_dim, net.classes, device=device)
        self.selector: protocols.PairSelector = chosen["selector"]
        self.mixer: protocols.Mixer = chosen["mixer"]
        self.decoupler: protocols.Decoupler = chosen["decoupler"]
        self.adjustment: protocols.LogitAdjuster | None = chosen["adjustment"]
        self.criterion: protocols.Criterion = chosen["criterion"]
        self.mixed_head: MixedHead | None = chosen["mixed_head"]
        if self.mixed_head is not None and self.criterion.decoupling > 0:
            raise ValueError(
                "with a `mixed_head` there is no L_dec: the weight `decoupling` must be 0"
            )
        self.teacher: protocols.Teacher | None = chosen["teacher"]
        self.reference: protocols.Reference | None = chosen["reference"]
        # A reference that the caller built may have another encoder on purpose.
        self.warn_if_stale = not isinstance(parts.get("reference"), nn.Module)
        self.color: protocols.Augmentation | None = chosen["color"]
        self.blur: protocols.Augmentation | None = chosen["blur"]
        self.paste: protocols.RegionSampler | None = chosen["paste"]
        self.cutmix: protocols.BoxSampler | None = chosen["cutmix"]
        self.direct: float = chosen["direct"]
        self.true_masks: bool = chosen["true_masks"]
        self.pair_across: bool = chosen["pair_across"]
        self.views: int = chosen["views"]
        self.drop: float = chosen["drop"]

    @property
    def threshold(self) -> float:  # type: ignore[override]
        """Return the least confidence of a pixel that is learned."""
        return self.criterion.threshold

    def remember(self, labeled: protocols.LabeledDataset) -> None:
        """Show the labeled images to the reference, which has no effect without them."""
        if self.reference is not None:
            if self.warn_if_stale and isinstance(self.reference, LabeledReference):
                warn_of_other_weights(self.reference, self.net.encoder)
            first = labeled[0][0] if len(labeled) else None
            if (
                isinstance(first, Tensor) and first.dim() == 3
            ):  # else the reference says what is wrong
                if isinstance(self.net, GuidedMixNet):
                    self.net.check_images(first[None])
                self.check_values(first[None])
            self.reference.remember(labeled, ignore_index=self.ignore_index)

    def observe(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Count the pixels of the labeled classes."""
        if self.adjustment is not None:
            self.adjustment.add(y_labeled, ignore_index=self.ignore_index)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the terms of the criterion, see [`GuidedMixLoss`][gmix.GuidedMixLoss]."""
        if self.mixed_head is not None:
            return self._learn_mixed_maps(step, self.mixed_head)
        x_labeled, generator = step.x_labeled, step.generator
        x_student, pseudo, valid = self._student_views(step)
        n, size = len(x_labeled), (x_labeled.shape[2], x_labeled.shape[3])
        m = len(step.x_unlabeled) if self.drop > 0 else 0
        features = self.net.encode(torch.cat([x_labeled, x_student]))
        embedding = self.net.pool(features)[:n]
        logits = self.net.decode([torch.cat([f[:n], f[n + m :]]) for f in features], size)
        # Not two slices: the gradient of a slice is a tensor as large as the whole.
        labeled, unlabeled = torch.split(logits, [n, len(x_student) - m])
        if m > 0:
            # Separately: in the same batch, the dropped channels would change the BatchNorm statistics of the others.
            own = disturb([f[n : n + m] for f in features], self.drop, generator)
            unlabeled = torch.cat([self.net.decode(own, size), unlabeled])
        further: dict[str, Tensor] = {}
        if self.criterion.decoupling > 0:
            further = self._decouple_labeled(x_labeled, labeled, embedding, generator)
        further |= {"logits_unlabeled": unlabeled, "pseudo": pseudo}
        return self._weigh(step, labeled, embedding, further, valid)

    def _learn_mixed_maps(self, step: Step, head: MixedHead) -> dict[str, Tensor]:
        """Compute the losses of the released code: what is left of mixed features learns the direct prediction."""
        x_labeled, _, x_unlabeled, _, valid, generator = step
        n, size = len(x_labeled), (x_labeled.shape[2], x_labeled.shape[3])
        features = self.net.encode(torch.cat([x_labeled, x_unlabeled]))
        embedding, maps = self.net.pool(features), self.net.decoder_map(features)
        logits = self.net.crop(self.net.head(maps), size)
        labeled, direct = torch.split(logits, [n, len(x_unlabeled)])
        chosen = self.selector(embedding[n:], embedding[:n], generator=generator)
        mixed = self.mixer(maps[:n][chosen], maps[n:], generator=generator)
        predicted = self.net.crop(head(mixed.image, generator), size)
        # As in their code, the labeled logits get a gradient from this, too.
        left = self.decoupler(predicted, labeled[chosen], mixed.lam)
        pseudo = G.probabilities(direct).detach()
        further = {"logits_unlabeled": left, "pseudo": pseudo}
        return self._weigh(step, labeled, embedding[:n], further, valid)

    def _weigh(
        self,
        step: Step,
        labeled: Tensor,
        embedding: Tensor,
        further: dict[str, Tensor],
        valid: Tensor | None,
    ) -> dict[str, Tensor]:
        """Compute the criterion of logits and embeddings of the labeled images, and of its `further` inputs."""
        if self.classifier is not None:
            further["class_logits"] = self.classifier(embedding)
        if self.adjustment is not None:
            labeled = self.adjustment(labeled)
        y = step.y_labeled
        losses: dict[str, Tensor] = self.criterion(
            labeled,
            y,
            supervised=self.supervised(labeled, y),
            valid=valid,
            progress=step.progress,
            **further,
        )
        return losses

    def _student_views(self, step: Step) -> tuple[Tensor, Tensor, Tensor | None]:
        """Make the student's images, their pseudo masks, and the valid pixels of these."""
        guidance = self.guide(step.x_labeled, step.y_labeled, step.x_unlabeled, step.generator)
        partners, pseudo = guidance.partners, guidance.pseudo
        del guidance  # its other tensors are three times as large as the pseudo masks
        x, valid = step.x_unlabeled, step.valid
        if self.paste is not None:
            assert partners is not None  # pasting needs partners
            region = self.paste(partners.y, step.generator) & (partners.y != self.ignore_index)
            known = G.fill_in(pseudo, partners.y, self.ignore_index)
            pseudo = torch.where(region[:, None], known, pseudo)
            x = torch.where(region[:, None], partners.x, x)
            valid = None if valid is None else valid | region
        views, targets, valids = [], [], []
        if self.drop > 0:
            views, targets, valids = [x], [pseudo], [] if valid is None else [valid]
        for _ in range(self.views):
            view = x if self.color is None else self.color(x, step.generator)
            view = view if self.blur is None else self.blur(view, step.generator)
            pasted = None if self.cutmix is None else self.cutmix(view, step.generator)
            views.append(view if pasted is None else pasted.apply(view))
            targets.append(pseudo if pasted is None else pasted.apply(pseudo))
            if valid is not None:
                valids.append(valid if pasted is None else pasted.apply(valid))
        return torch.cat(views), torch.cat(targets), torch.cat(valids) if valids else None

    def pseudo_masks(
        self,
        x_labeled: Tensor,
        y_labeled: Tensor,
        x_unlabeled: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Compute the pseudo masks `(M, K, H, W)` of `x_unlabeled`, with the labeled images as partners."""
        if isinstance(self.teacher, EMATeacher):
            self.teacher.catch_up(self.net)
        # With variant="paper" the network itself predicts the mixes, which would change its BatchNorm statistics.
        with eval_mode(self.net):
            return self.guide(x_labeled, y_labeled, x_unlabeled, generator).pseudo

    @torch.no_grad()
    def guide(
        self,
        x_labeled: Tensor,
        y_labeled: Tensor,
        x_unlabeled: Tensor,
        generator: torch.Generator | None = None,
    ) -> Guidance:
        """Compute the pseudo masks of `x_unlabeled`, and return every step on the way."""
        predictor = self.net if self.teacher is None else self.teacher.net
        partners, mix = None, None
        if self.direct == 1 and self.paste is None:
            pseudo = direct = G.probabilities(predictor(x_unlabeled))
        else:
            partners, direct, mix = self._pair_and_mix(
                predictor, x_labeled, y_labeled, x_unlabeled, generator
            )
            pseudo = direct if mix is None else torch.lerp(mix.decoupled, direct, self.direct)
        if self.reference is not None:
            pseudo = self.reference(pseudo, x_unlabeled)
        forget_casts()
        return Guidance(partners, direct, mix, pseudo)

    def _pair_and_mix(
        self,
        predictor: GuidedMixNet,
        x_labeled: Tensor,
        y_labeled: Tensor,
        x_unlabeled: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Partners, Tensor, Mix | None]:
        """Find partners, predict directly, and mix if `direct` is below 1."""
        n, size = len(x_labeled), (x_labeled.shape[2], x_labeled.shape[3])
        features = predictor.encode(torch.cat([x_labeled, x_unlabeled]))
        key, query = predictor.pool(features).tensor_split([n])
        mixes = self.direct < 1
        if not mixes:  # predictions for the labeled images are not needed
            features = [f[n:] for f in features]
        probs = G.probabilities(predictor.decode(features, size))
        labeled, direct = probs.tensor_split([n]) if mixes else (probs[:0], probs)
        if self.pair_across and self.training:
            key, x_labeled, y_labeled, labeled = map(gather, (key, x_labeled, y_labeled, labeled))
        chosen = self.selector(query, key, generator=generator)
        partners = Partners(chosen, x_labeled[chosen], y_labeled[chosen], query, key)
        if not mixes:
            return partners, direct, None
        mixed = self.mixer(partners.x, x_unlabeled, generator=generator)
        predicted = G.probabilities(predictor(mixed.image))
        labeled = labeled[chosen]
        if self.true_masks:
            labeled = G.fill_in(labeled, partners.y, self.ignore_index)
        decoupled = self.decoupler(predicted, labeled, mixed.lam)
        return partners, direct, Mix(mixed.image, mixed.lam, predicted, labeled, decoupled)

    def _look_once(self, *images: Tensor) -> None:
        compiling = torch.compiler.is_compiling()
        if not (
            self.images_seen or compiling or self.reference is None or self.reference.remembers
        ):
            warnings.warn(
                "GuidedMix has not seen the labeled images, so its reference is silent: call "
                "`method.remember(labeled)` once before training, with the images as they are tested",
                stacklevel=4,
            )
        super()._look_once(*images)

    def _check_labeled(self, x: Tensor, y: Tensor) -> Tensor:
        y = super()._check_labeled(x, y)
        if self.criterion.decoupling > 0 and len(x) < 2:
            raise ValueError("L_dec needs two labeled images or more, got 1")
        return y

    def _decouple_labeled(
        self,
        x: Tensor,
        logits: Tensor,
        embedding: Tensor,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """Decouple two labeled images (Eq. 11-12); only the mixed prediction gets a gradient."""
        probs = G.probabilities(logits).detach()
        partner = self.selector(embedding, embedding, exclude_self=True, generator=generator)
        mixed = self.mixer(x[partner], x, generator=generator)
        predicted = G.probabilities(self.net(mixed.image))
        return {
            "probs_decoupled": self.decoupler(predicted, probs[partner], mixed.lam),
            "decoupled_target": probs,
        }


def check_overlap(parts: Mapping[str, object]) -> None:
    """Refuse parts that compare classes with each other, for a network whose classes overlap.

    Raises:
        ValueError: If there is one.
    """
    for name in ("reference", "adjustment", "paste", "mixed_head"):
        if parts.get(name) is not None:
            raise ValueError(
                f"`{name}` compares classes with each other, and those of a MultiLabelNet overlap: pass {name}=None"
            )


def warn_of_other_weights(reference: LabeledReference, encoder: nn.Module) -> None:
    """Warn if a reference was copied from the encoder before its weights were loaded."""
    pairs = zip(reference.encoder.parameters(), encoder.parameters(), strict=True)
    if not all(torch.equal(own, other) for own, other in pairs):
        warnings.warn(
            "the encoder has other weights than when GuidedMix was made, and its frozen copy compares pixels by "
            "those: load weights first, make the method after",
            stacklevel=3,
        )
