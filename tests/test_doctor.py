"""The doctor on caches, folders and files that are really there, half there, or not (its notebooks show the rest)."""

import os
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from typer.testing import CliRunner

from synthnb.cli import app
from synthnb.cli.values import gather_parameters
from synthnb.datasets.named import NAMED
from synthnb.glyphworld import world as glyphworld
from synthnb.studies import doctor_drawing, doctor_machine
from synthnb.studies.doctor import examine, guess_experiment
from synthnb.studies.doctor_data import Size, check_set
from synthnb.studies.doctor_drawing import a100_drawing, check_token, count_images
from synthnb.studies.doctor_findings import in_cells
from synthnb.studies.doctor_hours import describe_gpus
from synthnb.studies.doctor_machine import check_gpu, clip_parameters, loaded_bytes, memory_needs
from synthnb.studies.doctor_models import check_classifier, check_generator, check_llm, generator_weights
from synthnb.studies.parameters import resolve_parameters
from synthnb.studies.sweep import plan_sweep

EXPERIMENTS = Path(__file__).resolve().parents[1] / "nbs" / "experiments"
REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache that holds glyphworld's generator under the name of Stable Diffusion 1.5."""
    home = tmp_path / "hub"
    repository = home / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0f3a9c2e41d7" + "0" * 28)
    shutil.copytree(glyphworld.folder("generator"), snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    (snapshot / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A model\n")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    return snapshot


def test_a_cached_model_is_found_with_its_licence(cache):
    found = check_generator(REPOSITORY, {})
    assert (found.state, "licence creativeml-openrail-m" in found.told) == ("ok", True)
    (cache / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert "not for commercial use" in check_generator(REPOSITORY, {}).told
    (cache / "README.md").unlink()
    assert "licence unknown" in check_generator(REPOSITORY, {}).told


def test_half_a_download_is_missing(cache):
    weights = next((cache / "unet").glob("*.safetensors"))
    os.truncate(weights, 1000)
    found = check_generator(REPOSITORY, {})
    assert (
        found.state == "missing" and weights.name in found.told and found.cure.startswith(f"hf download {REPOSITORY}")
    )
    shutil.rmtree(cache / "unet")
    assert "the part 'unet'" in check_generator(REPOSITORY, {}).told


def test_what_is_not_here_says_how_to_get_it(tmp_path):
    gated = check_generator("stabilityai/stable-diffusion-3-medium-diffusers", {})
    assert gated.state == "missing" and "it is gated" in gated.cure and "hf auth login" in gated.cure
    assert check_llm("Qwen/Qwen3-4B", {}).cure.startswith("hf download Qwen/Qwen3-4B")
    assert "hf download timm/resnet50.a1_in1k" in check_classifier("resnet50.a1_in1k", {}).cure
    assert check_generator(str(tmp_path / "no model"), {}).state == "missing"
    for name in (
        "aircraft",
        "caltech101",
        "cars",
        "dtd",
        "dogs",
        "flowers102",
        "food101",
        "pets",
        "sun397",
        "cub",
        "imagenet",
    ):
        found, size = check_set(name, tmp_path / "data")
        assert (found.state, size) == (
            "missing",
            (NAMED[name].classes, round(0.8 * NAMED[name].train)),
        ) and "Get it from" in found.told, name
    assert not (tmp_path / "data").exists(), "looking makes no folder"


def test_a_folder_of_images_is_counted_not_opened(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "pets" / name / f"{i}.png").touch()  # empty: nobody opens it
    found, size = check_set(str(tmp_path / "pets"))
    assert (found.state, size) == ("ok", (2, 4)) and "6 train; files were listed, not opened" in found.told
    (tmp_path / "pets" / "bird").mkdir()
    assert "no images" in check_set(str(tmp_path / "pets"))[0].told


def test_a_server_is_looked_for_and_not_asked():
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert check_llm("any", {"llm_url": f"http://127.0.0.1:{server.server_port}/v1"}).state == "unknown"
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []
    assert check_llm("any", {"llm_url": f"http://127.0.0.1:{server.server_port}/v1"}).state == "missing"


def test_time_and_disk_are_measured_where_the_generator_runs(tmp_path):
    found = {
        finding.what: finding
        for finding in examine(
            EXPERIMENTS / "quickstart.ipynb",
            {"images_per_class": 20, "denoising_steps": 1, "generator_batch": 20},
            tmp_path,
        )
    }
    assert {finding.state for finding in found.values()} == {"ok"}
    assert "to draw 600 images, from two batches drawn here" in found["time"].told
    assert "600 images need about 0.00" in found["disk"].told


def test_paper_scale_says_what_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_drawing, "free_bytes", lambda _: 1e11)
    found = {
        finding.what: finding
        for finding in examine(
            EXPERIMENTS / "quickstart.ipynb",
            {"generator": REPOSITORY, "real_data": "digits", "images_per_class": 3000, "denoising_steps": 50},
            tmp_path,
        )
    }
    assert (found["time"].state, found["disk"].state) == (
        "unknown",
        "ok",
    ) and "need about 47.546 GB (estimated from their pixels), 100.0 GB are free" in found["disk"].told
    monkeypatch.setattr(doctor_drawing, "free_bytes", lambda _: 4e10)
    assert {
        finding.what: finding.state
        for finding in examine(
            EXPERIMENTS / "quickstart.ipynb",
            {"generator": REPOSITORY, "images_per_class": 3000},
            tmp_path,
            measure=False,
        )
    }["disk"] == "missing"
    assert "on an A100, by its published rate, 21.7 hours to draw 90,000 images" in found["time"].told


@pytest.mark.parametrize(
    "experiment, images",
    [
        ("transfer_volume", 7500),
        ("guidance_study", 8000),
        ("bridge_study", 4800),
        ("dsi_study", 100),
        ("volume_study", 5400),
        ("diversify_or_finetune", 1440),
        ("protocol_audit", 8000),
    ],
)
def test_images_of_all_volumes_and_guidance_scales_are_counted(experiment, images):
    given = yaml.safe_load((EXPERIMENTS / "params/glyphworld" / f"{experiment}.yaml").read_text())
    assert count_images(resolve_parameters(EXPERIMENTS / f"{experiment}.ipynb", given)[1], Size(10, 897)) == images


def test_which_experiment_a_file_is_for(tmp_path):
    notebooks, file = sorted(EXPERIMENTS.glob("[!_.]*.ipynb")), tmp_path / "mine.yaml"
    file.write_text("shots: 1")
    with pytest.raises(ValueError, match="does not say which experiment it is for"):
        guess_experiment(file, {"shots": 1}, notebooks)
    file.write_text("# experiment: volume_study\nshots: 1")
    assert guess_experiment(file, {"shots": 1}, notebooks)[0].stem == "volume_study"
    (tmp_path / "quickstart.yaml").touch()
    (tmp_path / "volume_study_vit.yaml").touch()
    assert guess_experiment(tmp_path / "quickstart.yaml", {}, notebooks)[0].stem == "quickstart"
    assert guess_experiment(tmp_path / "volume_study_vit.yaml", {}, notebooks)[0].stem == "volume_study"


def test_named_sets_are_looked_for_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable, folder in (("", "data"), (str(tmp_path / "big disk"), str(tmp_path / "big disk"))):
        monkeypatch.setenv("SYNTHNB_DATA", variable)
        assert (
            f"is not in {folder} (" in check_set("dtd")[0].told
            and "set SYNTHNB_DATA to that folder" in check_set("dtd")[0].told
        )
        assert f"is not in {tmp_path / 'given'} (" in check_set("dtd", tmp_path / "given")[0].told


# ---- what will be loaded, and what it costs


def test_copies_variants_and_checkpoints_are_not_counted(cache, monkeypatch):
    opened = sorted(cache.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in opened)
    for file in opened:  # as in the repository of Stable Diffusion 1.5
        shutil.copyfile(file, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
        shutil.copyfile(file, file.with_name(file.name.replace(".safetensors", ".non_ema.safetensors")))
    shutil.copyfile(opened[0], cache / "v1-5-pruned.safetensors")
    check = generator_weights(REPOSITORY)
    assert sorted(check(cache)) == opened and f"{size / 1e6:.1f} MB of weights" in check_generator(REPOSITORY, {}).told
    numbers = loaded_bytes(opened, 4)
    assert numbers == 2 * loaded_bytes(opened, 2) and memory_needs({"generator": REPOSITORY})["generator"] == (
        numbers / 2 / 1e9,
        "counted in its files",
    )
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a card")
    for memory, state in (
        (numbers * 0.6, "ok"),
        (numbers * 0.4, "missing"),
    ):  # precision on the GPU is half of that on the disk
        monkeypatch.setattr(doctor_machine, "gpu_memory", lambda memory=memory: memory)
        assert check_gpu({"generator": REPOSITORY, "generator_memory": "tiled"}, [REPOSITORY]).state == state, (
            "nothing is offloaded unless memory is auto"
        )


def test_an_id_with_half_precision_only_is_as_opening_says(cache):
    for file in sorted(cache.rglob("*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    found = check_generator(REPOSITORY, {})
    assert found.state == "missing" and "give variant 'fp16'" in found.told
    assert check_generator(REPOSITORY, {"generator_variant": "fp16"}).state == "ok"
    assert check_generator(str(cache), {}).state == "ok", "a folder is opened in the variant that it has"
    for given, state in (({}, "missing"), ({"generator_variant": "fp16"}, "ok")):  # as quickstart calls it
        found = {
            finding.what: finding
            for finding in examine(EXPERIMENTS / "quickstart.ipynb", {"generator": REPOSITORY} | given, measure=False)
        }
        assert found["generator"].state == state
    needs = memory_needs({"generator": REPOSITORY, "generator_variant": "fp16"})
    assert needs["generator"][1] == "counted in its files"


def test_memory_is_that_of_the_setting(cache, monkeypatch):
    files = generator_weights(REPOSITORY)(cache)
    parts = {file.parent.name: loaded_bytes([file]) for file in files}
    assert set(parts) >= {"unet", "vae", "text_encoder"}
    need = lambda memory: memory_needs({"generator": REPOSITORY, "generator_memory": memory})["generator"][0] * 1e9
    assert need("auto") == pytest.approx(sum(parts.values())) and need("offload") == pytest.approx(max(parts.values()))
    assert need("4bit") == pytest.approx(sum(parts.values()) - 0.725 * parts["unet"]), (
        "CLIP and the decoder stay as they are"
    )
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a card")
    monkeypatch.setattr(doctor_machine, "gpu_memory", lambda: (sum(parts.values()) + max(parts.values())) / 2)
    for memory, words in (("auto", "one part after the other"), ("offload", "counted in its files")):
        found = check_gpu({"generator": REPOSITORY, "generator_memory": memory}, [REPOSITORY])
        assert found.state == "ok" and words in found.told
    lines = describe_gpus([({"generator": "black-forest-labs/FLUX.1-schnell", "seeds": [0]}, Size())])
    assert (
        "do not fit" in lines[0]
        and "24 GB" in lines[1]
        and "generator, offloaded" not in lines[2]
        and "fits" in lines[2]
    )
    lines = describe_gpus(
        [({"generator": "black-forest-labs/FLUX.1-schnell", "seeds": [0], "generator_memory": "4bit+offload"}, Size())]
    )
    assert "fits (generator 6.5 GB" in lines[0]


@pytest.mark.parametrize(
    "generator, given, state, told",
    [
        ("black-forest-labs/FLUX.1-schnell", {}, "missing", "is a FluxPipeline, for which no style token"),
        ("black-forest-labs/FLUX.1-schnell", {"dataset_style": False}, None, ""),
        (REPOSITORY, {}, "ok", "by the table of families"),
        ("glyphworld/generator", {}, "ok", "can learn one"),
        ("some-owner/some-model", {}, "unknown", "is known when it is here"),
    ],
)
def test_a_style_token_is_asked_about(generator, given, state, told, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = {
        finding.what: finding
        for finding in examine(
            EXPERIMENTS / "quickstart.ipynb", {"generator": generator} | given, tmp_path, measure=False
        )
    }
    assert ("style token" in found) == (state is not None)
    if state:
        assert found["style token"].state == state and told in found["style token"].told
    if state == "missing":
        assert "dataset_style false" in found["style token"].cure
        assert "style token" in {
            finding.what
            for finding in examine(EXPERIMENTS / "dsi_study.ipynb", {"generator": generator}, tmp_path, measure=False)
            if finding.state == "missing"
        }


@pytest.mark.parametrize(
    "gb, bfloat16, given, state",
    [
        (24, True, {"dataset_style": True}, "ok"),
        (6, True, {"dataset_style": True}, "missing"),
        (10, True, {"dataset_style": True}, "ok"),
        (10, False, {"dataset_style": True}, "missing"),
        (10, True, {"style_steps": 10}, "missing"),  # dsi_study learns in float32
        (6, True, {"dataset_style": True, "device": "cpu"}, "ok"),
        (6, True, {"dataset_style": True, "device": "cuda:0"}, "missing"),
        (0, False, {"dataset_style": True}, "ok"),
    ],
)
def test_a_generator_that_would_be_offloaded_learns_no_token(gb, bfloat16, given, state, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(doctor_machine, "gpu_memory", lambda: gb * 10**9)
    monkeypatch.setattr(doctor_machine, "has_bfloat16", lambda: bfloat16)
    model = "stabilityai/stable-diffusion-xl-base-1.0"  # 7 GB in half precision
    finding = check_token({"generator": model, "generator_memory": "offload"} | given)
    assert finding.state == state and ("cannot learn" in finding.told) == (state == "missing")
    if state == "missing":
        assert ("-p dataset_style false" in finding.cure) == ("dataset_style" in given)


def test_what_is_here_decides_about_the_token_not_what_it_is_called(cache, tmp_path):
    index = cache / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    for generator in (REPOSITORY, str(cache)):
        assert check_token({"generator": generator, "dataset_style": True}).state == "missing"
    index.write_text(index.read_text().replace("FluxPipeline", "StableDiffusionXLPipeline"))
    shutil.copytree(cache, tmp_path / "flux1-dev")
    assert check_token({"generator": str(tmp_path / "flux1-dev"), "dataset_style": True}).state == "ok"


def test_hours_of_drawing_are_estimated_for_every_family(tmp_path, monkeypatch):
    from synthnb.models.families import FAMILIES

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def seconds(generator, **more):
        return a100_drawing({"generator": generator, "denoising_steps": 50, "guidance": 2.0} | more, 1000)

    known, told = seconds(REPOSITORY)
    assert (
        known == pytest.approx(1000 / 1.15)
        and told == "by its published rate"
        and seconds(REPOSITORY, guidance=1.0)[0] == pytest.approx(known / 2)
    )
    schnell, how = seconds("black-forest-labs/FLUX.1-schnell", denoising_steps=4, guidance=1.0)
    assert how.startswith("estimated from") and 312 / 990 * schnell / 1000 == pytest.approx(1.1, rel=0.3), (
        "an H100 takes 1.1 s for an image: SANA-Sprint's abstract"
    )
    assert seconds("some-owner/some-model") is None and seconds("glyphworld/generator") is None
    assert all(family.teraflops > 0 and family.passes in (1, 2) for family in FAMILIES)
    found = {
        finding.what: finding
        for finding in examine(
            EXPERIMENTS / "quickstart.ipynb",
            {"generator": "stabilityai/stable-diffusion-xl-base-1.0"},
            tmp_path,
            measure=False,
        )
    }
    assert "need about" in found["disk"].told and "(estimated from their pixels)" in found["disk"].told
    assert "estimated from" in found["time"].told and "SDXL at 1024 pixels" in found["time"].told


def test_values_that_cannot_be_are_told(tmp_path):
    for given, told in (
        ({"device": "gpu"}, "may be auto"),
        ({"llm_extra": {"api_key": "sk-1"}}, "environment variable"),
    ):
        (found,) = examine(EXPERIMENTS / "quickstart.ipynb", given, tmp_path, measure=False)
        assert found.state == "missing" and told in found.told


def test_costs_are_measured_here_or_estimated(tmp_path):
    found = {
        finding.what: finding
        for finding in examine(
            EXPERIMENTS / "quickstart.ipynb",
            {"denoising_steps": 1, "generator_batch": 20, "images_per_class": 2},
            tmp_path,
        )
    }
    assert all("(measured here" in found[what].told for what in ("prompts", "training")), found
    paper = {
        "generator": REPOSITORY,
        "llm": "Qwen/Qwen2.5-7B-Instruct",
        "classifier": "resnet50.a1_in1k",
        "real_data": "digits",
        "images_per_class": 1000,
        "denoising_steps": 50,
        "stage1_steps": 1000,
        "stage2_steps": 1000,
        "methods": ["bridged"],
        "seeds": [0],
        "batch_size": 64,
        "image_size": 224,
    }
    lines = examine(EXPERIMENTS / "quickstart.ipynb", paper, tmp_path)
    told = {finding.what: finding.told for finding in lines}
    assert "(estimated" in told["prompts"] and "128,000 images: 51 s on an A100 (estimated" in told["training"]
    cards = [finding.told for finding in lines if finding.what == "by GPU"]
    assert (
        len(cards) == 3
        and cards[0].startswith("16 GB (T4): the llm's 15.2 GB of weights leave too little room")
        and "drawing 2.4 hours" in cards[2]
    )
    assert all(card.endswith("(estimates)") for card in cards)


@pytest.mark.parametrize("name", ["quickstart", "lar_imagenet", "bridge_transfer.grid", "imagenet_study"])
def test_heads_of_paper_files_carry_the_doctors_estimates(name, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_machine, "gpu_memory", lambda: 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no hub"))
    file = EXPERIMENTS / "params" / "paper" / f"{name}.yaml"
    spec = gather_parameters(file, [])
    notebook = (
        EXPERIMENTS / f"{spec['experiment']}.ipynb"
        if "grid" in name
        else guess_experiment(file, spec, sorted(EXPERIMENTS.glob("[!_.]*.ipynb")))[0]
    )
    cells = [cell.parameters for cell in plan_sweep(notebook, spec).cells] if "grid" in name else [spec]
    found = examine(notebook, cells, tmp_path, tmp_path / "data", measure=False)
    lines = [finding.told.removesuffix(" (estimates)") for finding in found if finding.what == "by GPU"]
    head = [line.removeprefix("#   ") for line in file.read_text().splitlines() if line.startswith("#   ")]
    assert head == lines and len(lines) == 3


# ---- grids


@pytest.mark.parametrize(
    "grid, images, days",
    [
        ("bridge_transfer", "1,401,000 images in 10 plans", "14.1 days"),
        ("transfer_volume_sets", "891,000 images in 2 plans", "9.0 days"),
    ],
)
def test_images_that_cells_share_are_counted_once(grid, images, days, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_drawing, "free_bytes", lambda _: 1e13)
    file = EXPERIMENTS / "params" / "paper" / f"{grid}.grid.yaml"
    spec = gather_parameters(file, [])
    notebook = EXPERIMENTS / f"{spec['experiment']}.ipynb"
    cells = [cell.parameters for cell in plan_sweep(notebook, spec).cells]
    found = examine(notebook, cells, tmp_path, tmp_path / "data", measure=False)
    told = {finding.what: finding.told for finding in found}
    assert images in told["time"] and days in told["time"] and images in told["disk"]
    wanted = {
        (name, cell.get(parameter))
        for cell in cells
        for name, parameter in (
            ("data", "real_data"),
            ("generator", "generator"),
            ("llm", "llm"),
            ("classifier", "classifier"),
        )
        if cell.get(parameter)
    }
    assert len([finding for finding in found if finding.state == "missing"]) == len(wanted), "each need once"
    for finding in found:  # the cells that are named are those that want it
        if finding.what == "data":
            mine = [i for i, cell in enumerate(cells) if finding.told.startswith(NAMED[cell["real_data"]].title)]
            assert finding.cells == in_cells(mine, cells) and mine


def test_a_grid_by_command(tmp_path):
    file = tmp_path / "mine.grid.yaml"
    file.write_text(
        "experiment: quickstart\nbase: {denoising_steps: 1, generator_batch: 20, images_per_class: 2}\n"
        "grid: {real_data: [digits, pets], classifier: [glyphworld/cnn, resnet18.a1_in1k], lr: [0.1, 0.2]}\n"
    )
    done = CliRunner().invoke(app, ["doctor", str(file), "--root", str(tmp_path), "--outputs", str(tmp_path)])
    lines = done.output.splitlines()
    assert done.exit_code == 1 and lines[-1] == "missing: data, classifier", done.output
    assert lines[0] == "quickstart, a grid of 8 cells, as `synthnb sweep --dry-run` numbers them"
    assert [line.rpartition("(cell")[2] for line in lines if line.startswith("missing") and "(cell" in line] == [
        "s 4-7)",
        "s 2-3, 6-7)",
    ]
    assert (
        sum("glyphworld/generator: " in line for line in lines) == 1
        and "ok       data           digits come with scikit-learn (cells 0-3)" in lines
    )
    assert any(line.startswith("ok       time") and "from two batches drawn here" in line for line in lines)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no hub"))
    done = CliRunner().invoke(
        app, ["doctor", str(EXPERIMENTS / "params" / "paper" / "lar_imagenet.yaml"), "--root", str(tmp_path)]
    )
    assert done.exit_code == 1 and done.output.splitlines()[-1] == "missing: clip", done.output
    assert (
        "lar_benchmark, the only one with these parameters" in done.output
        and "hf download timm/vit_large_patch14_clip_224.openai" in done.output
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing is fetched"


def test_counting_a_clips_parameters_warns_of_nothing(caplog):
    clip_parameters.cache_clear()
    assert clip_parameters("ViT-B-32") > 1e8 and not caplog.records
