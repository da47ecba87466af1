"""The parameter files at paper scale: every name and type, what the doctor says is missing.

Every single one runs to the end on tiny random models in the exact formats."""

import ast
import json
import os
import shutil
from functools import cache, partial
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import open_clip
import pandas as pd
import pytest
import timm
import torch
from diffusers import (
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from synthnb.cli.values import gather_parameters
from synthnb.datasets.named import NAMED
from synthnb.glyphworld.world import folder
from synthnb.models.classifiers import save_classifier
from synthnb.studies.doctor import examine, guess_experiment
from synthnb.studies.naming import imagenet_ambiguous
from synthnb.studies.parameters import declared_parameters, resolve_parameters
from synthnb.studies.run import run
from synthnb.studies.sweep import plan_sweep
from synthnb.training.prediction import READINGS

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("warm_kernels")
EXPERIMENTS = Path(__file__).resolve().parents[1] / "nbs" / "experiments"
PAPER = EXPERIMENTS / "params" / "paper"
GRIDS = sorted(PAPER.glob("*.grid.yaml"))
SINGLE = sorted(set(PAPER.glob("*.yaml")) - set(GRIDS))
STUDIES = (
    "bridge_study",
    "diversify_or_finetune",
    "dsi_study",
    "guidance_study",
    "lar_benchmark",
    "prompt_ladder",
    "protocol_audit",
    "quickstart",
    "transfer_volume",
    "volume_study",
    "imagenet_study",
)


@cache
def notebook_of(file: Path) -> Path:
    given = gather_parameters(file, [])
    if said := given.get("experiment"):  # a grid
        return EXPERIMENTS / f"{said}.ipynb"
    return guess_experiment(file, given, sorted(EXPERIMENTS.glob("[!_.]*.ipynb")))[0]


@cache
def cells_of(file: Path) -> list[dict]:
    "The parameters of every run that a file asks for."
    given = gather_parameters(file, [])
    return [cell.parameters for cell in plan_sweep(notebook_of(file), given).cells] if file in GRIDS else [given]


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no hub"))


# ---- names, types, marks


def test_every_study_has_a_file():
    assert set(STUDIES) <= {notebook_of(file).stem for file in SINGLE}
    assert {notebook_of(file).stem for file in GRIDS} == {"bridge_study", "dsi_study", "transfer_volume"}


@pytest.mark.parametrize("file", SINGLE + GRIDS, ids=lambda file: file.name)
def test_parameters_are_the_notebooks(file):
    for cell in cells_of(file):
        _, resolved = resolve_parameters(notebook_of(file), cell)
        assert max(resolved["seeds"]) == len(resolved["seeds"]) - 1 and len(resolved["seeds"]) >= 3, (
            "the paper repeats three times"
        )
        assert not any(
            "glyphworld" in str(resolved.get(name))
            for name in ("generator", "classifier", "clip", "llm")
            if name in cell
        ), "glyphworld is not paper scale"


@pytest.mark.parametrize(
    "file", [file for file in SINGLE + GRIDS if file.name != "lar_imagenet.yaml"], ids=lambda file: file.name
)
def test_every_model_is_named_and_every_value_has_a_source(file):
    declared = declared_parameters(notebook_of(file))
    for cell in cells_of(file):
        for name in ("real_data", "generator", "classifier", "llm", "clip"):
            assert name not in declared or name in cell, f"{name} is left at glyphworld's"
    for line in file.read_text(encoding="utf-8").splitlines():
        name = line.strip().partition(":")[0]
        if name in declared and name != "real_share" and not (name == "image_size" and "both networks" in line):
            assert "PROPOSED" in line or "# paper " in line, (
                f"{file.name}: {line!r} does not say where its value comes from"
            )


def test_the_wrong_is_refused():
    given = gather_parameters(PAPER / "bridge_study.yaml", [])
    with pytest.raises(ValueError, match="unknown parameter 'shot'; did you mean 'shots'"):
        resolve_parameters(EXPERIMENTS / "bridge_study.ipynb", given | {"shot": [1]})
    with pytest.raises(ValueError, match="lr is 'fast'"):
        resolve_parameters(EXPERIMENTS / "bridge_study.ipynb", given | {"lr": "fast"})
    grid = gather_parameters(PAPER / "bridge_transfer.grid.yaml", [])
    with pytest.raises(ValueError, match="lr is 'fast'"):
        plan_sweep(EXPERIMENTS / "bridge_study.ipynb", grid | {"base": grid["base"] | {"lr": "fast"}})


def test_the_grids_span_the_sets_and_the_networks():
    cells = cells_of(PAPER / "bridge_transfer.grid.yaml") + cells_of(PAPER / "bridge_transfer_vit.grid.yaml")
    ten = {name for name in NAMED if not name.startswith("imagenet")}
    assert {cell["real_data"] for cell in cells} == ten and len(ten) == 10
    assert len(cells) == 5 * 10 and {cell["classifier"].split("_")[0].split(".")[0] for cell in cells} == {
        "resnet18",
        "resnet50",
        "resnet101",
        "vit",
        "deit3",
    }
    large = set()
    for cell in cells:  # what `listed.load_images` takes into memory of any machine
        facts = NAMED[cell["real_data"]]
        if max(facts.train, facts.test) * 3 * cell["image_size"] ** 2 > 8 << 30:
            large.add((cell["real_data"], cell["image_size"]))
        assert 224 in timm.get_pretrained_cfg(cell["classifier"]).input_size
    assert large == {("food101", 224)} and "10.6 GiB" in (PAPER / "bridge_transfer_vit.grid.yaml").read_text(), (
        "a set that wants a large machine is named"
    )
    assert f"{NAMED['food101'].train * 3 * 224**2 / 2**30:.1f} GiB" == "10.6 GiB"
    for cell in cells_of(PAPER / "transfer_volume.yaml") + cells_of(PAPER / "transfer_volume_sets.grid.yaml"):
        facts = NAMED[cell["real_data"]]
        assert max(facts.train, facts.test) * 3 * cell["image_size"] ** 2 <= 8 << 30


# ---- what is missing


@pytest.mark.parametrize("file", SINGLE + GRIDS, ids=lambda file: file.name)
def test_the_doctor_names_what_is_missing(file, tmp_path):
    cells = cells_of(file)
    found = examine(notebook_of(file), cells, tmp_path / "outputs", tmp_path / "data", measure=False)
    missing = [finding for finding in found if finding.state == "missing"]
    assert "parameters" not in {finding.what for finding in missing}
    for name in ("generator", "classifier", "llm", "clip"):
        told = [finding for finding in missing if finding.what == name]
        assert len(told) == len({cell[name] for cell in cells if cell.get(name)}), "a model is here that cannot be"
        assert all("hf download" in finding.cure for finding in told), "nobody says how to get it"
    sets = [finding.told for finding in missing if finding.what == "data"]
    asked = {name for cell in cells for name in (cell.get("real_data"), *cell.get("test_sets", ())) if name}
    assert len(sets) == len(asked)
    for title in {NAMED[name].title for name in asked if name in NAMED}:
        assert any(told.startswith(title) and "Get it from" in told for told in sets)


# ---- to the end: every single file, and one cell of every grid


def tiny_text(tokenizer, kind=CLIPTextModel) -> CLIPTextModel:
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=16,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def stable_diffusion(place: Path) -> Path:
    "All parts of Stable Diffusion 1.5, of its classes, its sampler and its scaling, with few and random weights."
    tokenizer = CLIPTokenizer.from_pretrained(folder("generator") / "tokenizer")
    vae = tiny_vae((8,) * 4, sample_size=64, scaling_factor=0.18215)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        tokenizer=tokenizer,
        text_encoder=tiny_text(tokenizer),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(place)
    return place


def stable_diffusion_xl(place: Path) -> Path:
    "Stable Diffusion XL likewise: two text encoders, pooled text and sizes in the time embedding."
    tokenizer = CLIPTokenizer.from_pretrained(folder("generator") / "tokenizer")
    vae = tiny_vae((8,) * 4, sample_size=64, scaling_factor=0.13025, force_upcast=True)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    StableDiffusionXLPipeline(
        vae,
        tiny_text(tokenizer),
        tiny_text(tokenizer, CLIPTextModelWithProjection),
        tokenizer,
        tokenizer,
        unet,
        EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(place)
    return place


def clip(place: Path) -> Path:
    "The folder that open_clip saves and opens, with a transformer to see, as ViT-L/14 has."
    place.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (place / file).write_bytes((folder("clip") / file).read_bytes())
    config = json.loads((folder("clip") / "open_clip_config.json").read_text())
    config["model_cfg"] |= {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    }
    config["model_cfg"]["text_cfg"] |= {"width": 16, "heads": 2, "layers": 1}
    (place / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg=config["model_cfg"]["vision_cfg"],
        text_cfg={
            k: v
            for k, v in config["model_cfg"]["text_cfg"].items()
            if k not in ("hf_tokenizer_name", "tokenizer_kwargs")
        },
    )
    save_file(model.state_dict(), place / "open_clip_model.safetensors")
    return place


TEXTURES = (
    "banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline "
    "dotted fibrous flecked freckled frilly gauzy grid grooved "
    "honeycombed interlaced knitted lacelike lined marbled matted meshed paisley perforated "
    "pitted pleated polka-dotted porous potholed scaly smeared "
    "spiralled sprinkled stained stratified striped studded swirly veined waffled woven wrinkled zigzagged"
)


def dtd(root: Path) -> None:
    "DTD as its authors laid it out, with all its classes and as many files, each of a few pixels."
    home, names = root / "dtd" / "dtd", TEXTURES.split()
    (home / "labels").mkdir(parents=True)
    noise, lists = np.random.default_rng(0), {side: [] for side in ("train", "val", "test")}
    for name in names:
        (home / "images" / name).mkdir(parents=True)
        for i in range(120):
            file = f"{name}/{name}_{i:04d}.jpg"
            Image.fromarray(noise.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(home / "images" / file, "JPEG")
            lists[("train", "val", "test")[i % 3]].append(file)
    for side, files in lists.items():
        (home / "labels" / f"{side}1.txt").write_text("\n".join(files) + "\n")


def own_pictures(root: Path, seed: int = 1) -> None:
    "Folders of train, val and test, as one lays out pictures of one's own."
    noise = np.random.default_rng(seed)
    for side in ("train", "val", "test"):
        for name in ("three", "club", "star"):
            (root / side / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(noise.integers(0, 256, (14, 11, 3), dtype=np.uint8)).save(
                    root / side / name / f"{i}.png"
                )


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    "A working directory with data/ in it and the models beside."
    place = tmp_path_factory.mktemp("paper")
    torch.manual_seed(0)
    dtd(place / "data")
    own_pictures(place / "mine")
    stable_diffusion(place / "sd15")
    stable_diffusion_xl(place / "sdxl")
    clip(place / "clip")
    residual, transformer = dict(channels=(8, 16, 16, 32)), dict(img_size=32, embed_dim=32, depth=2, num_heads=2)
    for name, small in {
        "resnet18": residual,
        "resnet50": residual,
        "vit_base_patch16_224": transformer,
        "vit_large_patch16_224": transformer,
    }.items():
        save_classifier(timm.create_model(name, num_classes=1000, **small), place / name, small)
    return place


# photographs of one's own in three classes, and a network that is here
MINE = {"real_data": "mine", "classifier": "./resnet18"}


def results(file: str, here: Path, monkeypatch, **minimal) -> dict:
    "A file's values (of a grid: its first cell), but few images and steps, and models that are here."
    monkeypatch.chdir(here)
    few = {
        "generator": "./sd15",
        "llm": "glyphworld/llm",
        "device": "cpu",
        "threads": 1,
        "seeds": [0],
        "image_size": 32,
        "keep_size": 40,
        "batch_size": 8,
        "images_per_class": 1,
        "denoising_steps": 1,
        "generator_batch": 47,
        "compile_generator": False,
        "stage1_steps": 1,
        "stage2_steps": 1,
    }
    declared = declared_parameters(notebook_of(PAPER / file))
    given = cells_of(PAPER / file)[0] | {name: value for name, value in few.items() if name in declared} | minimal
    done = run(notebook_of(PAPER / file), given, here / "outputs", progress=False)
    assert (done / "DONE").is_file()
    return json.loads((done / "results.json").read_text())


def test_bridge_study_runs_to_the_end(here, monkeypatch):
    found = results(
        "bridge_study.yaml", here, monkeypatch, classifier="./vit_base_patch16_224", shots=[1, 0], curve_every=1
    )
    rows = found["rows"]
    methods = gather_parameters(PAPER / "bridge_study.yaml", [])["methods"]
    assert {(row["method"], row["shots"]) for row in rows} == {(method, n) for method in methods for n in (1, 0)}
    assert (
        all(0 <= row["value"] <= 1 for row in rows)
        and len(found["leep"]) == 2
        and all(row["value"] < 0 for row in found["leep"])
        and found["glyphworld"] is False
    )


def test_quickstart_runs_to_the_end(here, monkeypatch):
    shutil.copytree(here / "sd15", here / "in two precisions")
    whole = StableDiffusionPipeline.from_pretrained(here / "sd15")
    whole.to(torch.float16).save_pretrained(here / "in two precisions", variant="fp16")
    ask = partial(
        results,
        "quickstart.yaml",
        here,
        monkeypatch,
        **MINE,
        generator="./in two precisions",
        clip="./clip",
        clip_weights="",
        shots=2,
        style_steps=1,
        prompts_per_class=2,
        token_and_styles="half",
    )
    found = ask()
    [written] = (here / "outputs/quickstart").glob("*/prompts.csv")
    book = pd.read_csv(written, keep_default_na=False)
    assert book.prompt.str.contains("<style>").tolist() == [True, False] * 3, "the token in every other prompt"
    assert not (book.prompt.str.contains("<style>") & (book["style"] != "")).any(), "no prompt has both"
    assert {row["method"] for row in found["rows"]} >= {"vanilla_matched", "bridged++", "mixed_per_batch+dual"}
    assert list(found["phrases"]) == ["club", "star", "three"] and found["style"] and found["glyphworld"] is False
    assert ask(generator_variant="fp16")["style"] != found["style"], "other weights learn a token of their own"


def test_transfer_volume_runs_to_the_end(here, monkeypatch):
    volumes = [1, 2, 3]
    found = results(
        "transfer_volume.yaml", here, monkeypatch, **MINE, llm="", shots=[1, 0], images_per_class=volumes, seeds=[1]
    )
    methods = gather_parameters(PAPER / "transfer_volume.yaml", [])["methods"]
    assert {(row["method"], row["shots"], row["volume"]) for row in found["rows"]} == {
        *((method, k, n) for method in methods for k in (1, 0) for n in volumes),
        *(("vanilla_matched", k, 0) for k in (1, 0)),
    }
    assert len({row["steps"] for row in found["rows"]}) == 1, "all methods take the same steps"
    assert (
        all(row["stage1_seed"] == row["seed"] for row in found["rows"])
        and "more images for `bridged++`?" in found["conclusion"]
    )
    files = {path.name for path in (here / "outputs" / "transfer_volume").glob("*/*.csv")}
    assert files == {"curves.csv", "forecast.csv"} and not list(
        (here / "outputs" / "transfer_volume").glob("*/answers.sqlite")
    ), "a chat model was asked"


def test_guidance_study_runs_to_the_end(here, monkeypatch):
    scales = [1.25, 7.5]
    found = results(
        "guidance_study.yaml",
        here,
        monkeypatch,
        real_data="mine",
        generator="./sdxl",
        classifier="./resnet50",
        llm="",
        clip="./clip",
        clip_weights="",
        shots=[1],
        guidances=scales,
        images_per_class=2,
    )
    assert {(row["method"], row["guidance"]) for row in found["rows"]} == {
        ("vanilla_matched", None),
        *((method, scale) for method in ("bridged", "bridged++", "synthetic_only") for scale in scales),
    }
    assert found["margin"] == {"hardly": 0.03} and "headline" not in found, "one seed says nothing of best and worst"
    plans = {path.name for path in (here / "outputs" / "stages").glob("*.parquet")}
    assert len(plans) >= len(scales), "a plan for each scale"


def test_prompt_ladder_runs_to_the_end(here, monkeypatch):
    found = results(
        "prompt_ladder.yaml",
        here,
        monkeypatch,
        **MINE,
        clip="./clip",
        clip_weights="",
        shots=2,
        lar_images=2,
        steps=1,
        images_per_class=2,
    )
    rungs = gather_parameters(PAPER / "prompt_ladder.yaml", [])["rungs"]
    assert {row["source"] for row in found["rows"]} == {"real only", *rungs} and [
        row["rung"] for row in found["images"]
    ] == rungs
    assert list(found["meanings"]) == ["club", "star", "three"] and found["glyphworld"] is False


def test_protocol_audit_runs_to_the_end(here, monkeypatch):
    found = results(
        "protocol_audit.yaml",
        here,
        monkeypatch,
        **MINE,
        meaning="{class}",
        rates=[0.01, 0.03],
        look_every=1,
        denoising_steps=2,
        strength=0.9,
    )
    assert {(row["method"], row["lr"] in (0.01, 0.03)) for row in found["rows"]} == {
        ("vanilla_matched", True),
        ("bridged", True),
    }
    assert len({row["rule"] for row in found["rows"]}) == 7 and found["glyphworld"] is False


def test_diversify_or_finetune_runs_to_the_end(here, monkeypatch):
    found = results(
        "diversify_or_finetune.yaml",
        here,
        monkeypatch,
        **MINE,
        meaning="{class}",
        volumes=[1, 2],
        shots=1,
        denoising_steps=2,
        lora_steps=1,
        lora_batch=2,
        class_steps=1,
        token_batch=2,
    )
    sources = gather_parameters(PAPER / "diversify_or_finetune.yaml", [])["sources"]
    assert {row["source"] for row in found["rows"]} >= set(sources) and found["glyphworld"] is False


def test_volume_study_runs_to_the_end(here, monkeypatch):
    found = results(
        "volume_study.yaml", here, monkeypatch, real_data="mine", classifier="./resnet18", volumes=[0, 1], steps=1
    )
    methods = {f"{kind}, {norm}" for kind in ("naive", "diverse") for norm in ("shared", "dual")}
    methods |= {f"{kind}, dual, {read}" for kind in ("naive", "diverse") for read in READINGS if read != "main"}
    assert {(row["method"], row["volume"]) for row in found["rows"]} == {
        ("real only", 0),
        ("real only, half batches", 0),
        *((method, 1) for method in methods),
    }
    assert {row["test"] for row in found["rows"]} == {"in domain", "inverted", "textured", "corrupted"} and found[
        "glyphworld"
    ] is False


def test_no_cell_of_a_study_is_found_for_another_view_or_other_weights(here, monkeypatch):
    "The images are held at `keep_size`, so they are the same at every size that the network sees."
    monkeypatch.chdir(here)
    shutil.copytree(here / "resnet18", here / "retrained")

    def found_cells(**changed) -> list[bool]:
        mine = {"real_data": "mine", "classifier": "./retrained", "generator": "./sd15", "meaning": "{class}"}
        few = {"shots": 1, "volumes": [0, 1], "norms": ["shared"], "half_batches": False, "steps": 1, "keep_size": 40}
        small = {"denoising_steps": 1, "device": "cpu"}
        done = run(EXPERIMENTS / "volume_study.ipynb", mine | few | small | changed, here / "outputs", progress=False)
        stages = json.loads((done / "run.json").read_text())["stages"]
        return [stage["found"] for stage in stages if stage["stage"].startswith("cell-")]

    assert found_cells(image_size=32) == [False] * 2
    assert found_cells(image_size=24) == [False] * 2
    assert found_cells(image_size=24, from_scratch=False) == [False] * 2
    torch.manual_seed(1)
    small = dict(channels=(8, 16, 16, 32))
    save_classifier(timm.create_model("resnet18", num_classes=1000, **small), here / "retrained", small)
    assert found_cells(image_size=24, from_scratch=False) == [False] * 2


def test_what_generated_images_are_worth_counts_all_of_them(here, monkeypatch):
    "Curated images differ in number from class to class; the smallest class is not what was trained on."
    monkeypatch.chdir(here)
    own_pictures(here / "generated", seed=3)
    shutil.move(here / "generated/train", here / "curated")
    for name, left in (("three", 1), ("club", 4), ("star", 4)):
        for file in sorted((here / "curated" / name).glob("*.png"))[left:]:
            file.unlink()
    small = {"stage1_steps": 1, "stage2_steps": 1, "batch_size": 8, "image_size": 32, "device": "cpu"}
    methods = {"methods": ["vanilla_matched", "bridged"], "shots": [1, 2], "seeds": [0], "advisor": False}
    images = {"real_data": "mine", "images": "curated", "classifier": "./resnet18"}
    done = run(EXPERIMENTS / "compare.ipynb", images | small | methods, here / "outputs", progress=False)
    found = json.loads((done / "results.json").read_text())
    assert found["images_per_class"] == 3 and found["exchange"][0]["says"].startswith("3 synthetic images per class")


def test_stages_are_called_by_what_a_model_is_not_by_its_name():
    "A folder keeps its name when its weights are replaced."
    for notebook in EXPERIMENTS.glob("[!_.]*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        stages = [call for call in calls if getattr(call.func, "id", "") in ("stage", "remembered", "dict")]
        named = {word.arg for call in stages for word in call.keywords if ast.unparse(word.value) == "classifier"}
        assert not named, notebook.name


def test_imagenet_study_runs_to_the_end(here, monkeypatch, warm_workers):
    own_pictures(here / "elsewhere", seed=2)
    shutil.rmtree(here / "elsewhere" / "train" / "club")
    (here / "elsewhere" / "train").rename(here / "drawn in two classes")  # which is all that a test set has to be
    found = results(
        "imagenet_study.yaml",
        here,
        monkeypatch,
        real_data="mine",
        test_sets=["drawn in two classes"],
        classifier="./resnet50",
        images_per_class=[1, 2],
        prompts_per_class=2,
        steps=2,
        checkpoint_every=1,
        workers=2,
        names=["naive", "resolved"],
        clip="./clip",
        clip_weights="",
        lar_images=1,
    )  # so few that nobody can tell whether a random CLIP knows the names
    read = [name for name in READINGS if name != "main"]
    assert {(row["method"], row["volume"]) for row in found["rows"]} == {
        ("real only", 0),
        ("real only, half batches", 0),
        *product(("shared", "dual", *(f"dual, {name}" for name in read)), (1, 2)),
        ("shared, naive names", 1),
        ("dual, naive names", 1),
        *((f"dual, naive names, {name}", 1) for name in read),
    }
    assert "resolved against naive names, smallest volume, dual" in found["conclusion"]
    assert {row["test"] for row in found["rows"]} == {"in domain", "drawn in two classes"} and found[
        "glyphworld"
    ] is False
    assert not list((here / "outputs" / "stages").glob("*.checkpoint")), (
        "checkpoints of trainings that are done take place"
    )


def test_volume_long_tail_runs_to_the_end(here, monkeypatch):
    found = results(
        "volume_long_tail.yaml", here, monkeypatch, **MINE, imbalance=3, prompts=["naive"], volumes=[0, 1], steps=1
    )
    assert {(row["method"], row["volume"]) for row in found["rows"]} == {
        ("real only", 0),
        ("real only, half batches", 0),
        ("naive, shared", 1),
        ("naive, dual", 1),
        *((f"naive, dual, {read}", 1) for read in READINGS if read != "main"),
    }
    assert {row["test"] for row in found["rows"]} == {
        "in domain",
        "rare classes",
        "inverted",
        "textured",
        "corrupted",
    } and found["glyphworld"] is False


def test_volume_vit_runs_to_the_end(here, monkeypatch):
    found = results(
        "volume_vit.yaml",
        here,
        monkeypatch,
        real_data="mine",
        classifier="./vit_base_patch16_224",
        volumes=[0, 1],
        steps=1,
    )
    assert {(row["method"], row["volume"]) for row in found["rows"]} == {
        ("real only", 0),
        ("real only, half batches", 0),
        *((f"diverse, {norm}", 1) for norm in ("shared", "dual", "token")),
        *((f"diverse, {norm}, {read}", 1) for norm in ("dual", "token") for read in ("auxiliary", "both")),
    } and found["glyphworld"] is False


def test_dsi_study_runs_to_the_end(here, monkeypatch):
    found = results(
        "dsi_study.yaml",
        here,
        monkeypatch,
        **MINE,
        named_styles=["a snapshot", "a close-up"],
        guidances=[2.0],
        shots=[1],
        shots_for_all=1,
        steps=[1],
        class_steps=1,
        token_batch=2,
        images_per_class=2,
        train_steps=[1, 1],
        train_batch=8,
    )
    assert {"DSI", "untrained", "no style", "a token a class"} <= {row["method"] for row in found["rows"]} and found[
        "glyphworld"
    ] is False


def test_a_cell_of_bridge_transfer_runs_to_the_end(here, monkeypatch):
    found = results(
        "bridge_transfer.grid.yaml",
        here,
        monkeypatch,
        real_data="mine",
        classifier="./resnet50",
        shots=[1, 0],
        curve_every=1,
    )
    assert {(row["method"], row["shots"]) for row in found["rows"]} == {
        (method, n) for method in cells_of(PAPER / "bridge_transfer.grid.yaml")[0]["methods"] for n in (1, 0)
    }


def test_a_cell_of_bridge_transfer_with_a_transformer_runs_to_the_end(here, monkeypatch):
    found = results(
        "bridge_transfer_vit.grid.yaml",
        here,
        monkeypatch,
        real_data="mine",
        classifier="./vit_large_patch16_224",
        shots=[1],
        curve_every=1,
    )
    assert {row["method"] for row in found["rows"]} == set(
        cells_of(PAPER / "bridge_transfer_vit.grid.yaml")[0]["methods"]
    )


def test_a_cell_of_transfer_volume_sets_runs_to_the_end(here, monkeypatch):
    found = results("transfer_volume_sets.grid.yaml", here, monkeypatch, **MINE, shots=[0], images_per_class=[1, 2, 3])
    assert {row["volume"] for row in found["rows"]} == {0, 1, 2, 3}


def test_a_cell_of_dsi_sets_runs_to_the_end(here, monkeypatch):
    found = results(
        "dsi_sets.grid.yaml",
        here,
        monkeypatch,
        real_data="mine",
        generator="./sdxl",
        classifier="./resnet18",
        named_styles=["a snapshot"],
        guidances=[2.0],
        shots=[1],
        shots_for_all=1,
        steps=[1],
        class_steps=1,
        token_batch=2,
        images_per_class=2,
        train_steps=[1, 1],
        train_batch=8,
    )
    assert {"DSI", "untrained", "no style"} <= {row["method"] for row in found["rows"]}


def test_lar_imagenet_runs_to_the_end(here, monkeypatch):
    synsets = imagenet_ambiguous().synset.tolist()
    for i, synset in enumerate(synsets):
        (here / "val" / synset).mkdir(parents=True)
        Image.fromarray(np.full((9, 12, 3), i % 256, dtype=np.uint8)).save(here / "val" / synset / "0.png")
    found = results(
        "lar_imagenet.yaml",
        here,
        monkeypatch,
        images="val",
        llm="",
        clip="./clip",
        clip_weights="",
        numbers=[1],
        workers=0,
    )
    assert (
        [row["method"] for row in found["rows"]] == ["LAR, 1 image", "LAR together, 1 image"]
        and found["candidates"] > 2 * len(synsets)
        and found["glyphworld"] is False
    )


def test_the_doctor_counts_the_rungs_of_names():
    from synthnb.studies.doctor_data import Size
    from synthnb.studies.doctor_drawing import count_images

    given = gather_parameters(PAPER / "imagenet_study.yaml", [])
    images = count_images(given, Size(classes=1000))
    assert images == (7686 + 2 * 1281) * 1000 and f"{images:,} images" in (PAPER / "imagenet_study.yaml").read_text(
        encoding="utf-8"
    )
    assert count_images(given | {"names": ["naive"]}, Size(classes=1000)) == 7_686_000
