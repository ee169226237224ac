"""Two processes train as one does; a file of its own, as each process imports it."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors.torch import load_file
from tiny_data import tiny_config, write_data
from tiny_methods import BUILDERS
from tiny_nets import small_net, tiny_batch, tiny_net, unused_layers_net
from torch import Tensor, distributed, multiprocessing

from gmix import functional as G
from gmix.cli.main import main
from gmix.config.yamlfile import write_yaml
from gmix.data import Batch
from gmix.methods import GuidedMix, Supervised
from gmix.runs.checkpoint import newest_checkpoint
from gmix.runtime.collectives import gather
from gmix.runtime.distributed import SINGLE_PROCESS, Processes, start_processes
from gmix.runtime.lock import locked
from gmix.training.fit import FitSettings, fit

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")

COUNT, STEPS = 2, 2
METHODS = {**BUILDERS, "unused layers": Supervised}


def batches() -> Iterator[Batch]:
    for i in range(STEPS):
        x, y, u = tiny_batch(8, 8, seed=i)
        yield Batch(x, y, u, torch.ones(8, 32, 32, dtype=torch.bool))


def after(
    name: str, processes: Processes, accumulate: int, change: Callable[[Any], Any] = lambda m: m
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """State and losses after some steps of a method; each process sees its share of a batch."""
    torch.manual_seed(0)
    net = unused_layers_net() if name == "unused layers" else small_net(mitrans=True)
    method = change(METHODS[name](net))
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([{"params": parameters, "initial_lr": 0.05}], lr=0.05)
    reports = fit(
        method,
        (batch.split(processes.count)[processes.rank] for batch in batches()),
        optimizer,
        steps=STEPS,
        settings=FitSettings(accumulate=accumulate, processes=processes),
        report_when=lambda step: True,
    )
    losses = [report.losses for report in reports]
    return {k: full(v).clone() for k, v in method.state_dict().items()}, losses


def full(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded(method: Any) -> Any:
    """Parameters, gradients and optimizer state in shares, one a process, by torch's FSDP."""
    from torch.distributed.fsdp import fully_shard

    frozen = set() if method.reference is None else set(method.reference.parameters())
    return fully_shard(method, ignored_params=frozen)


def environment(rank: int, folder: str) -> None:
    """What `torchrun` would have set, but for the place where the processes meet."""
    os.environ |= {"WORLD_SIZE": str(COUNT), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # asked for, not used
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=Path(folder, "meet").as_uri(), rank=rank, world_size=COUNT
    )


def work(rank: int, folder: str) -> None:
    """What one of the processes does."""
    environment(rank, folder)
    processes = start_processes("cpu")
    assert (processes.rank, processes.count, processes.first) == (rank, COUNT, rank == 0)
    found: dict[str, Any] = {name: after(name, processes, 2) for name in METHODS}
    found["four parts"] = after("guidedmix", processes, 4)
    if torch.__version__ >= "2.7":  # FSDP's ignored_params
        found["sharded"] = after("guidedmix", processes, 2, sharded)
    found["gathered"] = gather(torch.full((2, 3), float(rank)))
    found["any"] = [processes.any(asked) for asked in (rank == 1, False)]
    found["across"] = across(rank)
    torch.save(found, Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def across(rank: int) -> tuple[Any, ...]:
    """Partners from the labeled images of both."""
    method = GuidedMix(tiny_net(), pair_across=True, reference=None, direct=0.5).train()
    x, y, u = tiny_batch(8, 8)
    part = slice(4 * rank, 4 * rank + 4)
    return tuple(method.guide(x[part], y[part], u[part], torch.Generator().manual_seed(rank)))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    method = forked.server().get_start_method()
    multiprocessing.start_processes(work, (str(folder),), COUNT, start_method=method)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(COUNT)]


