"""Loops of one's own in several processes: what is wrapped wrongly, or not at all, is said and not silent."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel as DDP

from gmix import GuidedMixNet
from gmix.methods import CPS, GuidedMix, MeanTeacher, Supervised

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")

COUNT = 2


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # asked for, not used
    distributed.init_process_group(
        "gloo", init_method=Path(folder, "meet").as_uri(), rank=rank, world_size=COUNT
    )
    found: dict[str, Any] = {
        "alone": words_of(Supervised(tiny_net()), rank),
        "begun": words_of(Supervised(tiny_net()), rank, step_started=True),
        "uneven": uneven(rank),
        "refused": [refusal(rank, make) for make in WRONG],
    }
    for name, make in (("wrapped", GuidedMix), ("mean teacher", MeanTeacher)):
        method = make(tiny_net())
        found[name] = words_of(DDP(method, broadcast_buffers=False), rank)
        found[f"{name}, weights"] = [p.detach().clone() for p in method.net.parameters()]
        found[f"{name}, teacher"] = [p.detach().clone() for p in method.teacher.parameters()]
    torch.save(found, Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def words_of(method: Any, rank: int, **told: Any) -> list[str]:
    """The warnings of two steps, each process with images of its own."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(2):
            optimizer.zero_grad()
            batch = tiny_batch(seed=10 * step + rank)
            losses = method(*batch, progress=0.5, generator=seeded(step), **told)
            losses["total"].backward()
            optimizer.step()
    return [
        str(w.message) for w in caught if "gmix" in w.filename or "weights drift" in str(w.message)
    ]


def uneven(rank: int) -> str:
    """The last batch of an epoch, of three images here and of two there."""
    try:
        GuidedMix(tiny_net(), pair_across=True, reference=None, direct=0.5).guide(
            *tiny_batch(3 - rank)
        )
    except ValueError as error:
        return str(error)
    return "nothing"


def ddp_inside(net: GuidedMixNet) -> Any:
    """DDP slipped in under a method that was made before."""
    method = Supervised(net)
    net.model.decoder = DDP(net.model.decoder)
    return method(*tiny_batch(), progress=0.5)


def sharded_inside(net: GuidedMixNet) -> Any:
    """The model in shards, as `accelerator.prepare(model)` makes it."""
    from torch.distributed.fsdp import fully_shard

    method = Supervised(net)
    fully_shard(net.model)
    return method(*tiny_batch(), progress=0.5)


def fsdp_inside(net: GuidedMixNet) -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    return GuidedMixNet(FSDP(net.model, device_id=torch.device("cpu")))


WRONG: list[Any] = [
    sharded_inside,
    fsdp_inside,
    lambda net: GuidedMixNet(DDP(net.model)),
    lambda net: GuidedMix(DDP(net)),
    lambda net: CPS(DDP(net)),
    lambda net: GuidedMixNet(nn.DataParallel(net.model)),
    ddp_inside,
]


def refusal(rank: int, make: Any) -> str:
    net = tiny_net()
    try:
        make(net)
    except TypeError as error:
        return str(error)
    return "nothing"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("distributed")
    method = forked.server().get_start_method()
    multiprocessing.start_processes(work, (str(folder),), COUNT, start_method=method)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(COUNT)]


def test_a_method_that_nothing_distributes_is_warned_of_once(found: list[dict[str, Any]]) -> None:
    for one in found:
        (words,) = one["alone"]
        assert words.startswith("2 processes train together, but this method is called without a")
        assert "call DistributedDataParallel(method)" in words
        assert one["begun"] == []  # a loop that knows what it does, as the trainer of gmix


@pytest.mark.parametrize("name", ["wrapped", "mean teacher"])
def test_the_wrapped_method_keeps_replicas_equal_without_a_word(
    name: str, found: list[dict[str, Any]]
) -> None:
    assert [one[name] for one in found] == [[], []]
    for key in (f"{name}, weights", f"{name}, teacher"):
        assert all(map(torch.equal, found[0][key], found[1][key])), key


def test_labeled_batches_of_different_size_are_refused_in_all(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["uneven"].startswith(
            "processes that train together need labeled batches of equal"
        )
        assert "drop_last=True" in one["uneven"] and "\n" not in one["uneven"]


def test_a_wrapper_in_the_wrong_place_is_refused_with_the_remedy(
    found: list[dict[str, Any]],
) -> None:
    for one in found:
        for words in one["refused"]:
            assert re.search(
                r": wrap the method instead, (DistributedDataParallel|fully_shard)\(method\)$",
                words,
            )
            assert "\n" not in words
        assert [w.endswith("fully_shard(method)") for w in one["refused"]].count(True) == 2
        assert "`net.model.decoder` is wrapped in DistributedDataParallel" in one["refused"][-1]


def test_a_replica_of_dataparallel_is_refused_for_its_teacher_would_never_move() -> None:
    replica = MeanTeacher(tiny_net())._replicate_for_data_parallel()
    with pytest.raises(TypeError, match=r"use DistributedDataParallel\(method\), one process per"):
        replica(*tiny_batch(), progress=0.5)
