"""Find the layer with the deepest map of any model, by a trial forward."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gmix.nn.logits import find_logits
from gmix.nn.modes import eval_mode
from gmix.nn.split import Split, replaced_forwards

__all__ = ["Trial", "find_split", "try_model"]

NAMES = ("encoder", "backbone")
"""Modules of these names are tried first."""

TRIED = 12
"""Largest number of layers that are tried."""

OTHERWISE = (
    "name the layer with the deepest map, deepest='NAME' (one of `dict(model.named_modules())`), or write a network "
    "with the four methods of gmix.protocols.Network"
)


@dataclass
class Call:
    """A call of a module in the trial.

    Attributes:
        name: Its name in the model.
        start: When it began, counted in calls.
        end: When it ended.
        inside: Calls within it, in order.
        output: What it returned.
        cutting: Why its output cannot be kept as features; empty if it can.
        maps: The tensors of its output that are maps `(N, C, h, w)`, in proportion to the images.
    """

    name: str
    start: int = 0
    end: int = 0
    inside: list[Call] = field(default_factory=list)
    output: Any = None
    cutting: str = ""
    maps: list[Tensor] = field(default_factory=list)

    def depths(self) -> Iterator[tuple[int, Call]]:
        """Yield all calls within, with their depth."""
        for call in self.inside:
            yield 0, call
            for depth, other in call.depths():
                yield depth + 1, other

    def deepest(self) -> Tensor:
        """Return the coarsest of the maps; of several the widest, and the last."""
        return min(reversed(self.maps), key=lambda m: (m.shape[2] * m.shape[3], -m.shape[1]))


@dataclass
class Trial:
    """A forward pass in eval mode: every call, and the logits.

    Attributes:
        images: The images `(2, C, H, W)`.
        calls: The call of the model, with all others inside.
        logits: `(2, K, h, w)`.
    """

    images: Tensor
    calls: Call
    logits: Tensor


def try_model(model: nn.Module, images: Tensor) -> Call:
    """Run a model on images, and keep what each of its modules returns.

    Examples:
        >>> call = try_model(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1)), torch.zeros(2, 3, 4, 6))
        >>> [(each.name, each.deepest().shape) for each in call.inside]
        [('0', torch.Size([2, 8, 2, 3]))]
    """
    names = [name for name, _ in model.named_modules() if name]
    root, clock = Call(""), 0
    stack = [root]

    def record(name: str, original: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal clock
            clock += 1
            call = Call(name, clock)
            stack[-1].inside.append(call)
            stack.append(call)
            try:
                call.output = original(*args, **kwargs)
            finally:
                stack.pop()
            clock += 1
            call.end = clock
            return call.output

        return forward

    with replaced_forwards(model, names, record):
        root.output = model(images)
    for _, call in root.depths():
        leaves = pytree.tree_leaves(call.output)
        call.cutting = _cutting(leaves, len(images))
        call.maps = [leaf for leaf in leaves if _is_map(leaf, images)]
    return root


def _is_map(leaf: Any, images: Tensor) -> bool:
    """Return whether a value is a map with the proportions of the images, which one pooled to a fixed size has not."""
    if not isinstance(leaf, Tensor) or leaf.dim() != 4 or len(leaf) != len(images):
        return False
    (h, w), (height, width) = leaf.shape[2:], images.shape[2:]
    return 1 < h <= height and h * width == w * height


def _cutting(leaves: list[Any], n: int) -> str:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    if not tensors:
        return "it returns no tensor"
    if any(t.dim() == 0 or len(t) != n or not t.is_floating_point() for t in tensors):
        return "it returns other tensors than floating-point numbers for each image"
    if not all(
        leaf is None or isinstance(leaf, int | float | str | torch.dtype) for leaf in others
    ):
        return "it returns objects that are no tensors"
    return ""


def find_split(model: nn.Module, trial: Trial, deepest: str | None = None) -> Split:
    """Cut a model after its deepest map: the last feature is that map.

    Modules called `encoder` or `backbone` are tried first, outermost first. Then come the modules that return the
    coarsest maps: the outermost first, of these the one with most channels, of these the last. A layer is taken if
    `decode(encode(x))` is what the model returns, also for a part of the batch, and if it depends on the map.

    Args:
        model: The model, in any mode.
        trial: A forward pass of it.
        deepest: Name of the layer to take.

    Raises:
        ValueError: If no layer can be taken, or not this one.
    """
    if deepest is not None:
        calls = [call for _, call in trial.calls.depths() if call.name == deepest]
        if not calls:
            known = [name for name, _ in model.named_modules()]
            near = difflib.get_close_matches(deepest, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"`deepest` must name a module that the model calls, one of `dict(model.named_modules())`, got "
                f"{deepest!r}{hint}"
            )
        try:
            return _cut(model, trial, min(calls, key=_coarse))
        except _Unfit as error:
            raise ValueError(
                f"{type(model).__name__} cannot be cut at {deepest!r}: {error}"
            ) from error
    reasons = []
    for call in list(_candidates(model, trial))[:TRIED]:
        try:
            return _cut(model, trial, call)
        except _Unfit as error:
            reasons.append(f"; at {call.name!r}, {error}")
    raise ValueError(
        f"no layer was found where {type(model).__name__} can be cut into encoder and decoder"
        f"{reasons[0] if reasons else ''}: {OTHERWISE}"
    )


def _coarse(call: Call) -> int:
    return call.deepest().shape[2] if call.maps else 2**31


def _candidates(model: nn.Module, trial: Trial) -> Iterator[Call]:
    calls = [(depth, call) for depth, call in trial.calls.depths() if call.maps]
    calls = [(depth, call) for depth, call in calls if not call.cutting]
    learned = {name for name, m in model.named_modules() if any(True for _ in m.parameters(False))}
    last = max((c.start for _, c in trial.calls.depths() if c.name in learned), default=0)
    calls = [
        (depth, call) for depth, call in calls if call.end < last
    ]  # something must be left to decode
    whole = trial.images.shape[2]
    named = [
        (depth, call)
        for depth, call in calls
        if call.name.rpartition(".")[2] in NAMES and call.deepest().shape[2] < whole
    ]
    for _, call in sorted(named, key=lambda each: each[0]):
        yield call
    for _, call in sorted(
        calls,
        key=lambda each: (
            each[1].deepest().shape[2],
            each[0],
            -each[1].deepest().shape[1],
            -each[1].end,
        ),
    ):
        yield call


class _Unfit(Exception):
    """A layer where a model cannot be cut, with the reason."""


def _cut(model: nn.Module, trial: Trial, call: Call) -> Split:
    if call.cutting or not call.maps:
        raise _Unfit(call.cutting or "it returns no map (N, C, h, w)")
    before = list(_before(trial.calls, call))
    names = [each.name for each in before]
    leaves = [leaf for each in before for leaf in pytree.tree_leaves(each.output)]
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    last = len(leaves) - len(pytree.tree_leaves(call.output))
    try:
        used, modified, image = _used(Split(model, names, kept=tensors, image=True), trial)
    except (
        Exception
    ) as error:  # of the model's code, which is called in another way than it expects
        raise _Unfit(f"the model fails ({type(error).__name__}: {error})") from error
    maps = [i for i in used if i >= last and _is_map(leaves[i], trial.images)]
    if not maps:
        raise _Unfit("the logits do not depend on its maps")
    deepest = min(
        reversed(maps), key=lambda i: (leaves[i].shape[2] * leaves[i].shape[3], -leaves[i].shape[1])
    )
    # As in SMP: tokens first, then the maps, finest first, deepest last.
    order = sorted(
        used,
        key=lambda i: (
            i == deepest,
            leaves[i].dim() == 4,
            -leaves[i].shape[2] * leaves[i].shape[3] if leaves[i].dim() == 4 else 0,
        ),
    )
    split = Split(model, names, kept=order, modified=modified, image=image)
    if not _same(split, trial):
        raise _Unfit(
            "the decoder gives other logits when it gets only the outputs of the layers before it"
        )
    return split


def _before(root: Call, cut: Call) -> Iterator[Call]:
    """Yield the outermost calls that can be kept, in order, up to the cut."""
    for call in root.inside:
        if call.start > cut.start:
            return
        if call.start <= cut.start and call.end >= cut.end and call is not cut:
            yield from _before(call, cut)
        elif call is cut or not call.cutting:
            yield call
        else:
            yield from _before(call, cut)


def _used(split: Split, trial: Trial) -> tuple[list[int], list[int], bool]:
    """Find the tensors that the logits depend on, those that the model changes in place, and whether images count."""
    assert split.kept is not None
    with torch.inference_mode(False), eval_mode(split.model), torch.random.fork_rng(_gpus(trial)):
        with torch.no_grad():
            features = split.encode(trial.images.clone())
        with torch.enable_grad():
            starts = [f.detach().clone().requires_grad_() for f in features]
            given = [start.clone() for start in starts]
            versions = [f._version for f in given]
            size = (trial.images.shape[2], trial.images.shape[3])
            logits = find_logits(split.decode(given, size))
            found = (
                torch.autograd.grad(logits.float().sum(), starts, allow_unused=True)
                if logits.requires_grad
                else [None] * len(starts)
            )
    used = [i for i, gradient in zip(split.kept, found[1:], strict=True) if gradient is not None]
    modified = [
        i
        for i, f, version in zip(split.kept, given[1:], versions[1:], strict=True)
        if f._version != version
    ]
    return used, modified, found[0] is not None


@torch.no_grad()
def _same(split: Split, trial: Trial) -> bool:
    size = (trial.images.shape[2], trial.images.shape[3])
    with eval_mode(split.model), torch.random.fork_rng(_gpus(trial)):
        features = split.encode(trial.images)
        before = [f.clone() for f in features]
        try:
            both = find_logits(split.decode(features, size))
            second = find_logits(split.decode([f[1:] for f in features], size))
        except Exception:  # of the model's code
            return False
    kept = all(torch.equal(f, old) for f, old in zip(features, before, strict=True))
    scale = float(trial.logits.abs().max())
    return (
        kept
        and both.shape == trial.logits.shape
        and torch.allclose(both, trial.logits, rtol=1e-4, atol=1e-5 * scale)
        and torch.allclose(second, trial.logits[1:], rtol=1e-3, atol=1e-4 * scale)
    )


def _gpus(trial: Trial) -> list[torch.device]:
    return [trial.images.device] if trial.images.device.type == "cuda" else []
