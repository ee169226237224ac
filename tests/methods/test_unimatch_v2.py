"""UniMatch V2: complementary channels."""

from typing import Any

import torch
from method_tester import MethodTester
from naive import Batch, Losses, best, entropy, followed, full, labeled_entropy, paste, share_of
from torch import Generator


class TestUniMatchV2(MethodTester):
    name = "unimatch_v2"
    steps = 24
    options = {"strong": 0.7}
    weights = ("strong",)

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        (one, at_one), (two, at_two) = method.view(x_u, g), method.view(x_u, g)
        assert at_one.box.any() and at_two.box.any()
        labels, confidence = best(full(followed(method)(x_u)))
        whole = [place < 2 for place in torch.randperm(4, generator=g).tolist()]
        features = method.net.encode(torch.cat([x_l, one, two]))
        dropped = []
        for f in features:
            factors = torch.ones(8, f.shape[1])
            for i, row in enumerate(torch.rand(4, f.shape[1], generator=g).tolist()):
                for k, u in enumerate(row):
                    if not whole[i]:
                        factors[i, k], factors[4 + i, k] = (2, 0) if u < 0.5 else (0, 2)
            dropped.append(f[3:] * factors[:, :, None, None])
        labeled = method.net.decode([f[:3] for f in features], (32, 24))
        strong = method.net.decode(dropped, (32, 24))
        each: Any = 0
        for out, pasted in ((strong[:4], at_one), (strong[4:], at_two)):
            mask, sure, inside = (paste(v, pasted) for v in (labels, confidence, valid))
            each = each + entropy(out, mask, inside, sure >= method.threshold) / 2
        share_of(confidence >= method.threshold, valid)
        supervised = labeled_entropy(labeled, y)
        return {"supervised": supervised, "strong": each, "total": supervised + 0.7 * each}
