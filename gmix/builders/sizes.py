"""Check that the encoder accepts the image sizes of a run."""

from __future__ import annotations

from collections.abc import Iterable

from gmix.config.options import parse_size
from gmix.config.train_config import TrainConfig
from gmix.nn.network import GuidedMixNet
from gmix.nn.sizes import dry_run, fixed_size


def check_sizes(net: GuidedMixNet, config: TrainConfig, tested: Iterable[tuple[int, int]]) -> None:
    """Try all sizes on an encoder with a fixed size, so that a wrong one ends the run now, not at validation.

    Args:
        net: Network to train.
        config: Configuration of the run.
        tested: Sizes of the validation images.

    Raises:
        ValueError: If a size does not fit; the message names the flag.
    """
    if not fixed_size(net.encoder)[1]:
        return
    whole = tested if config.size is None else [parse_size(config.size)]
    sizes = [
        ("--crop", config.crop_size()),
        *(("validation image", size) for size in sorted(whole)),
    ]
    for what, (height, width) in sizes:
        try:
            dry_run(net, (1, config.channels, height, width))
        except ValueError as error:
            raise ValueError(
                f"{what} {height}x{width}: {error} (--size HxW, "
                '--model-args "{img_size: [H, W]}")'
            ) from error
        except RuntimeError:  # an operation that `meta` lacks: the image itself will tell
            continue
