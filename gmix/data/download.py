"""Download of the data sets that torchvision can fetch."""

from __future__ import annotations

from pathlib import Path

from gmix.data.layouts import LAYOUTS, Layout, find_home


def fetch(layout: Layout, root: str | Path) -> None:
    """Download a data set into `root`, unless it is there already.

    PASCAL VOC 2012 (2 GB) and the SBD (1.4 GB) are downloaded and unpacked by torchvision.

    Raises:
        ValueError: If torchvision cannot download that data set, or the download fails.
    """
    if find_home(layout, root) is not None:
        return
    from torchvision import datasets

    root = Path(root)
    try:
        if layout == LAYOUTS["voc"]:
            root.mkdir(parents=True, exist_ok=True)
            datasets.VOCSegmentation(str(root), year="2012", image_set="trainval", download=True)
        elif layout == LAYOUTS["sbd"]:
            root.mkdir(parents=True, exist_ok=True)
            datasets.SBDataset(str(root), mode="segmentation", download=True)
        else:
            raise ValueError("its owners give it to registered users only, or elsewhere")
    except Exception as error:  # any error of the download
        raise ValueError(
            f"cannot download {layout.title} to {root}: {error}; put it there by hand"
        ) from error
