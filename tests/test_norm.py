"""BatchNorm's statistics, taken anew before a network is tested and saved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import tiny_config, write_data
from tiny_nets import tiny_net
from torch import Tensor, nn

from gmix.data import Batch
from gmix.nn.views import CutMix, StrongColor
from gmix.training.fit import step_seed
from gmix.training.norm import renew_statistics, unlabeled_views
from gmix.training.train import train


def statistics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if "running_" in name}


def test_statistics_are_the_mean_over_batches() -> None:
    net = tiny_net()
    inputs: list[Tensor] = []
    first = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    images = [torch.randn(n, 3, 32, 32, generator=torch.manual_seed(n)) + n for n in (2, 3, 4)]
    renewed = renew_statistics(net, images)
    norm = next(m for m in renewed.modules() if isinstance(m, nn.BatchNorm2d))
    first.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    with torch.no_grad():
        for batch in images:
            net.train()(batch)
    seen = [x.transpose(0, 1).flatten(1).double().numpy() for x in inputs]
    mean = sum(x.mean(1) for x in seen) / 3
    variance = sum(x.var(1, ddof=1) for x in seen) / 3
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(
        norm.running_mean.double(), torch.from_numpy(mean), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        norm.running_var.double(), torch.from_numpy(variance), rtol=1e-4, atol=1e-5
    )


def test_the_network_that_trains_stays_as_it_is() -> None:
    net = tiny_net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    renewed = renew_statistics(net, [torch.randn(2, 3, 32, 32) + 3])
    assert net.training and not any(module.training for module in renewed.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    momenta = {m.momentum for m in renewed.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
    changed = {
        name for name, value in renewed.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed >= statistics(before).keys()
    assert all("running_" in name or "num_batches" in name for name in changed)


def test_dropout_neither_changes_the_result_nor_torchs_generator() -> None:
    net = tiny_net()
    first = next(name for name, m in net.named_modules() if isinstance(m, nn.Conv2d))
    parent, _, child = first.rpartition(".")
    setattr(
        net.get_submodule(parent), child, nn.Sequential(net.get_submodule(first), nn.Dropout(0.5))
    )
    images = [torch.randn(4, 3, 32, 32)]
    before = torch.get_rng_state()
    once = renew_statistics(net, images).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again = renew_statistics(net, images).state_dict()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_views_are_the_crops_as_they_are_and_as_students_see_them() -> None:
    labeled = torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, 16).long()
    crops = torch.randn(3, 4, 3, 16, 16)
    mean, std, device = [0.4, 0.5, 0.6], [0.2, 0.3, 0.2], torch.device("cpu")
    views = list(
        unlabeled_views(
            (Batch(*labeled, x) for x in crops), mean=mean, std=std, seed=3, device=device
        )
    )
    generator = torch.Generator().manual_seed(step_seed(3, 0, "views"))
    color, cutmix = StrongColor(mean=mean, std=std), CutMix()
    for x, view in zip(crops, views, strict=True):
        strong = color(x, generator)
        assert torch.equal(view[:4], x)
        assert torch.equal(view[4:], cutmix(strong, generator).apply(strong))
        assert not torch.equal(view[4:], x)


def test_a_run_saves_and_scores_with_statistics_of_unlabeled_crops(
    data: Path, tmp_path: Path
) -> None:
    runs = {
        batches: train(
            tiny_config(
                data, tmp_path / str(batches), norm_batches=batches, decide_for="pixels", steps=3
            )
        )
        for batches in (0, 2)
    }
    saved = {b: load_file(run.out / "model" / "model.safetensors") for b, run in runs.items()}
    trained = load_file(runs[2].out / "checkpoint-00000003" / "method.safetensors")
    for name, value in saved[0].items():
        assert torch.equal(value, trained[f"net.model.{name}"]), name
    differing = {n for n, value in saved[0].items() if not torch.equal(value, saved[2][n])}
    assert differing >= statistics(saved[0]).keys()
    assert all("running_" in name or "num_batches" in name for name in differing)
    assert {int(v) for name, v in saved[2].items() if "num_batches" in name} == {2}


def test_renewed_statistics_do_not_depend_on_where_a_run_was_taken_up(
    data: Path, tmp_path: Path
) -> None:
    whole = train(tiny_config(data, tmp_path / "whole", eval_every=2))
    config = tiny_config(data, tmp_path / "again", eval_every=0)
    train(config)
    config.resume = True  # after the end: tested and saved once more
    again = train(config)
    weights = [load_file(run.out / "model" / "model.safetensors") for run in (whole, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert whole.miou == again.miou


def test_views_of_supervised_training_are_all_its_images() -> None:
    """It was trained on labeled crops, not on strong views."""
    x_labeled, crops = torch.randn(1, 3, 16, 16), torch.randn(3, 4, 3, 16, 16)
    batches = (Batch(x_labeled, torch.zeros(1, 16, 16).long(), x) for x in crops)
    given = {"mean": [0.5] * 3, "std": [0.5] * 3, "seed": 3, "device": torch.device("cpu")}
    views = list(unlabeled_views(batches, **given, supervised=True))
    assert all(map(torch.equal, views, (torch.cat([x, x_labeled]) for x in crops)))


@pytest.mark.parametrize("unlabeled", [0, 4])
def test_supervised_training_is_finished_with_unlabeled_images_if_there_are_any(
    tmp_path: Path, unlabeled: int
) -> None:
    data = write_data(tmp_path / "data", unlabeled=unlabeled)
    run = train(tiny_config(data, tmp_path / "run", method="supervised", steps=3))
    saved = load_file(run.out / "model" / "model.safetensors")
    trained = load_file(run.out / "checkpoint-00000003" / "method.safetensors")
    changed = {n for n, value in saved.items() if not torch.equal(value, trained[f"net.model.{n}"])}
    assert bool(changed) == (unlabeled > 0)
    finished = ("running_mean", "running_var", "num_batches_tracked", "segmentation_head.0.bias")
    assert all(name.endswith(finished) for name in changed)
    results = json.loads((run.out / "results.json").read_text())
    assert results["last"]["step"] == 3 and results["images"]["unlabeled"] == unlabeled
