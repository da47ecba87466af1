"""Opening generators: what is in a folder, what fits into memory, LoRA and scheduler options.

And one large model at a time.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from synthnb.data import LabelledImages
from synthnb.generate import draw_batches
from synthnb.glyphworld import world as glyphworld
from synthnb.images.denoise import DenoisingLoop, MemoryRoom, TextTable
from synthnb.images.drawer import Drawing
from synthnb.images.inspection import replay, why
from synthnb.images.plan import make_plan, write_plan
from synthnb.images.shards import generate_shards
from synthnb.models import pipelines
from synthnb.models.gpu_memory import check_memory, place_pipeline
from synthnb.models.latents import encode_images
from synthnb.models.pipeline_files import check_generator_folder
from synthnb.models.pipelines import GeneratorConfig, fetch_generator, load_generator, lora_revision
from synthnb.studies import drawing
from synthnb.studies.stages import stages_folder

torch.set_num_threads(1)
GENERATOR = str(glyphworld.folder("generator"))
PNG = Drawing(device="cpu", kind="png")
PROMPTS = {"three": ["three"], "eight": ["eight"]}
OOM = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "The shipped generator in one piece, in several, and as fp16 only."
    place = tmp_path_factory.mktemp("generators")
    pipe = StableDiffusionPipeline.from_pretrained(GENERATOR)
    shutil.copytree(GENERATOR, place / "whole")
    pipe.save_pretrained(place / "parts", max_shard_size="2MB")
    pipe.save_pretrained(place / "half", variant="fp16")
    return place


def opened(**config):
    return load_generator(GENERATOR, "cpu", config=GeneratorConfig(**config))


def plan(images=4, **more):
    return make_plan(PROMPTS, images, **dict(seed=0, model=GENERATOR, steps=2, guidance=1.0, batch_size=8) | more)


def scarce(pipe, decodes=1000, denoises=1000):
    "Memory for so many at once; and what the denoiser and the decoder were asked for."
    seen = {"denoised": [], "refused": 0, "decoded": []}
    decode, forward = pipe.vae.decode, pipe.unet.forward

    def scarce_decode(latents, *args, **kwargs):
        if len(latents) > decodes:
            raise torch.OutOfMemoryError(OOM)
        seen["decoded"].append(len(latents))
        return decode(latents, *args, **kwargs)

    def scarce_forward(sample, *args, **kwargs):
        if len(sample) > denoises:
            seen["refused"] += 1
            raise torch.OutOfMemoryError(OOM)
        seen["denoised"].append(len(sample))
        return forward(sample, *args, **kwargs)

    pipe.vae.decode, pipe.unet.forward = scarce_decode, scarce_forward
    return seen


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize(
    "folder, spoil, named",
    [
        ("whole", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"),
        ("whole", "text_encoder/model.safetensors", "text_encoder/model.safetensors"),
        ("whole", "vae/config.json", "vae/config.json"),
        ("whole", "scheduler/scheduler_config.json", "scheduler/scheduler_config.json"),
        ("parts", "unet/diffusion_pytorch_model-00003-*", "unet/diffusion_pytorch_model-00003-"),
        ("parts", "unet/diffusion_pytorch_model.safetensors.index.json", "index.json"),
        ("half", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_missing_file_is_named(folders, tmp_path, folder, spoil, named):
    shutil.copytree(folders / folder, tmp_path / "model")
    check_generator_folder(tmp_path / "model")
    for file in (tmp_path / "model").glob(spoil):
        file.unlink()
    for look in (check_generator_folder, lambda place: load_generator(place, "cpu")):
        with pytest.raises((FileNotFoundError, ValueError)) as told:
            look(tmp_path / "model")
        assert named in str(told.value)


def test_only_what_opening_reads_is_counted(folders, tmp_path):
    shutil.copytree(folders / "whole", tmp_path / "both")
    for file in (folders / "half").glob("*/*.fp16.safetensors"):
        shutil.copy(file, tmp_path / "both" / file.parent.name)
    assert not [file for file in check_generator_folder(tmp_path / "both") if "fp16" in file.name]
    assert all("fp16" in file.name for file in check_generator_folder(tmp_path / "both", "fp16"))
    assert len(check_generator_folder(folders / "parts")) > len(check_generator_folder(folders / "whole")) == 3


@pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_a_pipeline_that_starts_from_images_is_refused(kind, tmp_path):
    parts = StableDiffusionPipeline.from_pretrained(GENERATOR).components
    getattr(diffusers, kind)(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is a {kind}, which draws from an image, not from a prompt alone"):
        load_generator(tmp_path, "cpu")


@pytest.mark.parametrize("latents, side", [(8, 32), ([8, 8], 32), ([8, 16], None), (None, None)])
def test_a_generators_own_size_is_one_for_drawing_and_learning(latents, side):
    pipe = opened()
    pipe.unet.register_to_config(sample_size=latents)
    images = LabelledImages(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.arange(2), ("a", "b"))
    for use in (lambda: encode_images(pipe, images), lambda: DenoisingLoop(pipe, steps=1, guidance=1.0)):
        with nullcontext() if side else pytest.raises(ValueError, match="is not a square: give the plan a size"):
            made = use()
            assert side in (getattr(made, "side", 0), 4 * made.mean.shape[-1] if hasattr(made, "mean") else 0)


def test_lists_that_are_settings_are_no_parts(folders, tmp_path):
    shutil.copytree(folders / "whole", tmp_path / "model")
    index = json.loads((tmp_path / "model/model_index.json").read_text())
    (tmp_path / "model/model_index.json").write_text(
        json.dumps(index | {"layers": [9, 18, 27], "pair": [1, 2], "names": ["a"], "none": [None, None], "empty": []})
    )
    assert len(check_generator_folder(tmp_path / "model")) == 3


@pytest.mark.parametrize("file", ["a.safetensors", "a/b.safetensors", "./b.ckpt", "sd.gguf"])
def test_a_single_file_is_told_to_be_one(file):
    for open_it in (check_generator_folder, load_generator, fetch_generator):
        with pytest.raises(ValueError, match="is a single file.*from_single_file"):
            open_it(Path(file))


# ---------------------------------------------------------------- memory


def test_what_did_not_fit_is_tried_once_in_all_shards(tmp_path, monkeypatch):
    opened, seen = load_generator, {}

    def small(*args, **kwargs):
        pipe = opened(*args, **kwargs)
        seen["pipe"] = scarce(pipe, decodes=4, denoises=4)
        return pipe

    monkeypatch.setattr("synthnb.models.pipelines.load_generator", small)
    written = write_plan(
        tmp_path / "plan.parquet",
        PROMPTS,
        16,
        seed=0,
        model=GENERATOR,
        steps=3,
        guidance=1.0,
        batch_size=8,
        shard_size=8,
    )
    assert generate_shards(written, tmp_path / "shards", GENERATOR, drawing=PNG, progress=False).images == 32
    found = seen["pipe"]
    assert found["refused"] == 1 and sum(found["denoised"]) == 3 * 32, (
        "four shards, and memory ran out in the first only"
    )
    assert found["decoded"] == [4] * 8


def test_the_decoder_backs_off_in_every_loop():
    from test_families import drawn, made, planned

    pipe, plan = made("SD 3.5"), planned("SD 3.5", 5.0)
    enough, denoised, forward, decode = drawn("SD 3.5", plan), [], pipe.transformer.forward, pipe.vae.decode

    def counting(*args, **kwargs):
        denoised.append(1)
        return forward(*args, **kwargs)

    def small(latents, *args, **kwargs):
        if len(latents) > 1:
            raise torch.OutOfMemoryError(OOM)
        return decode(latents, *args, **kwargs)

    pipe.transformer.forward, pipe.vae.decode = counting, small
    try:
        assert (drawn("SD 3.5", plan) - enough).abs().max() <= 1
        assert len(denoised) == 2, "two steps, none of them twice"
        assert pipe.vae.decode is small, "left as it was found"
    finally:
        del pipe.transformer.forward, pipe.vae.decode


def test_a_decoder_without_room_for_one_says_what_helps():
    pipe = load_generator(GENERATOR, "cpu")
    seen = scarce(pipe, decodes=0)
    with pytest.raises(RuntimeError, match="memory='tiled'"):
        next(draw_batches(pipe, plan(1), batch_size=2))
    assert sum(seen["denoised"]) == 2 * 2, "smaller batches of the denoiser would not help"


class Recorder:
    "Stands for a pipeline that was loaded: remembers what was asked of it."

    def __init__(self, **parts):
        self.asked, self.components = [], parts
        self.vae = parts.get("vae")

    def to(self, place):
        self.asked.append(("to", str(place)))

    def enable_model_cpu_offload(self, device):
        self.asked.append(("offload", str(device)))


def test_memory_is_passed_on(monkeypatch):
    gpu, tiles = torch.device("cuda"), []
    vae = SimpleNamespace(enable_tiling=lambda: tiles.append(1))
    large = Recorder(unet=torch.nn.Linear(1000, 1000), vae=vae)
    for free, ways, expected in (
        (1e9, {"auto"}, "to"),
        (4e6, {"auto"}, "offload"),
        (1e9, {"offload"}, "offload"),
        (4e6, {"tiled"}, "to"),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place, free=free: (free, free))
        place_pipeline(large, gpu, ways)
        assert large.asked[-1] == (expected, "cuda"), (free, ways)
    assert tiles == [1]
    with pytest.raises(ValueError, match="cannot work in tiles"):
        place_pipeline(Recorder(), gpu, {"tiled"})


def test_what_saves_memory_is_refused_where_it_cannot(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for memory, place, why_not in (
        ("less", cpu, "none of auto, offload, tiled, 4bit"),
        ("offload", cpu, "runs on the CPU"),
        ("4bit", cpu, "needs an NVIDIA GPU"),
        ("4bit+tiled", torch.device("mps"), "needs an NVIDIA GPU"),
    ):
        with pytest.raises(ValueError, match=why_not):
            check_memory(memory, place)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'synthnb\\[4bit\\]'"):
        check_memory("4bit", gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert check_memory("4bit+offload", gpu) == {"4bit", "offload"}


def test_four_bits_are_asked_of_diffusers(monkeypatch):
    asked = {}
    for library in (diffusers, transformers):
        monkeypatch.setattr(library.BitsAndBytesConfig, "post_init", lambda self: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(
        DiffusionPipeline,
        "load_config",
        lambda *args, **kwargs: {
            "_class_name": "FluxPipeline",
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "T5EncoderModel"],
            "transformer": ["diffusers", "FluxTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "layers": [1, 2],
        },
    )

    def from_pretrained(model, **kwargs):
        asked.update(kwargs)
        raise OSError("seen")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    with pytest.raises(RuntimeError, match="could not be opened"):
        load_generator("owner/flux", "cuda", "bfloat16", GeneratorConfig(memory="4bit", variant="fp16"))
    mapping = asked["quantization_config"].quant_mapping
    assert set(mapping) == {"transformer", "text_encoder_2"}
    assert isinstance(mapping["transformer"], diffusers.BitsAndBytesConfig) and isinstance(
        mapping["text_encoder_2"], transformers.BitsAndBytesConfig
    )
    assert all(
        one.load_in_4bit and one.bnb_4bit_quant_type == "nf4" and one.bnb_4bit_compute_dtype == torch.bfloat16
        for one in mapping.values()
    )
    assert asked["variant"] == "fp16" and asked["use_safetensors"]


def test_an_offloaded_pipeline_draws_where_it_computes(monkeypatch):
    "Its network says `cpu` until it runs: noise, steps and text have to go where it will."
    pipe = load_generator(GENERATOR, "cpu")
    rows, places = plan(1), []
    monkeypatch.setattr(type(pipe), "_execution_device", property(lambda self: places.append(1) or torch.device("cpu")))
    monkeypatch.setattr(type(pipe), "device", property(lambda self: torch.device("meta")))
    monkeypatch.setattr(type(pipe.unet), "device", property(lambda self: torch.device("meta")))
    images = DenoisingLoop(pipe, steps=2, guidance=1.0, room=MemoryRoom(2))(
        TextTable(pipe, list(rows.prompt))(list(rows.prompt), "cpu"), list(rows.seed)
    )[0]
    assert places and images.std() > 0 and next(draw_batches(pipe, rows, batch_size=2)).images.shape[0] == 2


# ---------------------------------------------------------------- LoRA, schedulers, fetching


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    "A LoRA for the shipped generator, as training scripts save one."
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = load_generator(GENERATOR, "cpu")
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    place = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(place, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return next(place.glob("*.safetensors"))


def test_a_lora_changes_images_and_is_recorded(lora, tmp_path):
    plain, half = (
        next(draw_batches(opened(lora=name, lora_weight=0.5), plan(1), batch_size=2)).images.int()
        for name in ("", str(lora))
    )
    pipe = StableDiffusionPipeline.from_pretrained(GENERATOR)
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    pipe.fuse_lora(lora_scale=0.5)
    theirs = next(draw_batches(pipe, plan(1), batch_size=2)).images.int()
    assert (half - theirs).abs().max() <= 1 and (half - plain).abs().max() > 1
    written = write_plan(
        tmp_path / "plan.parquet",
        PROMPTS,
        1,
        seed=0,
        model=GENERATOR,
        steps=2,
        guidance=1.0,
        batch_size=2,
        lora=str(lora),
        lora_weight=0.5,
    )
    generate_shards(written, tmp_path / "shards", drawing=PNG, progress=False)
    image = tmp_path / "shards/0000-three-000000"
    assert why(image)["drawn_with"]["lora"] == {"name": str(lora), "weight": 0.5, "sha256": lora_revision(lora)}
    assert replay(image, device="cpu").identical


def test_what_is_no_lora_is_refused(lora, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"transformer.single_blocks.0.lora_A.weight": torch.zeros(2, 8)}, other)
    with pytest.raises(ValueError, match="other.safetensors"):
        opened(lora=str(other))
    part = tmp_path / "part.safetensors"  # as SDXL's is for a distilled one with fewer blocks: diffusers adds the rest
    save_file({name.replace("up_blocks.0", "up_blocks.7"): tensor for name, tensor in load_file(lora).items()}, part)
    with pytest.raises(
        ValueError, match=r"of the \d+ layers that .*part.safetensors changes.* has \d+: it was made for"
    ):
        opened(lora=str(part))
    (tmp_path / "pickled.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="pickled"):
        opened(lora=str(tmp_path / "pickled.bin"))
    with pytest.raises(FileNotFoundError, match="there is no LoRA"):
        opened(lora="./nothing.safetensors")
    assert load_file(lora)


def test_scheduler_options_are_used_recorded_and_needed(tmp_path):
    options = {"timestep_spacing": "trailing"}
    common = dict(seed=0, model=GENERATOR, steps=2, guidance=1.0, batch_size=2, scheduler="EulerDiscreteScheduler")
    written = write_plan(tmp_path / "plan.parquet", PROMPTS, 1, scheduler_options=options, **common)
    generate_shards(written, tmp_path / "shards", drawing=PNG, progress=False)
    assert json.loads(why(tmp_path / "shards/0000-three-000000")["scheduler_options"]) == options
    rows = written.rows(0, 2)
    leading = opened(scheduler="EulerDiscreteScheduler", scheduler_options={"timestep_spacing": "leading"})
    with pytest.raises(ValueError, match="timestep_spacing 'trailing'.*'leading'"):
        next(draw_batches(leading, rows, batch_size=2))
    with pytest.raises(ValueError, match="has no option 'spacing'"):
        opened(scheduler_options={"spacing": "trailing"})


LDM = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
V_ZERO = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True)  # as NoobAI's SDXL
SD3, FLOWS = dict(shift=3.0), dict(use_flow_sigmas=True, prediction_type="flow_prediction")


@pytest.mark.parametrize(
    "own, settings, new, options, told",
    [
        ("FlowMatchEulerDiscrete", SD3, "DPMSolverMultistep", {}, "use_flow_sigmas.*or leave it its own"),
        ("FlowMatchEulerDiscrete", SD3, "DPMSolverMultistep", {"use_flow_sigmas": True}, "prediction_type"),
        ("FlowMatchEulerDiscrete", SD3, "EulerDiscrete", {}, "flow matching.*: leave it its own"),
        ("FlowMatchEulerDiscrete", SD3, "DDIM", {}, "flow matching"),
        ("DPMSolverMultistep", FLOWS, "IPNDM", {}, "flow matching"),
        ("PNDM", LDM, "FlowMatchEulerDiscrete", {}, "betas"),
        ("PNDM", LDM, "EDMEuler", {}, "EDM"),
        ("EDMDPMSolverMultistep", {}, "DPMSolverMultistep", {}, "EDM"),  # as Playground 2.5
        ("EulerDiscrete", LDM | V_ZERO, "HeunDiscrete", {}, "rescale_betas_zero_snr"),
        ("EulerDiscrete", LDM | V_ZERO, "DDIM", {}, ""),
        ("FlowMatchEulerDiscrete", SD3, "DPMSolverMultistep", FLOWS, ""),
        ("FlowMatchEulerDiscrete", SD3, "FlowMatchHeunDiscrete", {}, ""),
        ("DPMSolverMultistep", FLOWS | {"flow_shift": 3.0}, "FlowMatchEulerDiscrete", {}, ""),  # as Sana
        ("DPMSolverMultistep", FLOWS | {"flow_shift": 3.0}, "UniPCMultistep", {}, ""),
        ("EDMEuler", {}, "EDMDPMSolverMultistep", {}, ""),
    ],
)
def test_a_scheduler_of_other_noise_is_refused(own, settings, new, options, told):
    "Diffusers takes it, and draws nonsense."
    from synthnb.models.pipelines import _use_scheduler

    class_of = lambda name: getattr(diffusers, f"{name}Scheduler")
    pipe = SimpleNamespace(scheduler=class_of(own)(**settings))
    if told:
        with pytest.raises(ValueError, match=told):
            _use_scheduler(pipe, class_of(new).__name__, options)
        assert type(pipe.scheduler) is class_of(own)
        return
    _use_scheduler(pipe, class_of(new).__name__, options)
    assert type(pipe.scheduler) is class_of(new)
    if shift := settings.get("shift", settings.get("flow_shift")):
        assert pipe.scheduler.config["shift" if new.startswith("FlowMatch") else "flow_shift"] == shift


def test_the_record_holds_what_was_passed(tmp_path):
    written = write_plan(
        tmp_path / "plan.parquet",
        PROMPTS,
        1,
        seed=0,
        model=GENERATOR,
        steps=2,
        guidance=3.0,
        batch_size=2,
        negative_prompt="nine",
    )
    generate_shards(written, tmp_path / "shards", drawing=PNG, progress=False)
    assert why(tmp_path / "shards/0000-three-000000")["drawn_with"]["call"] == {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "negative_prompt": "nine",
    }


def test_experiments_fetch_before_they_ask_for_the_revision(monkeypatch):
    fetched = []
    monkeypatch.setattr(
        DiffusionPipeline, "download", lambda model, **kwargs: fetched.append((model, kwargs["use_safetensors"]))
    )
    with pytest.raises(FileNotFoundError, match="hf download"):  # nothing came, so there is no revision
        how = drawing.Generation("owner/model", denoising_steps=1, guidance=1.0, generator_batch=1, device="cpu")
        drawing.draw_images(PROMPTS, 1, how)
    assert fetched == [("owner/model", True)]


def test_a_run_that_draws_otherwise_has_images_of_its_own():
    "With another format it took the earlier run's images, or failed where some were missing."
    how = drawing.Generation("glyphworld/generator", denoising_steps=1, guidance=1.0, generator_batch=2, device="cpu")
    folders = [drawing.draw_images(PROMPTS, 1, replace(how, kind=kind)) for kind in ("png", "jpeg", "png")]
    assert folders[0] == folders[2] != folders[1]
    drawn = [json.loads((folder / ".synthnb" / "drawn_with.json").read_text())["format"] for folder in folders]
    assert drawn == ["png", "jpeg", "png"]


def test_the_key_of_a_stage_holds_what_moves_pixels():
    """The main job's key left out compiling, the ways to save memory and the variant of the weights."""
    plain = Drawing(device="cpu", kind="png")
    assert plain.key == replace(plain, memory="offload", retries=9, style="a.safetensors").key == {}
    ways = [{"kind": "jpeg"}, {"kind": "jpeg", "quality": 80}, {"compile": True}, {"memory": "4bit+offload"}]
    ways += [{"memory": "tiled"}, {"variant": "fp16"}, {"device": "meta"}]
    keys = [json.dumps(replace(plain, **way).key) for way in ways]
    assert len({*keys, "{}"}) == len(ways) + 1
    main_job = Path(__file__).parents[1].joinpath("nbs/experiments/quickstart.ipynb").read_text(encoding="utf-8")
    assert "**settings, **how_to_draw.key)" in main_job and "drawing=how_to_draw)" in main_job


