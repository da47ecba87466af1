"""Draw the images that README shows beside its figure: `python tools/draw_front.py`, half a minute on two cores.

MNIST's scans of each digit, and images of the shipped generator for what the bridging study asks of it, `arabic digit`
and the name. A judge that was trained apart from the generator looks at every image; what it takes for another meaning
is marked with a red frame.
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from synthnb.core.plots import bare, drawing  # noqa: E402
from synthnb.datasets.targets import open_target  # noqa: E402
from synthnb.glyphworld.recognisers import judged, load_judge, world_of  # noqa: E402
from synthnb.glyphworld.world import folder  # noqa: E402
from synthnb.models.pipelines import load_generator  # noqa: E402

EACH = 6  # generated images of each class
STYLES = ("in white chalk on a blackboard", "a neon sign at night", "printed in black ink", "a pencil drawing")

if __name__ == "__main__":
    torch.set_num_threads(1)
    real = open_target("mnist", 32)["train"]
    pipe = load_generator(folder("generator"), device="cpu")
    pipe.set_progress_bar_config(disable=True)
    judge, names = load_judge(folder("judge")), real.classes
    with drawing(EACH + 2, len(names), size=(7.2, 0.72 * (EACH + 2)), dpi=80) as (figure, axes):
        axes = axes.reshape(EACH + 2, len(names))
        bare(*axes.ravel())
        for column, name in enumerate(names):
            own = real.images[real.labels == column][:2]
            prompts = [f"an arabic digit {name}, {STYLES[i % len(STYLES)]}" for i in range(EACH)]
            noise = [torch.Generator().manual_seed(100 * column + i) for i in range(EACH)]
            drawn = pipe(prompts, num_inference_steps=20, guidance_scale=2.0, generator=noise, output_type="pt").images
            said, _ = judged(judge, (255 * drawn).round().to(torch.uint8))
            for row, image in enumerate([*(image / 255 for image in own), *drawn]):
                axes[row, column].imshow(image.float().permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
            for row, sense in enumerate(said.tolist(), start=2):
                wrong = world_of(judge).senses[sense].phrase != f"arabic digit {name}"
                axes[row, column].spines[:].set(visible=wrong, color="red", linewidth=2)
            axes[0, column].set_title(name)
        axes[0, 0].set_ylabel("real")
        axes[2, 0].set_ylabel("generated")
    figure.savefig(ROOT / "nbs/guides/figures/images.png")
