"""PrevMatch: earlier networks."""

import copy
import math
from typing import Any

import naive
import torch
from method_tester import SURE, MethodTester, batch_of
from naive import Batch, Losses, best, entropy, full, paste, share_of
from tiny_methods import BUILDERS
from tiny_nets import seeded, tiny_net
from torch import Generator, Tensor, nn


class TestPrevMatch(MethodTester):
    name = "prevmatch"
    options = {
        "strong": 0.7,
        "features": 0.3,
        "drop": 0.4,
        "previous": 0.6,
        "kept": 3,
        "models": 2,
        "every": 0.01,
    }
    weights = ("strong", "features")
    brings = "snapshots."
    needs_progress = True

    def move(self, method: Any, g: Generator) -> None:
        for k in (1, 2, 3):
            earlier = copy.deepcopy(method.net)
            for p in earlier.parameters():
                p.add_(0.04 * torch.randn(p.shape, generator=g))
            method.snapshots.take(earlier, (k + 0.5) * method.snapshots.every)

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        _, _, x_u, valid = batch
        kept = method.snapshots
        assert int(kept.taken) == 3 and len(kept.weights) == 3
        kept.weights[0] = torch.cat([v.detach().flatten() for _, v in of_a_snapshot(method.net)])
        kept.taken += 1
        kept.moment.fill_(5)  # 0.05 of the training
        outputs: list[Tensor] = []
        decode = method.net.decode
        method.net.decode = lambda *given: outputs.append(decode(*given)) or outputs[-1]
        called = method.net.register_forward_hook(lambda *given: outputs.append(given[-1]))
        losses = naive.unimatch(method, batch, g)
        called.remove()
        del method.net.decode
        strong, disturbed = outputs[-2][-8:], outputs[-1]

        order = torch.rand(3, generator=g).argsort(descending=True).tolist()
        number = 1 + int(2 * float(torch.rand((), generator=g)))
        drawn = [-math.log(1 - u) for u in torch.rand(2, generator=g).tolist()][:number]
        logits: Any = 0
        for k, weight in zip(order, drawn, strict=False):
            net, at = copy.deepcopy(method.net).eval(), 0
            with torch.no_grad():
                for _, value in of_a_snapshot(net):
                    value.copy_(kept.weights[k, at : at + value.numel()].view(value.shape))
                    at += value.numel()
                logits = logits + weight / sum(drawn) * net(x_u)
        assert at == kept.weights.shape[1]
        g.set_state(seeded(7).get_state())
        boxes = [method.view(x_u, g)[1] for _ in range(2)]
        labels, confidence = best(full(logits))
        previous = entropy(disturbed, labels, valid, confidence >= method.previous_threshold) / 2
        share_of(confidence >= method.previous_threshold, valid)
        for out, pasted in zip(strong.chunk(2), boxes, strict=True):
            mask, sure, inside = (paste(v, pasted) for v in (labels, confidence, valid))
            previous = previous + entropy(out, mask, inside, sure >= method.previous_threshold) / 4
        total = losses["total"] + 0.6 * 0.1 * previous
        return {**losses, "previous": previous, "total": total}

    def test_earlier_networks_have_most_to_say_halfway_and_nothing_before_there_is_one(
        self,
    ) -> None:
        without = BUILDERS[self.name.replace("prevmatch", "unimatch")]
        usual = without(tiny_net(), threshold=SURE[3])(*batch_of(), generator=seeded(0))
        weights = {0.0: 0.0, 0.02: 0.04, 0.25: 0.5, 0.5: 1.0, 0.9: 0.2, 1: 0}
        for progress, weight in weights.items():
            method: Any = self.make(previous=3.0)
            losses = method(*batch_of(), progress=progress, generator=seeded(0))
            assert int(method.snapshots.taken) == (progress > 0.02)
            assert (losses["previous"] > 0) == (progress > 0.02)
            for term in usual.keys() - {"total"}:
                assert torch.equal(losses[term], usual[term])
            torch.testing.assert_close(
                losses["total"], usual["total"] + 3 * weight * losses["previous"]
            )

    def test_a_network_is_kept_once_a_step_and_while_training_only(self) -> None:
        method: Any = self.make(every=0.1)
        start = [p.clone() for p in method.net.parameters()]
        method.eval()(*batch_of(), progress=0.5)
        assert method.snapshots.taken == 0
        optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
        for progress in (0.15, 0.15, 0.19, 0.2):  # the first two are micro-batches of a step
            method.train()(*batch_of(), progress=progress)["total"].backward()
            if progress != 0.15:
                optimizer.step()
        assert method.snapshots.taken == 2
        first, second, *rest = method.snapshots.weights
        count = sum(p.numel() for p in start)
        assert torch.equal(first[:count], torch.cat([p.flatten() for p in start]))
        assert not torch.equal(first[:count], second[:count]) and not torch.stack(rest).any()


class TestPrevMatchTaught(TestPrevMatch):
    name = "prevmatch, taught"
    brings = "teacher.net."
    test_a_few_steps_lower_the_total = None  # that it learns at all, its parent has shown


def of_a_snapshot(net: nn.Module) -> list[tuple[str, Tensor]]:
    every = [*net.named_parameters(), *net.named_buffers()]
    return [(name, value) for name, value in every if "num_batches" not in name]