@pytest.fixture
def loads(monkeypatch):
    "What was loaded, by weak references: at each load, what was loaded before is gone, or rests on the CPU."
    import weakref

    from synthnb.models import clip as clip_module
    from synthnb.models import local_llm

    alive, resting = {}, set()

    def watched(module, name, part_of, kind):
        opened = getattr(module, name)

        def opening(*args, **kwargs):
            here = {what for what, reference in alive.items() if reference() is not None and what not in resting}
            assert not here, f"{kind} is opened while {here} is there"
            model = opened(*args, **kwargs)
            alive[f"{kind} {len(alive)}"] = weakref.ref(part_of(model))
            return model

        monkeypatch.setattr(module, name, opening)

    watched(local_llm, "_load_weights", lambda model: model, "chat model")
    watched(pipelines, "load_generator", lambda pipe: pipe.unet, "generator")
    watched(clip_module, "load_clip", lambda clip: clip.model, "clip")
    moved = pipelines.wake

    def wake(clip, device="auto"):
        names = {what for what, reference in alive.items() if reference() is clip.model}
        if str(device) == "cpu":
            resting.update(names)
        else:
            assert all(reference() is None for what, reference in alive.items() if what not in names), (
                "CLIP wakes while another is there"
            )
            resting.difference_update(names)
        return moved(clip, device)

    monkeypatch.setattr(pipelines, "wake", wake)
    return alive


