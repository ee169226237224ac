"""A data set small enough to train on in a test: coloured squares, two object classes."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmix.config.train_config import TrainConfig

COLORS = {1: (220, 40, 40), 2: (40, 60, 220)}
NAMES = ("background", "red", "blue")


def write_scene(image: Path, mask: Path | None, seed: int, size: int = 64) -> None:
    """One image of two squares on noise, and its mask if a path is given."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 160, (size, size, 3), dtype=np.uint8)
    classes = np.zeros((size, size), dtype=np.uint8)
    for label, color in COLORS.items():
        top, left = rng.integers(0, size // 2, 2)
        pixels[top : top + size // 3, left : left + size // 3] = color
        classes[top : top + size // 3, left : left + size // 3] = label
    Image.fromarray(pixels).save(image)
    if mask is not None:
        Image.fromarray(classes).save(mask)


def write_data(root: Path, labeled: int = 4, unlabeled: int = 4, validation: int = 3) -> Path:
    """Folders images, masks, val_images, val_masks and a file of class names below `root`."""
    for name in ("images", "masks", "val_images", "val_masks"):
        (root / name).mkdir(parents=True)
    for i in range(labeled + unlabeled):
        mask = root / "masks" / f"{i:02d}.png" if i < labeled else None
        write_scene(root / "images" / f"{i:02d}.png", mask, seed=i)
    for i in range(validation):
        paths = root / "val_images" / f"v{i}.png", root / "val_masks" / f"v{i}.png"
        write_scene(*paths, seed=100 + i)
    (root / "names.txt").write_text("\n".join(NAMES))
    return root


def tiny_config(data: Path, out: Path, /, **changes: Any) -> TrainConfig:
    """Six steps with small crops of a network of milliseconds on `write_data(data)`."""
    settings: dict[str, Any] = {
        "images": str(data / "images"),
        "masks": str(data / "masks"),
        "val_images": str(data / "val_images"),
        "val_masks": str(data / "val_masks"),
        "classes": str(data / "names.txt"),
        "encoder": "tu-test_resnet",
        "encoder_weights": "none",
        "model_args": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
        "crop": "32x32",
        "batch_labeled": 2,
        "batch_unlabeled": 2,
        "steps": 6,
        "norm_batches": 2,
        "decide_for": "pixels",  # a fifth of a training's time less; tests/test_decision.py has the other
        "workers": 0,
        "threads": 1,
        "device": "cpu",
        "amp": "none",
        "channels_last": False,
        "log_every": 1,
        "trackers": "none",
        "eval_every": 0,
        "checkpoint_every": 3,
        "report": "none",  # a second each; tests/test_html_report.py has its own
        "out": str(out),
    }
    return TrainConfig(**{**settings, **changes})


def words(config: TrainConfig) -> list[str]:
    """The command line that means `config`."""
    result = []
    for name, value in vars(config).items():
        spelled = "--" + name.replace("_", "-")
        if value is True:
            result.append(spelled)
        elif value is False and TrainConfig.__dataclass_fields__[name].default:
            result.append(spelled.replace("--", "--no-", 1))
        elif value is not None and value is not False:
            result += [spelled, str(value)]
    return result
