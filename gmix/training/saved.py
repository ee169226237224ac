"""The folder OUT/model: a plain SMP model beside what gmix needs to use it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gmix.data import RGB, Classes, ImageFormat
from gmix.network import GuidedMixNet
from gmix.say import one_line
from gmix.training.build import ARCHITECTURES
from gmix.training.card import model_card
from gmix.training.options import lookup

Size = tuple[int, int]


@dataclass(frozen=True)
class SavedModel:
    """A trained network and how to feed it.

    Attributes:
        net: in eval mode.
        classes: names, label map and palette.
        size: every image is resized to it first; None: images are taken as they are.
        mean: per channel, of images scaled to 0..1.
        std: the same.
        format: channels of the images, and what their values mean.
        training: what the model card says of its training, if that is known.
    """

    net: GuidedMixNet
    classes: Classes
    size: Size | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    format: ImageFormat = RGB
    training: Mapping[str, Any] | None = None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` (what `smp.from_pretrained` reads), beside them
        `gmix.json` and `gmix.safetensors` (classifier, MITrans), and a model card, `README.md`."""
        net: Any = self.net
        folder = Path(folder)
        net.model.config["encoder_weights"] = None  # loading must not download what it overwrites
        net.model.save_pretrained(folder)
        rest = {
            k: v.contiguous() for k, v in net.state_dict().items() if not k.startswith("model.")
        }
        save_file(rest, folder / "gmix.safetensors")
        # In place of SMP's own, which knows neither data nor scores and claims a license.
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
        """Load what `save_pretrained` wrote.

        Args:
            folder: the folder itself, or the OUT of `gmix train` that holds it as `model`.
            device: where the network goes.

        Raises:
            ValueError: if there is no model, or it cannot be read.
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
            facts = json.loads((folder / "gmix.json").read_text(encoding="utf-8"))
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            architecture = lookup(config["_model_class"], ARCHITECTURES, "the architecture")
            # Every weight must be there, and none is looked for elsewhere.
            strictly: dict[str, Any] = {"strict": True, "encoder_weights": None}
            # The hub's library says where the weights are from, SMP what does not fit and is refused.
            with redirect_stdout(None), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = architecture.from_pretrained(folder, **strictly)
            net = GuidedMixNet(model, mitrans=facts["mitrans"])
            rest = load_file(folder / "gmix.safetensors")
            net.load_state_dict({f"model.{k}": v for k, v in net.model.state_dict().items()} | rest)
            raw = facts["label_map"]
            label_map = None if raw is None else {int(key): value for key, value in raw.items()}
            # Models saved before there were channels, colours and cards say nothing of them.
            own, span = facts.get("colors"), facts.get("span")
            colors = None if own is None else tuple((color[0], color[1], color[2]) for color in own)
            return cls(
                net.to(device).eval(),
                Classes(tuple(facts["classes"]), label_map, facts["binary"], colors),
                None if facts["size"] is None else (facts["size"][0], facts["size"][1]),
                tuple(facts["mean"]),
                tuple(facts["std"]),
                ImageFormat(facts.get("channels", 3), None if span is None else (span[0], span[1])),
                facts.get("training"),
            )
        except Exception as error:
            raise ValueError(f"cannot load the model in {folder}: {one_line(error)}") from error


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> SavedModel:
    """A trained model: `SavedModel.from_pretrained`, whose arguments and errors it has."""
    return SavedModel.from_pretrained(folder, device)
