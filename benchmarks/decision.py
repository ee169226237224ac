"""What deciding for mIoU is worth to each run of a finished bench: its score without the class biases, and with them.

    python benchmarks/decision.py --data DIR --out runs/bench
    python benchmarks/decision.py --data DIR --out runs/bench --rows supervised,guidedmix

The biases are part of the last layer of a saved model; the last checkpoint has that layer without them. With the
checkpoint's bias in place of the saved one, a model decides for the most probable class (`--decide-for pixels`); all
else stays as it was. Both are scored as `benchmarks/bench.py` does; nothing is written into the runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from bench import HERE, gmix, judged_on, located, read, spread
from safetensors.torch import load_file

from gmix.runs.checkpoint import list_checkpoints
from gmix.runs.saved import SavedModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="of benchmarks/bench.py")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the sets")
    parser.add_argument("--rows", default="", help="some rows of it, NAME,NAME (default: all)")
    args = parser.parse_args()
    sets = yaml.safe_load((HERE / "bench.yaml").read_text())["sets"]
    rows: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for line in read(args.out / "bench.jsonl"):
        folder = args.out / line["name"]
        if folder.is_dir() and (not args.rows or line["row"] in args.rows.split(",")):
            for half in ("report", "choose"):
                before = score(folder, half, sets[line["set"]], args.data.resolve(), args.out)
                key = (line["row"], f"{line['set']}, {line['labels']}", half)
                rows.setdefault(key, []).append((before, line[half]))
    print("| method | set, masks | half | most probable class | for mIoU | gain |")
    print("|---|---|---|---|---|---|")
    for (row, name, half), pairs in sorted(rows.items()):
        before, after = zip(*pairs, strict=True)
        gains = [b - a for a, b in pairs]
        print(f"| {row} | {name} | {half} | {spread(before)} | {spread(after)} | {spread(gains)} |")


def score(folder: Path, half: str, known: dict[str, Any], data: Path, out: Path) -> float:
    """The mIoU of a run without its biases, in per cent."""
    flags, part = (located(known[name], data, out.resolve()) for name in ("flags", half))
    with tempfile.TemporaryDirectory() as name:
        aside = Path(name)
        undecided(folder).save_pretrained(aside / "model")
        (aside / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
        gmix(
            "evaluate", model=aside, **judged_on(flags, part), threads=1, out=aside / "scores.json"
        )
        return 100 * float(json.loads((aside / "scores.json").read_text())["miou"])


def undecided(folder: Path) -> SavedModel:
    """The saved model of a run, with the bias of its last checkpoint."""
    saved = SavedModel.from_pretrained(folder)
    (name,) = (n for n, m in saved.net.named_modules() if m is saved.net.last_layer)
    tensors = load_file(list_checkpoints(folder)[-1].path / "method.safetensors")
    bias = saved.net.last_layer.bias
    assert bias is not None
    with torch.no_grad():
        bias.copy_(tensors[f"net.{name}.bias"])
    return saved


if __name__ == "__main__":
    main()
