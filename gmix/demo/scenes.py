"""Scenes for the demo: real handwritten digits laid on real photographs, with exact masks."""

import colorsys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from gmix.deploy.predict import make_own_folders, save_mask, save_picture
from gmix.runtime.own import check_own, write_own

NAMES = ("background", *(str(d) for d in range(10)))

# Found by search: eleven colours and white, as far apart as possible for people with normal sight and
# with each of the three kinds of colour blindness.
PALETTE = (
    (17, 20, 26),
    (24, 189, 163),
    (173, 185, 16),
    (43, 13, 246),
    (254, 191, 255),
    (236, 40, 40),
    (134, 255, 137),
    (238, 88, 255),
    (161, 13, 13),
    (133, 115, 136),
    (122, 30, 160),
)

# Both sources are divided, so that validation uses nothing that was seen in training: the first
# digits (scikit-learn orders them by writer) and the left part of each photograph are for
# training, the rest for validation.
TRAIN_SHARE_DIGITS = 0.7
TRAIN_SHARE_PHOTO = 0.56

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


class Scene(NamedTuple):
    """A picture `(S, S, 3)` and its classes `(S, S)`: 0 is background, `1 + d` the digit d."""

    image: Bytes
    mask: Bytes


class Source(NamedTuple):
    """The material of scenes: digits `(N, 8, 8)` in [0, 1], their values `(N,)`, and photographs."""

    digits: Floats
    values: npt.NDArray[np.int64]
    photos: tuple[Bytes, ...]


class Folders(NamedTuple):
    """The folders of the scenes; the unlabeled scenes have no masks."""

    images: Path
    masks: Path
    unlabeled: Path
    val_images: Path
    val_masks: Path
    classes: Path  # a text file, one name per line

    @classmethod
    def inside(cls, root: Path) -> "Folders":
        """Return the usual folders below `root`."""
        train, val = root / "train", root / "val"
        return cls(
            train / "images",
            train / "masks",
            root / "unlabeled" / "images",
            val / "images",
            val / "masks",
            root / "classes.txt",
        )


