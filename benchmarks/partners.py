"""How alike partners are: chosen at random, in a batch of 8, or among all labeled images.

    python benchmarks/partners.py --voc VOC2012 --encoder resnet50

Takes the data flags of `gmix train`. For each validation image, the classes in its mask and in that of its partner, the
first one (background) left out: how many they share, of all that are in either. Features are those of the encoder
before training.
"""

import sys

import torch
from torch import Tensor
from torchvision.transforms import v2

from gmix import FeatureBank, SimilarPairSelector
from gmix.builders.data import build_data
from gmix.builders.network import build_net, image_stats
from gmix.config.options import parse_size
from gmix.config.parser import parse
from gmix.config.train_config import TrainConfig
from gmix.data import eval_transform
from gmix.nn.network import GuidedMixNet

BATCH, DRAWS = 8, 10


def main() -> None:
    words = ["--method", "supervised", *sys.argv[1:]]
    config = parse(TrainConfig, "partners.py", __doc__.splitlines()[0], words)
    data = build_data(config)
    torch.manual_seed(0)
    net = build_net(config, data.classes.channels).eval()
    keys, theirs = look(net, data.labeled, config, len(data.classes.names))
    queries, ours = look(net, data.validation, config, len(data.classes.names))
    shared = (ours[:, None] & theirs).sum(2) / (ours[:, None] | theirs).sum(2).clamp(min=1)
    bank = FeatureBank(*keys.shape)
    bank.add(range(len(keys)), keys)
    whole = bank.nearest(queries).indices[:, 0]
    every = torch.arange(len(queries))
    few, batch = [], SimilarPairSelector()
    for _ in range(DRAWS):
        for some in every.split(BATCH):
            drawn = torch.randperm(len(keys))[:BATCH]
            few.append(shared[some, drawn[batch(queries[some], keys[drawn])]])
    print(f"| partner, of {len(keys)} labeled images | classes in common |\n|---|---|")
    for name, value in (
        ("at random", shared.mean()),
        (f"nearest of {BATCH}", torch.cat(few).mean()),
        (f"nearest of {len(keys)}", shared[every, whole].mean()),
    ):
        print(f"| {name} | {100 * value:.1f} % |")


@torch.no_grad()
def look(net: GuidedMixNet, images, config: TrainConfig, classes: int) -> tuple[Tensor, Tensor]:
    """Embeddings `(M, D)`, and which classes but the first occur `(M, K - 1)`."""
    transform, size = eval_transform(*image_stats(config)), parse_size(config.size or "192x256")
    embeddings, present = [], []
    for i in range(len(images)):
        image, mask = images[i]
        image = v2.functional.resize(image, list(size), antialias=True)
        x, _ = transform(image, mask)
        embeddings.append(net.embed(x.as_subclass(Tensor)[None])[0])
        present.append(
            torch.bincount(mask.flatten()[mask.flatten() < classes], minlength=classes)[1:] > 0
        )
    return torch.stack(embeddings), torch.stack(present)


if __name__ == "__main__":
    main()
