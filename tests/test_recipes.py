"""Recipes: each is valid and starts on a small data set in its true layout."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gmix.builders.method import build_method
from gmix.builders.network import build_net
from gmix.cli.main import main
from gmix.config.parser import parse
from gmix.config.recipes import read_recipe, recipe_names
from gmix.config.train_config import CompareConfig, TrainConfig
from gmix.config.yamlfile import read_yaml
from gmix.errors import UsageError
from gmix.methods import METHODS, GuidedMix
from tests.tiny_data import write_data
from tests.tiny_nets import tiny_net
from tests.true_layouts import WRITERS

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--steps", "2", "--batch-labeled", "2", "--batch-unlabeled", "2", "--crop", "64x64"]
SMALL += ["--norm-batches", "1"]
CHEAP = ["--encoder-weights", "none", "--workers", "0", "--threads", "1", "--device", "cpu"]


def recipe(name: str, *words: str) -> TrainConfig:
    return parse(TrainConfig, "gmix train", "", ["--recipe", name, *words])


# One recipe of each kind of network, with a small encoder of that kind.
TRAINED = {
    "cpu": "tu-test_efficientnet",
    "medical": "tu-test_resnet",
    "voc_1464_r50": "tu-test_resnet",
    "voc_1-8_dinov2_s_frozen": "tu-test_vit",
    "voc_1-8_dinov3_s": "tu-vit_tiny_patch16_dinov3_qkvb",
}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_network_and_a_method(name: str) -> None:
    config = recipe(name, *CHEAP)
    with torch.device("meta"):  # weights without values
        build_net(config, 3)
    assert isinstance(build_method(config, tiny_net()), GuidedMix)


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_of_each_kind_trains_two_steps(name: str, tmp_path: Path) -> None:
    """On its own data set, with its own network and method; only the sizes are smaller."""
    data, dataset = tmp_path / "data", read_recipe(name).get("dataset")
    if dataset is None:
        write_data(data, labeled=2, unlabeled=2, validation=1)
        where = ["--images", str(data / "images"), "--masks", str(data / "masks")]
        if "classes" not in read_recipe(name):
            where += ["--classes", str(data / "names.txt")]
        else:  # one foreground
            where += ["--label-map", "0:0,1:1,2:1"]
    else:
        WRITERS[dataset](data)
        lists = data / "ImageSets" / "Segmentation"
        if lists.is_dir():
            (lists / "trainaug.txt").write_text((lists / "train.txt").read_text())
        where = ["--data", str(data), "--labels", "1"]
    if "size" in read_recipe(name):
        where += ["--size", "64x64"]
    out = tmp_path / "run"
    words = ["--recipe", name, *where, *SMALL, *CHEAP, "--out", str(out)]
    words += ["--encoder", TRAINED[name]]
    if recipe(name).arch == "DPT":  # its decoder is larger than the encoder
        narrow = {"decoder_intermediate_channels": [16] * 4, "decoder_fusion_channels": 16}
        words += ["--model-args", str({**recipe(name).model_args, **narrow})]
    assert main(["train", *words]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["steps"] == 2 and results["method"] == "guidedmix"
    saved = read_yaml(out / "config.yaml")
    given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    settings = read_recipe(name)
    settings["method_args"] = settings.get("method_args", {}).get("guidedmix", {})
    for key, value in settings.items():  # what was not given is the recipe's
        assert key in given or saved[key] == value, key
    assert saved["recipe"] == name


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_what_it_is_and_is_in_the_docs(name: str) -> None:
    text = (ROOT / "gmix" / "config" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"`{name}`" in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_counts_are_those_of_the_names() -> None:
    """Fractions of 10,582, 2,975 and 4,998 images, rounded up as the lists in circulation are."""
    totals = {"voc": 10582, "cityscapes": 2975, "context": 4998}
    checked = 0
    for name in recipe_names():
        found = re.match(r"(voc|cityscapes|context)_(\d+)-(\d+)_", name)
        if found:
            part, whole = int(found[2]), int(found[3])
            assert recipe(name).labels == -(-totals[found[1]] * part // whole), name
            checked += 1
    assert checked == 24


def test_the_paper_is_what_the_design_says_it_is() -> None:
    voc, city, context = map(recipe, ("voc_1-8_r101", "cityscapes_1-8_r101", "context_1-8_r101"))
    assert [config.crop for config in (voc, city, context)] == ["321x321", "513x513", "480x480"]
    assert [config.batch_labeled for config in (voc, city, context)] == [12, 8, 8]
    assert city.method_args == {"selector": "random", "mixer": {"max_lambda": 0.3}}
    assert context.method_args == {"mixer": {"max_lambda": 0.4}}
    for config in (voc, city, context):
        optimisation = (config.optimizer, config.lr, config.weight_decay, config.steps)
        assert optimisation == ("sgd", 1e-3, 1e-4, 40_000)
        assert (config.variant, config.arch) == ("paper", "GuidedMixUnet")


def test_ablations_change_one_thing() -> None:
    base = vars(recipe("voc_1464_r50"))
    for name in recipe_names():
        if name.startswith("ablation"):
            changed = {key for key, value in vars(recipe(name)).items() if base[key] != value}
            assert len(changed - {"recipe"}) == 1, name


def test_flags_win_over_a_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: voc_1464_r50\nlr: 0.5\nsteps: 7\n")
    config = parse(TrainConfig, "gmix train", "", ["--config", str(file), "--steps", "9"])
    found: dict[str, Any] = vars(config)
    assert [found[key] for key in ("steps", "lr", "labels", "optimizer")] == [9, 0.5, 1464, "sgd"]
    config = parse(TrainConfig, "gmix train", "", ["--config", str(file), "--recipe", "cpu"])
    assert (config.recipe, config.encoder_weights, config.lr) == ("cpu", "lite0", 0.5)


def test_the_settings_of_a_recipe_build_every_method() -> None:
    built = set()
    for name in recipe_names():
        settings = read_recipe(name)
        by_method = settings.get("method_args", {})
        assert by_method.keys() <= METHODS.keys()
        for method in METHODS if by_method else by_method:
            own = (method, str(by_method.get(method)), settings.get("loss"))
            if own in built:  # by a recipe before
                continue
            built.add(own)
            words = [] if method == "guidedmix" else ["--method", method, "--variant", "default"]
            config = recipe(name, *words)
            assert config.method_args == by_method.get(method, {})
            build_method(config, tiny_net())
    assert len(built) > len(METHODS)


def test_published_settings_of_cityscapes_reach_their_method() -> None:
    for name in ("cityscapes_100_r101", "cityscapes_1-8_deeplab"):
        words = ["--method=UniMatch", "--variant", "default"]
        config = recipe(name, *words)
        assert config.method_args == {"threshold": 0.0}
        assert build_method(config, tiny_net()).threshold == 0
        assert recipe(name, *words, "--method-args", "{strong: 1.0}").method_args == {"strong": 1.0}
        compared = ["--recipe", name, "--methods", "supervised,cps,prevmatch"]
        found = parse(CompareConfig, "gmix compare", "", compared).method_args
        assert found == {
            "cps": {"cross": 6.0},
            "prevmatch": {"threshold": 0.0, "previous_threshold": 0.0},
        }
        compared = ["--recipe", name, "--methods", "all"]
        every = parse(CompareConfig, "gmix compare", "", compared).method_args
        assert every["cps"] == found["cps"] and every == read_recipe(name)["method_args"]
    assert recipe("cityscapes_1-8_deeplab").loss == "ohem"


def test_the_method_of_a_file_takes_its_settings_from_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: cityscapes_100_r101\nmethod: s4gan\n")
    config = parse(TrainConfig, "gmix train", "", ["--config", str(file)])
    assert config.method_args == {"threshold": 0.7}
    config = parse(TrainConfig, "gmix train", "", ["--config", str(file), "--method", "cps"])
    assert config.method_args == {"cross": 6.0}
    file.write_text(file.read_text() + "method_args: {matching: 0.5}\n")
    config = parse(TrainConfig, "gmix train", "", ["--config", str(file)])
    assert config.method_args == {"matching": 0.5}


def test_comparisons_take_recipes() -> None:
    words = ["--recipe", "cpu", "--methods", "supervised,unimatch"]
    assert parse(CompareConfig, "gmix compare", "", words).encoder_weights == "lite0"


def test_mistakes_in_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no recipe voc_1-8_r10, did you mean voc_1-8_r101\?"):
        recipe("voc_1-8_r10")
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: cpu\nsteps: many\n")
    with pytest.raises(UsageError, match="--steps expects a whole number, got many"):
        parse(TrainConfig, "gmix train", "", ["--config", str(file)])