def assert_alike(one: Any, other: Any, tolerance: float) -> None:
    (state, losses), (other_state, other_losses) = one, other
    assert state.keys() == other_state.keys()
    for name in state:
        difference = (state[name].double() - other_state[name].double()).abs().max()
        assert difference <= tolerance, name
    for row, other_row in zip(losses, other_losses, strict=True):
        assert row == pytest.approx(other_row, abs=tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one_that_goes_through_two_parts(
    name: str, found: list[dict[str, Any]]
) -> None:
    """Losses, weights, statistics, teachers and memories, in both of them."""
    assert_alike(found[0][name], found[1][name], 0.0)
    alone = after(name, SINGLE_PROCESS, 2)
    assert_alike(found[0][name], alone, 1e-5)
    assert alone[1][0]["total"] != alone[1][-1]["total"]


def test_two_parts_in_each_of_two_processes_are_four_in_one(found: list[dict[str, Any]]) -> None:
    assert_alike(found[0]["four parts"], after("guidedmix", SINGLE_PROCESS, 4), 1e-5)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="FSDP's ignored_params are of torch 2.7")
def test_shards_train_like_copies(found: list[dict[str, Any]]) -> None:
    assert_alike(found[0]["sharded"], found[0]["guidedmix"], 1e-5)


def test_what_processes_tell_each_other_is_the_same_in_all(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert torch.equal(
            one["gathered"], torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(4, 3)
        )
        assert one["any"] == [True, False]


def test_partners_are_found_in_other_processes(found: list[dict[str, Any]]) -> None:
    method = GuidedMix(tiny_net(), reference=None).eval()
    x, y, u = tiny_batch(8, 8)
    assert method.teacher is not None
    pool = method.teacher.net
    with torch.no_grad():
        key, query = pool.pool(pool.encode(torch.cat([x, u]))).split(8)
    nearest = G.nearest(query, key)
    chosen = torch.cat([one["across"][0].chosen for one in found])
    assert torch.equal(chosen, nearest)
    assert (chosen[:4] >= 4).any() or (chosen[4:] < 4).any()  # one went to the other process
    for rank, one in enumerate(found):
        (partner, x_partner, y_partner, *_), _, mix, _ = one["across"]
        assert torch.equal(x_partner, x[partner]) and torch.equal(y_partner, y[partner])
        lam = mix.lam[:, None, None, None]
        mixed = lam * x[partner] + (1 - lam) * u[4 * rank : 4 * rank + 4]
        torch.testing.assert_close(mix.image, mixed)


def test_a_step_has_as_many_parts_as_all_can_share() -> None:
    four = Processes()
    four.count = 4
    assert [four.micro_batches(accumulate) for accumulate in (1, 2, 3, 4, 6)] == [4, 4, 12, 4, 12]


@pytest.mark.parametrize("length", [0, 1, 5, 16, 17])
@pytest.mark.parametrize("block", [1, 8])
def test_every_place_has_one_process(length: int, block: int) -> None:
    shares = []
    for rank in range(3):
        one = Processes()
        one.rank, one.count = rank, 3
        shares.append(one.shard(length, block))
    assert [place for share in shares for place in share] == list(range(length))
    assert all(share.start % block == 0 for share in shares if len(share))


# --- as people start it -----------------------------------------------------------------------


def together(*words: str) -> forked.Ended:
    """What `torchrun -m gmix` comes to, but for its own start and the imports."""
    return forked.run(main, list(words), count=COUNT)


def test_two_processes_train_and_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", labeled=8, unlabeled=8, validation=11)
    settings: dict[str, Any] = {
        "batch_labeled": 4,
        "batch_unlabeled": 4,
        "held_out": 2,
        "labels": 6,
        "keep_best": True,
        "decide_for": "miou",
        "eval_every": 3,
    }
    flags = tmp_path / "flags.yaml"
    write_yaml(tiny_config(data, tmp_path / "two", **settings), flags)
    ran = together("train", "--config", str(flags))
    assert ran.codes == [0, 0], ran.err
    assert "2 processes share the 2 micro-batches of a step" in ran.out
    assert ran.out.count("best mIoU") == ran.out.count("step 6/6") == 1
    assert "find_unused_parameters" not in ran.err  # what torch warns of where all are used
    config = str(tmp_path / "two" / "config.yaml")  # which says in how many parts
    assert main(["train", "--config", config, "--out", str(tmp_path / "one")]) == 0

    def rows(name: str) -> list[dict[str, Any]]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    for one, two in zip(rows("one"), rows("two"), strict=True):
        assert one["step"] == two["step"] and one.keys() == two.keys()
        for key in one.keys() & {"losses", "pseudo"}:
            assert flat(two[key]) == pytest.approx(flat(one[key]), abs=1e-5)
        if "validation" in one:  # exactly: each image was predicted beside the same others
            assert one["validation"] == two["validation"]
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    passes = [
        json.loads((tmp_path / name / "results.json").read_text())["image_passes_per_step"]
        for name in ("one", "two")
    ]
    assert passes[0] == passes[1]

    # Half of it by two processes, the rest by two again, or by one.
    for name in ("three", "four"):
        shutil.copytree(tmp_path / "two", tmp_path / name)
        for file in ("SHA256SUMS", "state.pt"):
            (tmp_path / name / "checkpoint-00000006" / file).unlink()
    ran = together("train", "--config", str(flags), "--resume", "--out", str(tmp_path / "three"))
    assert ran.codes == [0, 0] and "going on after step 3" in ran.out, ran.err
    again = ["train", "--resume", "--out", str(tmp_path / "four"), "--config"]
    assert main([*again, str(flags)]) == 1
    assert "it was started with --accumulate 2" in capsys.readouterr().err
    assert main([*again, config]) == 0
    first, *others = (
        load_file(tmp_path / name / "model" / "model.safetensors")
        for name in ("one", "three", "four")
    )
    for second in others:
        for key in first:
            torch.testing.assert_close(first[key], second[key], atol=1e-5, rtol=1e-4)

    ran = together("evaluate", "--model", str(tmp_path / "two"), "--device", "cpu")
    assert ran.codes == [0, 0], ran.err
    assert ran.out.count("mIoU") == 1
    reached = rows("one")[-1 if "validation" in rows("one")[-1] else -2]["validation"]["miou"]
    assert f"{100 * reached:5.1f}" in ran.out


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGTERM")
def test_a_signal_to_torchrun_stops_all_of_them_after_the_same_step(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    flags = tmp_path / "flags.yaml"
    write_yaml(tiny_config(data, out, steps=100_000, checkpoint_every=0), flags)
    from torch.distributed.run import main as torchrun

    command = ["--standalone", "--nproc_per_node", str(COUNT)]
    command += ["-m", "gmix", "train", "--config", str(flags)]
    log, own = tmp_path / "log", {"PYTHONPATH": os.pathsep.join(sys.path)}
    running = forked.start(torchrun, command, out=log, variables=own)
    while running.is_alive() and not (log.is_file() and "\nstep 2/" in log.read_text("utf-8")):
        time.sleep(0.05)
    running.terminate()
    running.join()
    said = log.read_text("utf-8")
    stopped = re.search(r"stopped after step (\d+) of 100000, everything is saved", said)
    assert stopped is not None and said.count("stopped after step") == 1
    newest, notes = newest_checkpoint(out)
    assert newest is not None and newest.step == int(stopped[1]) and not notes


def test_what_the_first_refuses_is_said_once(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    flags = tmp_path / "flags.yaml"
    write_yaml(tiny_config(data, out), flags)
    out.mkdir()
    with locked(out):
        ran = together("train", "--config", str(flags))
    assert 0 not in ran.codes
    said = [line for line in ran.err.splitlines() if line.startswith(("gmix:", "gmix,"))]
    assert len(said) == 1 and "another process is training in" in said[0]


def flat(values: Any, name: str = "") -> dict[str, float]:
    if isinstance(values, dict):
        return {k: v for key in values for k, v in flat(values[key], f"{name}/{key}").items()}
    return {} if values is None else {name: values}


def test_what_processes_cannot_share_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data")
    config = tiny_config(data, tmp_path / "out", sync_norm=True)
    flags = tmp_path / "flags.yaml"
    write_yaml(config, flags)
    assert main(["train", "--config", str(flags)]) == 1
    assert "--sync-norm needs GPUs" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "--config", str(flags), "--device", "cuda:1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("gmix, process 1: --device cuda:1 cannot be the device of 2 processes")
    assert main(["predict"]) == 2
    assert "gmix predict is for one process" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_the_processes_is_refused() -> None:
    from gmix.training.train import check_divisible

    many = Processes()
    many.count = 4
    config = tiny_config(Path("data"), Path("out"), batch_labeled=4, batch_unlabeled=6)
    with pytest.raises(ValueError, match="must be multiples of 4"):
        check_divisible(config, many)
    check_divisible(tiny_config(Path(), Path(), batch_labeled=4, batch_unlabeled=8), many)
