"""What a bank of labeled embeddings takes: bytes, time for a batch of queries, and how often the graph is right.

    python benchmarks/feature_bank.py

Embeddings are made up: clusters of 100 in 32 of D dimensions, a little noise in all of them, and no negative values, as
pooled features have none; the rows "noise" are independent normal numbers, which features are not.

Times are the shortest of several in turns: of one thread and of building the graph those of the CPU, which other work
on the machine changes little, of several threads those of the clock.
"""

import argparse
import time

import torch
from torch import Tensor

from gmix import ApproximateSearch, FeatureBank

BATCH, RANK, CLUSTER = 8, 32, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", type=number, default=[10**n for n in (3, 4, 5, 6)])
    parser.add_argument("--dims", nargs="*", type=int, default=[320, 2048])
    parser.add_argument(
        "--most", type=float, default=1.5e9, help="bytes; larger banks are left out"
    )
    parser.add_argument("--noise", nargs="*", type=number, default=[10**5])
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of exact search, beside 1")
    args = parser.parse_args()
    heads = ["entries", "D", "", "bytes", *heads_of_times(args), "built in", "bytes", "right"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for dim in args.dims:
        for size in args.sizes:
            if 4 * size * dim <= args.most:
                row(args, "clusters", clusters(size + args.queries, dim))
    for size in args.noise:
        for dim in args.dims[:1]:
            torch.manual_seed(0)
            row(args, "noise", torch.randn(size + args.queries, dim))


def row(args: argparse.Namespace, kind: str, embeddings: Tensor) -> None:
    """One line of the table; the last embeddings are the queries."""
    torch.set_num_threads(1)
    keys, queries = embeddings[: -args.queries], embeddings[-args.queries :]
    bank = FeatureBank(*keys.shape)
    bank.add(range(len(keys)), keys)
    began = time.process_time()
    graph = ApproximateSearch(bank)
    built = time.process_time() - began
    times: dict[str, list[float]] = {head: [] for head in heads_of_times(args)}
    for some in queries.split(BATCH)[: args.repeats]:
        for head, taken in times.items():  # in turns
            threads = args.threads if head == several(args) else 1
            torch.set_num_threads(threads)
            clock = time.process_time if threads == 1 else time.perf_counter
            began = clock()
            (graph if head == "graph" else bank).nearest(some)
            taken.append(1000 * (clock() - began))
    right = graph.nearest(queries).indices == bank.nearest(queries).indices
    cells = [
        f"{len(keys):,}",
        f"{keys.shape[1]}",
        kind,
        f"{bank.embeddings.nbytes / 1e6:.1f} MB",
        *(f"{min(taken):.1f} ms" for taken in times.values()),
        f"{built:.1f} s",
        f"{graph.index.memory_usage / 1e6:.0f} MB",
        f"{100 * right.float().mean():.1f} %",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def heads_of_times(args: argparse.Namespace) -> list[str]:
    return ["exact", *([several(args)] if args.threads > 1 else []), "graph"]


def several(args: argparse.Namespace) -> str:
    return f"exact, {args.threads} threads"


def clusters(count: int, dim: int) -> Tensor:
    """Points around centers, in few dimensions of many."""
    torch.manual_seed(0)
    basis = torch.randn(RANK, dim) / RANK**0.5
    centers = torch.randn(max(count // CLUSTER, 10), RANK)
    found = torch.empty(count, dim)
    for some in found.split(65_536):
        points = centers[torch.randint(len(centers), (len(some),))]
        points = points + 0.5 * torch.randn(len(some), RANK)
        some.copy_((points @ basis + 0.1 * torch.randn(len(some), dim)).relu())
    return found


def number(text: str) -> int:
    """1e5, too."""
    return int(float(text))


if __name__ == "__main__":
    main()
