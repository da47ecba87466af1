"""Situation: bridging with a new head: the network is trained on synthetic images, then its last layer is drawn anew
and the network is trained on real ones. Head and new head are drawn with one and the same seed.

Right: the new head is another draw than the one that the first stage began with (whose features were trained to fit
that one), and still the same for the same seed, in every arm that has one.

Sources: arxiv.org/abs/2403.19866 (bridged transfer ++), github.com/kaiko-ai/eva/issues/490
"""

import torch
from _case import check, done

import synthnb.bridge
from synthnb.bridge import ARMS, Runtime, TransferConfig, train_arm
from synthnb.data import digits, few_shot
from synthnb.glyphworld import world as glyphworld
from synthnb.train import TrainConfig, fit

few = few_shot(digits(32)["train"], 1, 0)
starts = []


def remember(model, data, config, **how):
    "Train as always, and keep the head that the stage begins with."
    starts.append(model.get_classifier().weight.detach().clone())
    return fit(model, data, config, **how)


synthnb.bridge.fit = remember


def heads(arm: str, seed: int) -> list[torch.Tensor]:
    "The heads that the two stages begin with, one step each."
    starts.clear()
    config = TransferConfig(TrainConfig(batch_size=8), steps=(1, 1))
    train_arm(ARMS[arm], str(glyphworld.folder("cnn")), few, few, config, seed=seed, runtime=Runtime(device="cpu"))
    return list(starts)


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0).item()


first, second = heads("bridged", 0)
check(
    "without a new head the second stage goes on with the first one's",
    alike(first, second) > 0.9 and not torch.equal(first, second),
    f"cosine {alike(first, second):.2f}",
)
for arm in ("bridged+new_head", "bridged++", "bridged+new_block", "vanilla+new_head"):
    for seed in (0, 1):
        first, second = heads(arm, seed)
        check(
            f"{arm}, seed {seed}: the new head is another draw",
            abs(alike(first, second)) < 0.3,
            "every value is the same" if torch.equal(first, second) else f"cosine {alike(first, second):.2f}",
        )
check("the same seed, the same new head", torch.equal(heads("bridged++", 0)[1], heads("bridged++", 0)[1]))
done()
