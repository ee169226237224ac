"""How long `import gmix` takes beside the library it is built on, and how soon `gmix --help` answers.

    python benchmarks/imports.py

Each in a fresh process, all in turns; of gmix every public name is asked for, since each is imported when it first is.
"""

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "import segmentation_models_pytorch": "import segmentation_models_pytorch",
    "import gmix, all of it": "import gmix; [getattr(gmix, name) for name in gmix.__all__]",
}
COMMANDS = {
    "python": ["-c", ""],
    "gmix --help": ["-m", "gmix", "--help"],
    "gmix train --help": ["-m", "gmix", "train", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()
    runs = {name: ["-c", statement] for name, statement in STATEMENTS.items()} | COMMANDS
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, words in runs.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - began)
    smp, gmix = (times[name] for name in STATEMENTS)
    ratio = statistics.median(b / a for a, b in zip(smp, gmix, strict=True))
    print("| fresh process | seconds |\n|---|---|")
    for name, taken in times.items():
        print(f"| `{name}` | {statistics.median(taken):.2f} |")
    print(f"\n`import gmix` / `import segmentation_models_pytorch`: {ratio:.3f}")


if __name__ == "__main__":
    main()
