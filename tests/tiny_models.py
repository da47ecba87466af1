"""Parts of pipelines with few and random weights, which tests of several rooms build."""

from diffusers import AutoencoderKL


def tiny_vae(blocks: tuple[int, ...] = (8, 8), norm_num_groups: int = 4, **more) -> AutoencoderKL:
    """A decoder as Stable Diffusion's, with these widths; `more` are settings of the class."""
    options = {"latent_channels": 4, "layers_per_block": 1, "sample_size": 16} | more
    return AutoencoderKL(
        block_out_channels=blocks,
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks),
        norm_num_groups=norm_num_groups,
        **options,
    )
