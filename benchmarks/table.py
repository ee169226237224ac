"""Train several methods with several seeds on one recipe and print the table of `docs/results.md`.

    python benchmarks/table.py benchmarks/voc_animals.yaml --data DIR --out runs/voc_animals

Everything is resumed: a run that is finished is read, one that was stopped goes on. Two processes with
`--shard 0/2` and `--shard 1/2` share the work.
"""

import argparse
import json
import statistics
from pathlib import Path

import yaml

from gmix.training.config import TrainConfig
from gmix.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", required=True, help="the folder the recipe calls {data}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default="supervised,guidedmix")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shard", default="0/1", help="I/N: do every N-th run, from the I-th on")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=YAML", help="change the recipe"
    )
    args = parser.parse_args()

    recipe = yaml.safe_load(args.recipe.read_text(encoding="utf-8").replace("{data}", args.data))
    recipe |= {
        key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in args.set)
    }
    runs = [(method, seed) for seed in range(args.seeds) for method in args.methods.split(",")]
    shard, shards = map(int, args.shard.split("/"))
    for method, seed in runs[shard::shards]:
        out = args.out / f"{method}-{seed}"
        if not (out / "results.json").is_file():
            settings = {**recipe, "method": method, "seed": seed, "out": str(out)}
            train(TrainConfig(**settings, resume=True))
    print(table(args.out, args.methods.split(","), args.seeds))


def table(out: Path, methods: list[str], seeds: int) -> str:
    """Markdown: mean and standard deviation of the last weights' mIoU, over the finished seeds."""
    lines = ["| method | mIoU | seeds | best weights | minutes a run |", "|---|---|---|---|---|"]
    for method in methods:
        files = [out / f"{method}-{seed}" / "results.json" for seed in range(seeds)]
        done = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        if not done:
            continue
        last = [100 * run["last"]["miou"] for run in done]
        best = statistics.mean(100 * run["best"]["miou"] for run in done)
        spread = f" ± {statistics.stdev(last):.1f}" if len(last) > 1 else ""
        each = ", ".join(f"{value:.1f}" for value in last)
        minutes = statistics.mean(run["minutes"] for run in done)
        lines.append(
            f"| {method} | **{statistics.mean(last):.1f}**{spread} | {each} | {best:.1f} "
            f"| {minutes:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
