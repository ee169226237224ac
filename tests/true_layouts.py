"""Small data sets in the true layout of each known one: two images a split, one column an id."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Written = dict[str, dict[int, int]]  # split -> raw id in the masks -> expected class, in order
HEIGHT = 32


def save_image(path: Path, columns: int = 3, seed: int = 0) -> None:
    """Noise, as wide as the mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, columns, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save_mask(path: Path, ids: Sequence[int]) -> None:
    """One column an id; a palette as most data sets have it, or SBD's .mat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.tile(np.array(ids, dtype=np.uint8), (HEIGHT, 1))
    if path.suffix == ".mat":
        savemat(path, {"GTcls": {"Segmentation": mask}})
        return
    picture = Image.fromarray(mask)
    picture.putpalette([value % 256 for value in range(768)])
    picture.save(path)


def write_pairs(
    root: Path, names: Sequence[str], image: str, mask: str, ids: Sequence[int]
) -> None:
    """Images and masks at templates with `{name}`, `{city}`."""
    for seed, name in enumerate(names):
        fields = {"name": name, "city": name.partition("_")[0]}
        save_image(root / image.format(**fields), len(ids), seed)
        save_mask(root / mask.format(**fields), ids)


def write_list(path: Path, names: Sequence[str]) -> None:
    """One name a line, without a last newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names))


def same(*ids: int) -> dict[int, int]:
    """Raw ids that are class ids."""
    return {id: id for id in ids}


def voc(root: Path) -> Written:
    lists = root / "ImageSets" / "Segmentation"
    for split, names in (("train", ("2007_000032", "a")), ("val", ("2007_000033", "c"))):
        images, masks = "JPEGImages/{name}.jpg", "SegmentationClassAug/{name}.png"
        write_pairs(root, names, images, masks, (0, 15, 20, 255))
        write_list(lists / f"{split}.txt", names)
    return {split: same(0, 15, 20, 255) for split in ("train", "val")}


def sbd(root: Path) -> Written:
    for split, names in (("train", ("2008_000002", "b")), ("val", ("2008_000003", "c"))):
        write_pairs(root, names, "img/{name}.jpg", "cls/{name}.mat", (0, 3, 20))
        write_list(root / f"{split}.txt", names)
    return {split: same(0, 3, 20) for split in ("train", "val")}


def context(root: Path) -> Written:
    for split, names in (("train", ("2008_000002", "b")), ("val", ("2008_000003", "c"))):
        images, masks = "JPEGImages/{name}.jpg", "SegmentationClassContext/{name}.png"
        write_pairs(root, names, images, masks, (0, 1, 59))
        write_list(root / "ImageSets" / "SegmentationContext" / f"{split}.txt", names)
    return {split: same(0, 1, 59) for split in ("train", "val")}


def cityscapes(root: Path) -> Written:
    cities = {
        "train": ("aachen_000000_000019", "bochum_000000_000313"),
        "val": ("lindau_000000_000019", "munster_000000_000019"),
    }
    ids = {7: 0, 26: 13, 0: 255, 33: 18, 9: 255}
    for split, names in cities.items():
        image = f"leftImg8bit/{split}/{{city}}/{{name}}_leftImg8bit.png"
        mask = f"gtFine/{split}/{{city}}/{{name}}_gtFine_labelIds.png"
        write_pairs(root, names, image, mask, tuple(ids))
    return dict.fromkeys(cities, ids)


def ade20k(root: Path) -> Written:
    ids = {0: 255, 1: 0, 150: 149}
    for split, folder in (("train", "training"), ("val", "validation")):
        names = [f"ADE_{split}_{i:08d}" for i in (1, 2)]
        image, mask = f"images/{folder}/{{name}}.jpg", f"annotations/{folder}/{{name}}.png"
        write_pairs(root, names, image, mask, tuple(ids))
    return dict.fromkeys(("train", "val"), ids)


def coco(root: Path) -> Written:
    for split in ("train", "val"):
        names = [f"00000000000{i}" for i in ((1, 2) if split == "train" else (3, 4))]
        write_pairs(root, names, f"{split}2017/{{name}}.jpg", "masks/{name}.png", (0, 1, 80, 255))
    return {split: same(0, 1, 80, 255) for split in ("train", "val")}


def coco_stuff(root: Path) -> Written:
    ids = {0: 0, 12: 11, 11: 255, 181: 170, 255: 255}
    for split in ("train", "val"):
        names = [f"{split}_{i}" for i in (1, 2)]
        image, mask = f"{split}2017/{{name}}.jpg", f"stuffthingmaps/{split}2017/{{name}}.png"
        write_pairs(root, names, image, mask, tuple(ids))
    return dict.fromkeys(("train", "val"), ids)


def camvid(root: Path) -> Written:
    ids = {0: 0, 10: 10, 11: 255}
    for split in ("train", "val", "test"):
        names = [f"{split}_{i}" for i in (1, 2)]
        write_pairs(root, names, f"{split}/{{name}}.png", f"{split}annot/{{name}}.png", tuple(ids))
    return dict.fromkeys(("train", "val", "test"), ids)


WRITERS: dict[str, Callable[[Path], Written]] = {
    "voc": voc,
    "sbd": sbd,
    "context": context,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "coco": coco,
    "coco_stuff": coco_stuff,
    "camvid": camvid,
}