def test_one_large_model_is_open_at_a_time_in_quickstart(loads, monkeypatch, tmp_path):
    import nbformat

    stages_folder.cache_clear()  # another test of this process may have made the same stages
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(Path(drawing.__file__).parents[2] / "nbs/experiments/quickstart.ipynb", 4)
    space = {"display": lambda *told: None, "__name__": "quickstart"}
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        exec(cell.source, space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= {"methods": ["vanilla"], "seeds": [0], "advisor": False, "style_steps": 1, "denoising_steps": 1}
        if "score_images(" in cell.source:
            break
    assert {what.split()[0] for what in loads} == {"chat", "clip", "generator"} and sum(
        "generator" in what for what in loads
    ) == 2


@pytest.mark.parametrize("by_images", [False, True])
def test_one_large_model_is_open_at_a_time_in_prompts(loads, by_images, tmp_path):
    from typer.testing import CliRunner

    from synthnb.cli import app
    from synthnb.data import digits

    images = digits(32)["train"]
    for i, label in enumerate(images.labels[:150].tolist()):
        folder = tmp_path / "scans" / images.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images[i].permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    done = CliRunner().invoke(
        app,
        [
            "prompts",
            *([str(tmp_path / "scans")] if by_images else ["three", "four"]),
            "-n",
            "1",
            "--out",
            str(tmp_path / "book.jsonl"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert {what.split()[0] for what in loads} == {"chat", "clip"}, "of the generator only tokenizers are opened"
