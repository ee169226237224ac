"""The trainings of a comparison, and the flags of each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gmix.config.files import known_data
from gmix.config.options import lookup
from gmix.config.parser import missing
from gmix.config.train_config import CompareConfig, TrainConfig
from gmix.methods import METHODS

BASELINE = "supervised"
UPPER = "supervised-full"


@dataclass(frozen=True)
class Run:
    """A training of a comparison.

    Attributes:
        method: Its row in the table: a method, or `supervised-full`.
        seed: Seed of the training.
        config: All its flags; `out` is its own folder.
    """

    method: str
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"{self.method}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Return the folder that it writes into."""
        return Path(str(self.config.out))


def plan(config: CompareConfig) -> list[Run]:
    """List all trainings of a comparison, seed by seed, so that every row of the table soon has a value.

    Raises:
        ValueError: If a method is unknown, or a setting may be meant for several methods.

    Examples:
        >>> config = CompareConfig(val_images="val", labels=9, full=True, seeds=2, out="o")
        >>> [run.name for run in plan(config)][:4]
        ['supervised-0', 'guidedmix-0', 'supervised-full-0', 'supervised-1']
    """
    if config.out is None:
        raise missing(config, "out")
    if config.val_images is None and known_data(config) is None:
        raise ValueError(
            "a comparison needs validation images: give --val-images DIR and --val-masks DIR"
        )
    methods = compared_methods(config)
    arguments = arguments_by_method(config, methods)
    if config.variant != "default" and "guidedmix" not in methods:
        raise ValueError(
            f"--variant {config.variant} is for guidedmix: add it to --methods, or leave it out"
        )
    shared = {item.name: getattr(config, item.name) for item in fields(TrainConfig)}
    runs = []
    for seed in config.all_seeds():
        for row in table_rows(config):
            method = BASELINE if row == UPPER else row
            own: dict[str, Any] = {
                "method": method,
                "method_args": arguments.get(method, {}),
                "variant": config.variant if method == "guidedmix" else "default",
                "seed": seed,
                "out": str(Path(config.out) / f"{row}-{seed}"),
            }
            if row == UPPER:  # no mask is left unused to judge pseudo masks with
                own |= {"labels": None, "held_out": 0}
            runs.append(Run(row, seed, TrainConfig(**{**shared, **own})))
    return runs


def table_rows(config: CompareConfig) -> list[str]:
    """List the methods, and the upper bound if requested."""
    return [*compared_methods(config), *([UPPER] if config.full else [])]


def compared_methods(config: CompareConfig) -> list[str]:
    """List the requested methods; the baseline is put first if it is not among them.

    Examples:
        >>> compared_methods(CompareConfig(methods="unimatch"))
        ['supervised', 'unimatch']
    """
    names = config.method_names()
    for name in names:
        lookup(name, METHODS, "--methods")
    return names if BASELINE in names else [BASELINE, *names]


def arguments_by_method(config: CompareConfig, methods: list[str]) -> dict[str, dict[str, Any]]:
    """Return `method_args` of each method, from a mapping per method, or one that can be meant for one method only.

    Raises:
        ValueError: If more than one method may be meant.

    Examples:
        >>> config = CompareConfig(method_args={"threshold": 0.9})
        >>> arguments_by_method(config, ["supervised", "unimatch"])
        {'unimatch': {'threshold': 0.9}}
        >>> config = CompareConfig(method_args={"unimatch": {"threshold": 0.9}})
        >>> arguments_by_method(config, ["supervised", "unimatch", "guidedmix"])
        {'unimatch': {'threshold': 0.9}}
    """
    given = config.method_args
    if given and given.keys() <= set(methods):
        for name, arguments in given.items():
            if not isinstance(arguments, dict):
                raise ValueError(
                    f"--method-args: {name} must have a mapping of its arguments, got {arguments!r}"
                )
        return given
    takers = [name for name in methods if name != BASELINE] or [BASELINE]
    if given and len(takers) > 1:
        raise ValueError(
            f"--method-args with {', '.join(map(str, given))} may be meant for any of "
            f'{", ".join(takers)}: write one mapping for each, e.g. "{{{takers[-1]}: {{...}}}}"'
        )
    return {takers[0]: given}
