"""GuidedMix: learn pseudo masks with labeled images as reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from gmix import functional as G
from gmix.adjustment import LogitAdjustment
from gmix.decoupler import SoftDecoupler
from gmix.losses import GuidedMixLoss
from gmix.methods.method import Method, Step
from gmix.mixer import LabeledUnlabeledMixer
from gmix.modes import eval_mode
from gmix.network import GuidedMixNet
from gmix.pairing import RandomPairSelector, SimilarPairSelector
from gmix.paste import ClassPaste
from gmix.processes import gather
from gmix.reference import LabeledReference
from gmix.teacher import EMATeacher
from gmix.views import CutMix, StrongColor

__all__ = ["Guidance", "GuidedMix", "GuidedMixParts", "Mix"]

Variant = Literal["default", "paper"]


class GuidedMixParts(TypedDict, total=False):
    """What can be exchanged in `GuidedMix`; None takes a part out where that is allowed."""

    selector: SimilarPairSelector | RandomPairSelector
    mixer: LabeledUnlabeledMixer
    decoupler: SoftDecoupler
    adjustment: LogitAdjustment | None
    criterion: GuidedMixLoss
    teacher: EMATeacher[GuidedMixNet] | None
    reference: LabeledReference | None
    color: StrongColor | None
    paste: ClassPaste | None
    cutmix: CutMix | None
    direct: float
    true_masks: bool
    pair_across: bool


class Mix(NamedTuple):
    """Unlabeled images with some of their partners in them, and what remains of the prediction."""

    image: Tensor  # (N, C, H, W)
    lam: Tensor  # (N,) share of the partner
    predicted: Tensor  # (N, K, H, W) probabilities
    decoupled: Tensor  # (N, K, H, W) the labeled part taken out


class Guidance(NamedTuple):
    """How the pseudo masks of a batch of unlabeled images came about, step by step."""

    partner: Tensor  # (N,) int64: which labeled image each unlabeled one was paired with
    x_partner: Tensor  # (N, C, H, W) these images
    y_partner: Tensor  # (N, H, W) and their masks
    direct: Tensor  # (N, K, H, W) probabilities of the unlabeled images as they are
    mix: Mix | None  # None where nothing is mixed, with `direct=1.0`
    pseudo: Tensor  # (N, K, H, W) the target of the student


def default_parts(
    net: GuidedMixNet,
    mean: Sequence[float] | float,
    std: Sequence[float] | float,
    given: GuidedMixParts,
) -> GuidedMixParts:
    """`variant="default"`, but for what is given: the settings measured in `docs/results.md`."""
    parts: GuidedMixParts = {
        "selector": SimilarPairSelector(),
        "mixer": LabeledUnlabeledMixer(max_lambda=0.3),
        "decoupler": SoftDecoupler(),
        "adjustment": LogitAdjustment(net.classes),
        "criterion": GuidedMixLoss(objective="soft_cross_entropy", decoupling=0.0, certainty=1.0),
        "color": StrongColor(mean=mean, std=std),
        "paste": None,
        "cutmix": CutMix(),
        "direct": 0.5,
        "true_masks": True,
        "pair_across": False,
    }
    # These copy a network, and not every encoder can be a reference.
    if "teacher" not in given:
        parts["teacher"] = EMATeacher(net, decay=0.99)
    if "reference" not in given:
        parts["reference"] = LabeledReference(net.model.encoder, net.classes)
    return parts | given


def paper_parts(given: GuidedMixParts) -> GuidedMixParts:
    """`variant="paper"`, but for what is given: one network, squared error, every equation as printed."""
    parts: GuidedMixParts = {
        "selector": SimilarPairSelector(),
        "mixer": LabeledUnlabeledMixer(),
        "decoupler": SoftDecoupler(),
        "adjustment": None,
        "criterion": GuidedMixLoss(),
        "teacher": None,
        "reference": None,
        "color": None,
        "paste": None,
        "cutmix": None,
        "direct": 0.0,
        "true_masks": False,
        "pair_across": False,
    }
    return parts | given


REQUIRED = ("selector", "mixer", "decoupler", "criterion")


class GuidedMix(Method):
    r"""Mix each unlabeled image with its most similar labeled one and learn what the labeled one does not explain.

    One call is one step:

    1. **embed** labeled and unlabeled images: pooled deepest features;
    2. **pair** each unlabeled image with its nearest labeled one;
    3. **mix** the two images, $\lambda x_l + (1-\lambda) x_u$;
    4. **predict** the mix;
    5. **decouple**: take $\lambda$ times the labeled part out; what remains is a pseudo mask;
    6. **refer**: weigh it by what labeled pixels with similar features are
       ([`LabeledReference`][gmix.LabeledReference]);
    7. **view**: change the unlabeled images strongly, and paste boxes into them and the pseudo masks alike;
    8. **loss**: train the network towards these, and on the labeled images.

    Before them, [`begin`][gmix.methods.Method.begin] lets the teacher move on and remembers the labeled images.

    | step | `variant="default"` | `variant="paper"` |
    |---|---|---|
    | 1, 4 | an EMA teacher, in eval mode | the network itself, in train mode |
    | 3 | $\lambda \le 0.3$ | $\lambda \le 0.5$ |
    | 5 | subtracts the partner's true mask, averages with the direct prediction | its prediction |
    | 6 | yes | no |
    | 7 | colours, CutMix | the image as it is |
    | 8 | labeled logits adjusted for class frequency | as they are |
    | 8 | soft cross-entropy, sure pixels first | squared error; $L_{dec}$ |

    `docs/parts.md` shows what each of these is worth. `paste=ClassPaste(classes)` also pastes a class of the
    labeled partner into the image before the loss, with its true mask ([`ClassPaste`][gmix.ClassPaste]).

    Args:
        net: The network to train; what is deployed is `net.model`.
        variant: Where the parts come from that are not given.
        mean: Per channel, what was subtracted from the images (in 0..1) when they were normalised.
        std: Per channel, what they were divided by. Both serve the strong colours.
        **parts: Any of [`GuidedMixParts`][gmix.methods.GuidedMixParts]. `direct` is the weight of the direct
            prediction beside the decoupled one, in [0, 1]; `true_masks` subtracts the partner's mask instead of
            its prediction; `pair_across` looks for partners among the labeled images of all processes that train
            together.

    Returns:
        `supervised`, `classification`, `unsupervised`, with `variant="paper"` also
        `decoupling`, and `total`.

    Raises:
        ValueError: An unknown part, or None for one that no step can do without.

    Reference:
        Tu et al., "GuidedMix-Net: Learning to Improve Pseudo Masks Using Labeled Images as Reference", 2022.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> _ = torch.manual_seed(0)
        >>> net = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3))
        >>> method = GuidedMix(net)
        >>> x_l, y_l = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
        >>> losses = method(x_l, y_l, torch.randn(4, 3, 64, 64), progress=0.5)
        >>> losses["total"].backward()
        >>> sorted(losses)
        ['classification', 'supervised', 'total', 'unsupervised']
    """

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        variant: Variant = "default",
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        **parts: Unpack[GuidedMixParts],
    ) -> None:
        if variant not in get_args(Variant):
            raise ValueError(f"`variant` must be one of {[*get_args(Variant)]}, got {variant!r}")
        super().__init__(net)
        paper = variant == "paper"
        chosen = paper_parts(parts) if paper else default_parts(net, mean, std, parts)
        known = sorted(GuidedMixParts.__annotations__)
        if unknown := sorted(chosen.keys() - known):
            if unknown[0] == "ignore_index":
                loss = repr(chosen["criterion"])[:-1]
                raise ValueError(
                    f"`ignore_index` is the loss's: criterion={loss}, ignore_index=...)"
                )
            raise ValueError(f"GuidedMix has no part {unknown[0]!r}: choose from {known}")
        if missing := [n for n, part in chosen.items() if n in REQUIRED and part is None]:
            raise ValueError(f"`{missing[0]}` cannot be None: no step does without it")
        if not 0 <= chosen["direct"] <= 1:
            raise ValueError(f"`direct` is a weight in [0, 1], got {chosen['direct']}")
        self.ignore_index = chosen["criterion"].ignore_index
        net.classifier.requires_grad_(True)
        self.selector = chosen["selector"]
        self.mixer = chosen["mixer"]
        self.decoupler = chosen["decoupler"]
        self.adjustment = chosen["adjustment"]
        self.criterion = chosen["criterion"]
        self.teacher = chosen["teacher"]
        self.reference = chosen["reference"]
        self.color = chosen["color"]
        self.paste = chosen["paste"]
        self.cutmix = chosen["cutmix"]
        self.direct = chosen["direct"]
        self.true_masks = chosen["true_masks"]
        self.pair_across = chosen["pair_across"]

    @property
    def threshold(self) -> float:  # type: ignore[override]
        """Least confidence of a pixel that is learned."""
        return self.criterion.threshold

    def begin(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """The teacher moves on; the labeled images are remembered, and the pixels of their classes counted."""
        super().begin(x_labeled, y_labeled)
        if self.reference is not None:
            self.reference.add(x_labeled, y_labeled, ignore_index=self.ignore_index)
        if self.adjustment is not None:
            self.adjustment.add(y_labeled, ignore_index=self.ignore_index)

    def losses(self, step: Step) -> dict[str, Tensor]:
        x_labeled, y_labeled, x_unlabeled, progress, valid, generator = step
        guidance = self.guide(x_labeled, y_labeled, x_unlabeled, generator)
        x_partner, y_partner, pseudo = guidance.x_partner, guidance.y_partner, guidance.pseudo
        x_student = x_unlabeled
        del guidance  # what else it holds is three times as large as the pseudo masks
        if self.paste is not None:
            region = self.paste(y_partner, generator) & (y_partner != self.ignore_index)
            known = G.fill_in(pseudo, y_partner, self.ignore_index)
            pseudo = torch.where(region[:, None], known, pseudo)
            x_student = torch.where(region[:, None], x_partner, x_student)
            valid = None if valid is None else valid | region
        if self.color is not None:
            x_student = self.color(x_student, generator)
        if self.cutmix is not None:
            pasted = self.cutmix(x_student, generator)
            x_student, pseudo = pasted.apply(x_student), pasted.apply(pseudo)
            valid = None if valid is None else pasted.apply(valid)

        n, size = len(x_labeled), (x_labeled.shape[2], x_labeled.shape[3])
        features = self.net.encode(torch.cat([x_labeled, x_student]))
        embedding = self.net.pool(features)
        logits = self.net.decode(features, size)
        # Not two slices: the gradient of a slice fills a tensor as large as the whole.
        labeled, unlabeled = torch.split(logits, [n, len(x_student)])
        decoupled: dict[str, Tensor] = {}
        if self.criterion.decoupling > 0:
            decoupled = self._decouple_labeled(x_labeled, labeled, embedding[:n], generator)
        if self.adjustment is not None:
            labeled = self.adjustment(labeled)
        losses: dict[str, Tensor] = self.criterion(
            labeled,
            y_labeled,
            class_logits=self.net.classify(embedding[:n]),
            logits_unlabeled=unlabeled,
            pseudo=pseudo,
            valid=valid,
            progress=progress,
            **decoupled,
        )
        return losses

    def pseudo_masks(
        self,
        x_labeled: Tensor,
        y_labeled: Tensor,
        x_unlabeled: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        # With variant="paper" it looks at the mixes itself, which would move its BatchNorm.
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
        """Make the pseudo masks of `x_unlabeled`, and keep every step to look at."""
        predictor = self.net if self.teacher is None else self.teacher.net
        n, size = len(x_labeled), (x_labeled.shape[2], x_labeled.shape[3])
        features = predictor.encode(torch.cat([x_labeled, x_unlabeled]))
        key, query = predictor.pool(features).tensor_split([n])
        labeled, direct = G.probabilities(predictor.decode(features, size)).tensor_split([n])
        if self.pair_across and self.training:
            key, x_labeled, y_labeled, labeled = map(gather, (key, x_labeled, y_labeled, labeled))
        partner = self.selector(query, key, generator=generator)
        x_partner, y_partner = x_labeled[partner], y_labeled[partner]
        mix, pseudo = None, direct
        if self.direct < 1:
            mixed = self.mixer(x_partner, x_unlabeled, generator=generator)
            predicted = G.probabilities(predictor(mixed.image))
            labeled = labeled[partner]
            if self.true_masks:
                labeled = G.fill_in(labeled, y_partner, self.ignore_index)
            decoupled = self.decoupler(predicted, labeled, mixed.lam)
            mix = Mix(mixed.image, mixed.lam, predicted, decoupled)
            pseudo = torch.lerp(decoupled, direct, self.direct)
        if self.reference is not None:
            pseudo = self.reference(pseudo, x_unlabeled)
        torch.clear_autocast_cache()  # as in `Method.pseudo_masks`
        return Guidance(partner, x_partner, y_partner, direct, mix, pseudo)

    def _check_labeled(self, x: Tensor, y: Tensor) -> None:
        super()._check_labeled(x, y)
        if self.criterion.decoupling > 0 and len(x) < 2:
            raise ValueError("L_dec needs two labeled images or more, got 1")

    def _decouple_labeled(
        self,
        x: Tensor,
        logits: Tensor,
        embedding: Tensor,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """Eq. 11-12: decoupling two labeled images; only the mixed prediction gets a gradient."""
        probs = G.probabilities(logits).detach()
        partner = self.selector(embedding, embedding, exclude_self=True, generator=generator)
        mixed = self.mixer(x[partner], x, generator=generator)
        predicted = G.probabilities(self.net(mixed.image))
        return {
            "probs_decoupled": self.decoupler(predicted, probs[partner], mixed.lam),
            "decoupled_target": probs,
        }
