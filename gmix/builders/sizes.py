"""Whether the encoder takes images of the sizes that a run will show it."""

from __future__ import annotations

from collections.abc import Iterable

from gmix.config.options import parse_size
from gmix.config.train_config import TrainConfig
from gmix.nn.network import GuidedMixNet
from gmix.nn.sizes import dry_run, fixed_size


def check_sizes(net: GuidedMixNet, config: TrainConfig, tested: Iterable[tuple[int, int]]) -> None:
    """Try sizes on an encoder that takes one only, so that a wrong one ends the run now and not at its validation.

    Args:
        net: The network to train.
        config: The run's flags.
        tested: Sizes of the validation images.

    Raises:
        ValueError: If one does not fit; names the flag.
    """
    if not fixed_size(net.model.encoder)[1]:
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
        except RuntimeError:  # an operation without shapes on `meta`: the image itself will tell
            continue
