"""What the tests around label ambiguity resolution share: templates, the numerals' senses, noise."""

import torch

from synthnb.glyphworld.signs import senses_named
from synthnb.models.meanings import Candidate

TEMPLATES = ("a photo of a {phrase}",)


def senses_of(names) -> dict[str, list[Candidate]]:
    return {name: [Candidate(phrase=s.phrase, key=s.key) for s in senses_named(name)] for name in names}


def noise(images: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
