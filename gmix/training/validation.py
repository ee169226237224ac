"""The quality of a training so far: scores of the finished network, and of its pseudo masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from gmix.data import eval_transform
from gmix.evaluation import Scores, add_other_processes, count_pixels
from gmix.evaluation.scoring import BATCH_SIZE
from gmix.nn.network import GuidedMixNet
from gmix.training.quality import judge_pseudo_masks
from gmix.training.session import Session

__all__ = ["Validation", "validate"]


class Validation(NamedTuple):
    """A finished network and its scores."""

    net: GuidedMixNet
    scores: Scores | None  # None without validation images
    pseudo: dict[str, Any] | None  # scores of the pseudo masks; None without held-out images


def validate(session: Session, tell: Callable[[str], None]) -> Validation:
    """Finish the current network, and score it and the method; all processes must call it, and share the images.

    Args:
        session: The training; not changed.
        tell: Called with messages for the user, for instance about images that cannot be read.

    Raises:
        ValueError: In all processes, if one cannot read an image.
    """
    net = session.finished_net(tell)
    return Validation(net, score(session, net), judge(session))


def score(session: Session, net: GuidedMixNet) -> Scores | None:
    """Score a network on the validation images, if there are any."""
    data, processes = session.data, session.processes
    if data.validation is None:
        return None
    count = partial(
        count_pixels,
        net,
        data.validation,
        data.classes,
        transform=eval_transform(*session.stats),
        size=session.size,
        device=session.device,
        indices=processes.shard(data.counts["validation"], BATCH_SIZE),
    )
    return add_other_processes(processes.together(count)).scores()


def judge(session: Session) -> dict[str, Any] | None:
    """Score the method's pseudo masks, if there are held-out images."""
    return judge_pseudo_masks(
        session.state.method,
        session.data,
        transform=eval_transform(*session.stats),
        batch_labeled=session.config.batch_labeled,
        seed=session.config.seed,
    )
