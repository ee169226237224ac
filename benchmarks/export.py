"""How far are the logits of an exported file from the network's, on real images?

python benchmarks/export.py --model runs/first --images photos --out model.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

from gmix.data import find_images, read_image
from gmix.deploy.export import export_model, load_onnx, load_program
from gmix.deploy.predict import predict_image, predict_logits
from gmix.runs.saved import SavedModel


def measure(model: str, folder: str, out: Path, images: int) -> None:
    """Export, then compare image by image."""
    saved = SavedModel.from_pretrained(model)
    onnx = out.suffix == ".onnx"
    export_model(saved, out, "onnx" if onnx else "torch")
    run = load_onnx(out) if onnx else load_program(out)
    worst = largest = same = pixels = 0.0
    for path in find_images(folder)[:images]:
        image = read_image(path)
        batch = image.as_subclass(torch.Tensor).float()[None]
        expected = F.interpolate(predict_logits(saved, batch[0]), batch.shape[-2:], mode="bilinear")
        with torch.inference_mode():
            found = run(batch)
        worst = max(worst, float((found - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        classes = found[0].argmax(0) if found.shape[1] > 1 else (found[0, 0] > 0).long()
        same += float((classes == torch.from_numpy(predict_image(saved, image))).sum())
        pixels += classes.numel()
    print(f"largest difference {worst:.1e}, largest logit {largest:.1f}")
    print(f"pixels with the class of `gmix predict`: {100 * same / pixels:.2f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="--out folder of a finished `gmix train`")
    parser.add_argument("--images", required=True, help="a folder")
    parser.add_argument("--out", required=True, type=Path, help="model.onnx or model.pt2")
    parser.add_argument("--number", default=8, type=int, help="of images")
    chosen = parser.parse_args()
    measure(chosen.model, chosen.images, chosen.out, chosen.number)