def load_sources() -> tuple[Source, Source]:
    """Load the training and the validation part of scikit-learn's bundled digits and photographs.

    Raises:
        ModuleNotFoundError: If scikit-learn is missing; the message has the command that installs it.

    Examples:
        >>> train, val = load_sources()
        >>> len(train.digits) + len(val.digits)
        1797
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the demo composes its scenes from scikit-learn: `pip install "gmix[demo]"`'
        ) from error
    digits, photos = load_digits(), load_sample_images().images
    n = round(TRAIN_SHARE_DIGITS * len(digits.target))
    strokes, values = digits.images / 16, digits.target
    # The top quarter of both photographs is empty: plain sky, dark blur.
    full = [photo[len(photo) // 4 :] for photo in photos]
    left = tuple(photo[:, : round(TRAIN_SHARE_PHOTO * photo.shape[1])] for photo in full)
    right = tuple(photo[:, round(TRAIN_SHARE_PHOTO * photo.shape[1]) :] for photo in full)
    return Source(strokes[:n], values[:n], left), Source(strokes[n:], values[n:], right)


def compose_scenes(
    source: Source,
    n: int,
    *,
    size: int = 96,
    digits: tuple[int, int] = (2, 4),
    rng: np.random.Generator,
) -> Iterator[Scene]:
    """Compose `n` scenes of `size` x `size` pixels, each with a random number of digits.

    Classes are drawn without replacement, like cards from a deck, so that each digit occurs equally often even in a few
    scenes.

    Args:
        source: Digits and photographs to draw from.
        n: Number of scenes.
        size: Side of a scene, in pixels.
        digits: Smallest and largest number of digits per scene.
        rng: The only source of randomness.

    Examples:
        >>> source, _ = load_sources()
        >>> scene = next(compose_scenes(source, 1, size=48, rng=np.random.default_rng(0)))
        >>> scene.image.shape, scene.mask.shape
        ((48, 48, 3), (48, 48))
    """
    deck: list[int] = []
    for _ in range(n):
        canvas, mask = _background(source.photos, size, rng), np.zeros((size, size), np.uint8)
        for cell in rng.permutation(4)[: rng.integers(digits[0], digits[1] + 1)]:
            if not deck:
                deck = rng.permutation(10).tolist()
            value = deck.pop()
            strokes = source.digits[rng.choice(np.flatnonzero(source.values == value))]
            alpha = _draw(strokes, divmod(int(cell), 2), size, rng)
            canvas = _paint(canvas, alpha, rng)
            mask[alpha > 0.5] = 1 + value
        yield Scene((canvas.clip(0, 1) * 255).round().astype(np.uint8), mask)


def write_scenes(
    folders: Folders, *, labeled: int, unlabeled: int, val: int, size: int = 96, seed: int = 0
) -> None:
    """Write the demo's data set as plain folders of PNG files, like those of a user.

    Args:
        folders: Folders to write into.
        labeled: Number of training scenes with a mask.
        unlabeled: Number of training scenes without a mask.
        val: Number of validation scenes.
        size: Side of a scene, in pixels.
        seed: Seed of the scenes: the same seed gives the same files.
    """
    home = folders.classes.parent
    check_own([folders.classes])
    make_own_folders(home, *(str(folder.relative_to(home)) for folder in folders[:-1]))
    train_source, val_source = load_sources()
    for part, (source, n, images, masks) in enumerate(
        (
            (train_source, labeled, folders.images, folders.masks),
            (train_source, unlabeled, folders.unlabeled, None),
            (val_source, val, folders.val_images, folders.val_masks),
        )
    ):
        # A random stream per part: more unlabeled scenes must not change the validation scenes.
        rng = np.random.default_rng([seed, part])
        for i, scene in enumerate(compose_scenes(source, n, size=size, rng=rng)):
            save_picture(Image.fromarray(scene.image), images / f"scene{i:03d}.png", home)
            if masks is not None:
                save_mask(scene.mask, PALETTE, masks / f"scene{i:03d}.png", home)
    write_own(folders.classes, "\n".join(NAMES) + "\n")


def _background(photos: tuple[Bytes, ...], size: int, rng: np.random.Generator) -> Floats:
    """Crop a random square of a random photograph, possibly mirrored, in [0, 1]."""
    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[:2]
    side = min(int(rng.integers(70, 181)), height, width)
    y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = Image.fromarray(photo).resize(
        (size, size), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side)
    )
    pixels = np.asarray(crop, dtype=np.float64) / 255
    pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    # Rather dark, so that bright digits stand out.
    return pixels * rng.uniform(0.45, 0.75)


def _draw(strokes: Floats, cell: tuple[int, int], size: int, rng: np.random.Generator) -> Floats:
    """Draw the digit at a random place in a quarter of the scene, as a smooth coverage in [0, 1]."""
    glyph = Image.fromarray((np.pad(strokes, 3) * 255).astype(np.uint8))
    box = round(size * rng.uniform(0.36, 0.48) * glyph.height / 8)
    glyph = glyph.resize((box, box), Image.Resampling.BICUBIC)
    glyph = glyph.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    y, x = (size * (0.26 + 0.48 * quarter + rng.uniform(-0.05, 0.05)) for quarter in cell)
    sheet = Image.new("L", (size, size))
    sheet.paste(glyph, (round(x - box / 2), round(y - box / 2)))
    # A steep ramp around half coverage: the blurred 8 x 8 digit becomes a stroke with an edge.
    return ((np.asarray(sheet) / 255 - 0.45) * 5 + 0.5).clip(0, 1)


def _paint(canvas: Floats, alpha: Floats, rng: np.random.Generator) -> Floats:
    """Paint a stroke in a random bright colour, with a soft shadow, on the canvas."""
    colour = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.7), 1.0))
    blurred = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5))
    shadow, opacity = (np.asarray(blurred) / 255)[..., None], 0.95 * alpha[..., None]
    canvas = canvas * (1 - 0.4 * shadow)
    return canvas * (1 - opacity) + colour * opacity
