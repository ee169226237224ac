"""Run any model up to a layer, and on from there with other features, without knowing its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gmix.nn.modes import eval_mode

__all__ = ["Split", "replaced_forwards"]

Forward = Callable[..., Any]


class Split:
    """Cut a model at a layer: `encode` stops there, `decode` goes on from there.

    `encode` calls the model, keeps what the outermost modules before the cut return, and ends the call after the last
    of them. `decode` calls the model again, but those modules return what they are given and compute nothing. So each
    layer runs once, and operations between the modules run twice. During a call, and only then, these modules have
    another `forward`: the model itself stays as it was.

    Args:
        model: Any module that is called with images.
        calls: Names of the modules whose outputs are kept, in the order of the calls; the last is the layer of the cut.
        kept: Which tensors of all their outputs, counted in that order, are features. None takes all.
        modified: Which of these the model changes in place: it gets a copy.
        image: Whether the images themselves are the first feature, because the model uses them after the cut.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> split, x = Split(model, ["0", "1"], kept=[1]), torch.randn(2, 3, 9, 9)
        >>> features = split.encode(x)
        >>> [tuple(f.shape) for f in features]
        [(2, 8, 4, 4)]
        >>> torch.equal(split.decode(features, (9, 9)), model(x))
        True
        >>> split.decode([0 * features[0]], (9, 9))[0, :, 0, 0].equal(model[2].bias)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[str],
        *,
        kept: Sequence[int] | None = None,
        modified: Sequence[int] = (),
        image: bool = False,
    ) -> None:
        self.model = model
        self.calls = list(calls)
        self.kept = None if kept is None else list(kept)
        self.modified = frozenset(modified)
        self.image = image
        # For each image size, how the outputs are built, and what in them is no feature: shapes and constants.
        self._outputs: dict[tuple[int, int], tuple[list[pytree.TreeSpec], list[Any]]] = {}
        self._channels = 0

    @property
    def layers(self) -> list[nn.Module]:
        """Return the modules before the cut, each once."""
        return [self.model.get_submodule(name) for name in dict.fromkeys(self.calls)]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def encode(self, images: Tensor) -> list[Tensor]:
        """Run the model on images `(N, C, H, W)` up to the cut, and return the features.

        Raises:
            ValueError: If other modules were called than at the time of the cut.
        """
        names, outputs = self._run_until_cut(images)
        if names != self.calls:
            raise ValueError(
                f"{type(self.model).__name__} called {', '.join(names) or 'nothing'} before the layer "
                f"{self.calls[-1]!r}, not {', '.join(self.calls)} as in its trial: the modules called must not "
                "depend on the image or the mode"
            )
        flat = [pytree.tree_flatten(output) for output in outputs]
        leaves = [leaf for found, _ in flat for leaf in found]
        kept = range(len(leaves)) if self.kept is None else self.kept
        self._channels = images.shape[1]
        if (size := _size(images)) not in self._outputs:
            rest = [
                _Unused(tuple(leaf.shape[1:]), leaf.dtype) if isinstance(leaf, Tensor) else leaf
                for leaf in leaves
            ]
            self._outputs[size] = [spec for _, spec in flat], rest
        return [*([images] if self.image else []), *(leaves[i] for i in kept)]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Any:
        """Run the model on from the cut.

        Args:
            features: As `encode` returns them, or changed; not modified.
            size: Height and width of the images given to `encode`.

        Returns:
            What the model returns.
        """
        if size not in self._outputs:  # features of a copy of this model
            with torch.no_grad(), eval_mode(self.model):
                self.encode(features[-1].new_zeros(1, self._channels, *size))
        specs, rest = self._outputs[size]
        kept = range(len(rest)) if self.kept is None else self.kept
        n, like, given = len(features[-1]), features[-1], list(features)
        images = given.pop(0) if self.image else like.new_zeros(n, self._channels, *size)
        places = dict(zip(kept, given, strict=True))
        state = {"call": 0, "leaf": 0}

        def output() -> Any:
            spec = specs[state["call"]]
            leaves = []
            for i in range(state["leaf"], state["leaf"] + spec.num_leaves):
                leaf = rest[i]
                if i in places:
                    leaf = places[i].clone() if i in self.modified else places[i]
                elif isinstance(leaf, _Unused):
                    leaf = torch.zeros(n, *leaf.shape, dtype=leaf.dtype, device=like.device)
                leaves.append(leaf)
            state["call"] += 1
            state["leaf"] += spec.num_leaves
            return pytree.tree_unflatten(leaves, spec)

        def instead(name: str, original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                at = state["call"]
                if at < len(self.calls) and self.calls[at] == name:
                    return output()
                return original(*args, **kwargs)  # a module that is called again after the cut

            return forward

        with replaced_forwards(self.model, self.calls, instead):
            return self.model(images)

    def _run_until_cut(self, images: Tensor) -> tuple[list[str], list[Any]]:
        names: list[str] = []
        outputs: list[Any] = []
        inside = False

        def record(name: str, original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal inside
                if inside:  # part of a module that is kept as a whole
                    return original(*args, **kwargs)
                inside = True
                try:
                    output = original(*args, **kwargs)
                finally:
                    inside = False
                names.append(name)
                outputs.append(output)
                if len(outputs) == len(self.calls):
                    raise _CutReached
                return output

            return forward

        with replaced_forwards(self.model, self.calls, record), suppress(_CutReached):
            self.model(images)
        return names, outputs


class _Unused(NamedTuple):
    """A tensor that nothing after the cut depends on."""

    shape: tuple[int, ...]  # without the batch
    dtype: torch.dtype


class _CutReached(BaseException):
    """Ends a call of the model at the cut; models that catch exceptions let it through."""


@contextmanager
def replaced_forwards(
    model: nn.Module, names: Sequence[str], make: Callable[[str, Forward], Forward]
) -> Iterator[None]:
    """Give modules another `forward` for the duration of a block.

    Args:
        model: The module that holds them.
        names: Their names in it.
        make: Called with each name and the module's own `forward`; returns the other.

    Examples:
        >>> model = nn.Sequential(nn.ReLU())
        >>> with replaced_forwards(model, ["0"], lambda name, forward: lambda x: forward(-x)):
        ...     print(model(torch.tensor([1.0, -2.0])))
        tensor([0., 2.])
        >>> model(torch.tensor([1.0, -2.0]))
        tensor([1., 0.])
    """
    before: dict[str, Mapping[str, Any]] = {}
    try:
        for name in dict.fromkeys(names):
            state: dict[str, Any] = model.get_submodule(name).__dict__
            before[name] = {"forward": state["forward"]} if "forward" in state else {}
            state["forward"] = make(name, model.get_submodule(name).forward)
        yield
    finally:
        for name, own in before.items():
            state = model.get_submodule(name).__dict__
            state.pop("forward", None)
            state.update(own)


def _size(images: Tensor) -> tuple[int, int]:
    return int(images.shape[2]), int(images.shape[3])
