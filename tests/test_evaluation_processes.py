"""Two processes count what one counts; a file of its own, as each process imports it."""

from pathlib import Path

import forked
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torchvision import tv_tensors

from gmix.data import Classes, Sample, eval_transform
from gmix.evaluation import ConfusionMatrix, add_other_processes, count_pixels

PROCESSES = 2
SIZES = (1, 5)  # images of the data sets; of one image, the second process has none


def count(images: int, indices: range | None = None) -> ConfusionMatrix:
    generator = torch.Generator().manual_seed(images)
    items = [
        Sample(
            tv_tensors.Image(
                torch.randint(0, 256, (3, 9, 7), generator=generator, dtype=torch.uint8)
            ),
            tv_tensors.Mask(torch.randint(0, 3, (9, 7), generator=generator)),
        )
        for _ in range(images)
    ]
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 3, padding=1)
    # One by one: a batch may round otherwise, and a pixel that is level change sides.
    return count_pixels(
        net, items, Classes.of(3), transform=eval_transform(), batch_size=1, indices=indices
    )


def work(rank: int, folder: str) -> None:
    """What one process does, as docs/evaluation.md has it."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=Path(folder, "meet").as_uri(), rank=rank, world_size=PROCESSES
    )
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for images in SIZES:
        own = count(images, range(rank, images, PROCESSES))
        before = own.counts.clone()
        found.append((before, add_other_processes(own).counts, own.counts))
    torch.save(found, Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_two_processes_give_exactly_the_scores_of_one(tmp_path: Path) -> None:
    method = forked.server().get_start_method()
    multiprocessing.start_processes(work, (str(tmp_path),), PROCESSES, start_method=method)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES))
    for images, one, two in zip(SIZES, first, second, strict=True):
        whole = count(images)
        assert whole.counts.sum() == images * 63  # no image twice, none left out
        assert torch.equal(one[0] + two[0], whole.counts)
        for before, total, after in (one, two):
            assert torch.equal(before, after)
            matrix = ConfusionMatrix(3)
            matrix.counts += total
            assert repr(matrix.scores()) == repr(whole.scores())
