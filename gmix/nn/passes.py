"""The cost of a step: the number of images that go through encoders."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmix.nn.network import GuidedMixNet
from gmix.nn.reference import LabeledReference


def count_first_step(method: nn.Module, tell: Callable[[int], None], *, calls: int = 1) -> None:
    """Count the images that go through an encoder the next time the method is called.

    Teachers, second students and frozen references count like the network itself: an image that
    goes through two encoders is two passes.

    Args:
        method: Any training method; the hooks are removed after the call.
        tell: Called with the number.
        calls: Number of calls of the method in a step, for a step of several micro-batches.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> from gmix.methods import FixMatch
        >>> net = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=2))
        >>> method = FixMatch(net)
        >>> count_first_step(method, lambda images: print(images, "passes"))
        >>> x, y = torch.randn(2, 3, 32, 32), torch.randint(2, (2, 32, 32))
        >>> _ = method(x, y, torch.randn(3, 3, 32, 32))  # 2 labeled + 3 weak + 3 strong views
        8 passes
    """
    images = 0

    def count(encoder: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal images
        images += len(inputs[0])

    def finish(method: nn.Module, inputs: tuple[Any, ...], losses: Any) -> None:
        nonlocal calls
        calls -= 1
        if calls > 0:
            return
        for handle in handles:
            handle.remove()
        tell(images)

    handles = [encoder.register_forward_pre_hook(count) for encoder in encoders(method)]
    handles.append(method.register_forward_hook(finish))


def count_passes(method: nn.Module, batch: Sequence[Tensor | None]) -> int:
    """Count the passes on a copy, for a method that will be compiled: its graph would include the counting.

    Args:
        method: Any training method; not changed.
        batch: Labeled images, their masks, unlabeled images and their valid pixels, on the method's device.
    """
    counted, passes = copy.deepcopy(method), list[int]()
    count_first_step(counted, passes.append)
    x_labeled, y_labeled, x_unlabeled, valid = batch
    with torch.no_grad():
        counted(x_labeled, y_labeled, x_unlabeled, progress=1.0, valid_unlabeled=valid)
    return passes[0]


def encoders(method: nn.Module) -> list[nn.Module]:
    """List the modules of a method through which images go into an encoder, once each."""
    found: list[nn.Module] = []
    for module in method.modules():
        if isinstance(module, GuidedMixNet):
            found.append(module.entry)
        elif isinstance(module, LabeledReference):
            found.append(module.encoder)
    return found
