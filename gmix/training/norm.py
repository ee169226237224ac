"""New BatchNorm statistics, computed before a network is tested and saved."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from gmix.data import Batch
from gmix.nn.network import GuidedMixNet
from gmix.nn.views import CutMix, StrongColor
from gmix.training.fit import step_seed

__all__ = ["renew_statistics", "unlabeled_views"]


def renew_statistics(net: GuidedMixNet, images: Iterable[Tensor]) -> GuidedMixNet:
    """Copy a network, with BatchNorm statistics computed on `images`.

    After training, the statistics are those of all passes of the method, half of them over the few labeled images,
    which it has memorised. `docs/experiments.md` shows the effect of other images. The weights, the network in
    training and torch's generators do not change.

    Args:
        net: The network. Without BatchNorm the copy equals it.
        images: Batches `(N, C, H, W)` of at least two images, on its device.

    Returns:
        The copy, in eval mode.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> net = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=2))
        >>> renewed = renew_statistics(net, [torch.randn(2, 3, 64, 64) + 5])
        >>> bool((net.model.encoder.bn1.running_mean == 0).all())
        True
        >>> bool((renewed.model.encoder.bn1.running_mean == 0).any())
        False
    """
    renewed = copy.deepcopy(net)
    device = next(net.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)  # for dropout, which is active while statistics are computed
        update_bn(images, renewed)
    return renewed.eval()


def unlabeled_views(
    batches: Iterable[Batch],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    device: torch.device,
    supervised: bool = False,
) -> Iterator[Tensor]:
    """Yield, for each batch, the unchanged unlabeled crops and as many images as in training.

    The first are like the images to predict. The others are the crops as students see them (colours, CutMix) or, for a
    network trained `supervised`, the labeled images. Either half alone is worse on some data.

    Yields:
        `(2M, C, H, W)`, on the device; with `supervised` `(M + N, C, H, W)`.
    """
    generator = torch.Generator(device).manual_seed(step_seed(seed, 0, "views"))
    color, cutmix = StrongColor(mean=mean, std=std).to(device), CutMix()
    for batch in batches:
        moved = batch.to(device)
        x = moved.x_unlabeled
        assert x is not None
        if supervised:
            yield torch.cat([x, moved.x_labeled])
        else:
            view = color(x, generator)
            yield torch.cat([x, cutmix(view, generator).apply(view)])
