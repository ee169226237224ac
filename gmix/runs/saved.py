"""Saved models: the folder OUT/model holds a plain SMP model, and what gmix needs to use it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file

from gmix.config.architecture import build_architecture, find_architecture
from gmix.data import RGB, Classes, ImageFormat
from gmix.errors import one_line
from gmix.nn.network import GuidedMixNet
from gmix.runs.card import model_card
from gmix.runtime.infile import read_json
from gmix.runtime.tensorfile import check_tensors, load_tensors, named_in_utf8
from gmix.runtime.typed import from_mapping

Size = tuple[int, int]


@dataclass(frozen=True)
class SavedModel:
    """A trained network with its classes and its input format.

    Attributes:
        net: Network in eval mode.
        classes: Names, label map and palette.
        size: Size to which every image is resized first; None for no resizing.
        mean: Mean per channel, for images scaled to 0..1.
        std: Standard deviation per channel, likewise.
        format: Channels of the images, and what their values mean.
        training: Facts about its training for the model card, if known.
    """

    net: GuidedMixNet
    classes: Classes
    size: Size | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    format: ImageFormat = RGB
    training: Mapping[str, Any] | None = None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, in the format of SMP with further files of gmix.

        `config.json` and `model.safetensors` are those of `smp.from_pretrained`. `gmix.json` and, with MITrans,
        `gmix.safetensors` hold the rest; `README.md` is a model card.
        """
        net: Any = self.net
        folder = Path(folder)
        net.adapter.save_pretrained(folder)
        if net.mitrans is not None:
            weights = {k: v.contiguous() for k, v in net.mitrans.state_dict().items()}
            save_file(weights, folder / "gmix.safetensors")
        # Replaces SMP's own card, which knows neither data nor scores and claims a license.
        (folder / "README.md").write_text(model_card(self), encoding="utf-8")
        facts = {
            "classes": self.classes.names,
            "binary": self.classes.binary,
            "label_map": self.classes.label_map,
            "colors": self.classes.colors,
            "channels": self.format.channels,
            "span": self.format.span,
            "size": self.size,
            "mean": self.mean,
            "std": self.std,
            "mitrans": net.mitrans is not None,
            "training": self.training,
        }
        (folder / "gmix.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> SavedModel:
        """Load a model that `save_pretrained` wrote.

        Args:
            folder: Folder of the model, or the `--out` folder of `gmix train` that holds it as `model`.
            device: Device for the network.

        Raises:
            ValueError: If there is no model, or it cannot be loaded.
        """
        folder = Path(folder)
        if not (folder / "gmix.json").is_file():
            folder = folder / "model"
        if not (folder / "gmix.json").is_file():
            raise ValueError(
                f"no trained model in {folder.parent}: expected the --out folder of a `gmix train` "
                "run that came to its end"
            )
        try:
            facts = from_mapping(Facts, read_json(folder / "gmix.json"))
            net = GuidedMixNet(_read_network(folder), mitrans=facts.mitrans)
            if net.mitrans is not None:
                path = folder / "gmix.safetensors"
                check_tensors(path, net.mitrans.state_dict())
                net.mitrans.load_state_dict(load_tensors(path))
            facts.check_network(net)
            return cls(
                net.to(device).eval(),
                Classes(
                    tuple(facts.classes),
                    None
                    if (raw := facts.label_map) is None
                    else {int(k): v for k, v in raw.items()},
                    facts.binary,
                    None if facts.colors is None else tuple((r, g, b) for r, g, b in facts.colors),
                ),
                None if facts.size is None else (facts.size[0], facts.size[1]),
                tuple(facts.mean),
                tuple(facts.std),
                ImageFormat(
                    facts.channels, None if facts.span is None else (facts.span[0], facts.span[1])
                ),
                facts.training,
            )
        except Exception as error:
            raise ValueError(f"cannot load the model in {folder}: {one_line(error)}") from error


@dataclass
class Facts:
    """Contents of `gmix.json`; older models lack channels, colours and training."""

    classes: list[str]
    binary: bool
    label_map: dict[str, int] | None
    size: list[int] | None
    mean: list[float]
    std: list[float]
    mitrans: bool
    colors: list[list[int]] | None = None
    channels: int = 3
    span: list[float] | None = None
    training: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        pairs = [pair for pair in (self.size, self.span) if pair is not None]
        colors = self.colors or []
        good = {
            "size": self.size is None or min(self.size, default=0) > 0,
            "size and span": all(len(pair) == 2 for pair in pairs),
            "mean": all(map(math.isfinite, self.mean)) and len(self.mean) == self.channels,
            "std": all(0 < s < math.inf for s in self.std) and len(self.std) == self.channels,
            "colors": all(len(c) == 3 and min(c) >= 0 and max(c) < 256 for c in colors),
        }
        if wrong := [name for name, fine in good.items() if not fine]:
            raise ValueError(f"gmix.json: {wrong[0]} cannot be right")

    def check_network(self, net: GuidedMixNet) -> None:
        """Check that the facts match a network.

        Raises:
            ValueError: If they do not.
        """
        logits = 1 if self.binary else len(self.classes)
        channels = net.in_channels
        if (net.classes, channels) != (logits, self.channels):
            raise ValueError(
                f"gmix.json speaks of {logits} logits and {self.channels} channels, "
                f"the network has {net.classes} and {channels}"
            )


def _read_network(folder: Path) -> Any:
    """Load the SMP model of a folder, without looking for weights elsewhere.

    SMP's own `from_pretrained` passes everything in `config.json` on to timm.

    Raises:
        ValueError: If the files do not match each other.
        Exception: Anything the libraries raise on broken files.
    """
    config = read_json(folder / "config.json")
    architecture = find_architecture(str(config.get("_model_class")), "the architecture")
    arguments = {k: v for k, v in config.items() if not k.startswith("_")}
    arguments["encoder_weights"] = None
    path = folder / "model.safetensors"
    with warnings.catch_warnings():  # SMP warns about old names
        warnings.simplefilter("ignore")
        # First without allocating memory: a short file may ask for more than any machine has.
        with suppress(RuntimeError, NotImplementedError), torch.device("meta"):  # a few cannot
            plan = build_architecture(architecture, arguments)
            check_tensors(path, plan.state_dict())
        model = build_architecture(architecture, arguments)
    check_tensors(path, model.state_dict())
    with named_in_utf8(path) as name:
        load_model(model, name)
    return model
