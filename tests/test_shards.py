"""Shards and what may befall them, with real files and real processes; glyphworld's own generator draws.

SYNTHNB_KILLS=50 kills more often.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from processes import patiently
from tiny_models import tiny_vae
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from synthnb.core.files import whole_file
from synthnb.core.workers import Pool
from synthnb.dsi import initial_style
from synthnb.generate import draw_batches
from synthnb.glyphworld import world as glyphworld
from synthnb.images.curate import Filters, curate, read_kept, write_kept
from synthnb.images.decisions import Decisions, decisions_path
from synthnb.images.drawer import Drawing, _drawn_with, _what_was_passed
from synthnb.images.folder import _stream_shards, open_folder, read_shards
from synthnb.images.inspection import replay, why
from synthnb.images.plan import write_plan
from synthnb.images.scores import score_images
from synthnb.images.shards import Budget, estimate_cost, generate_shards, verify
from synthnb.images.worker import make_shards
from synthnb.images.writer import embedded_record
from synthnb.models.clip import load_clip
from synthnb.models.pipelines import load_generator
from synthnb.models.styles import load_style, save_style

os.environ["TOKENIZERS_PARALLELISM"] = "false"
KILLS = int(os.environ.get("SYNTHNB_KILLS", "20"))
GENERATOR = glyphworld.folder("generator")
PNG = Drawing(device="cpu", kind="png")
PROMPTS = {
    name: [f"a photo of arabic digit {name}, neon at night", f"a pencil drawing of arabic digit {name}"]
    for name in ("one", "two", "three", "four")
}
SETTINGS = dict(seed=0, model="glyphworld/generator", steps=2, guidance=2.0, shard_size=8, batch_size=4)
FORK = multiprocessing.get_context("fork")  # torch, once loaded, need not be loaded for every kill


@pytest.fixture(scope="module")
def pipe():
    torch.set_num_threads(1)
    return load_generator(GENERATOR, "cpu")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("plan") / "plan.parquet", PROMPTS, 20, **SETTINGS)


@pytest.fixture(scope="module")
def whole(plan, pipe, tmp_path_factory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run_worker(folder, plan, pipe)
    return folder


def run_worker(
    path, plan, pipe, patience=60.0, wrap=lambda batches: batches, before=lambda: None, made_here=None, made=None
):
    """One worker from scratch to the end."""
    before()
    folder = open_folder(path, plan)
    made = made or _drawn_with(pipe, GENERATOR, "png", passed=_what_was_passed(pipe, folder.plan.settings, Drawing()))
    done = make_shards(
        folder,
        folder.pieces(plan.images),
        lambda rows: wrap(draw_batches(pipe, rows, batch_size=4)),
        made,
        patience=patience,
    )
    if made_here is not None:
        made_here.put(done)


def start(*arguments, **options):
    process = FORK.Process(target=run_worker, args=arguments, kwargs=options)
    process.start()
    return process


def finish(*workers):
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0


def tars(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.tar")}


def read_or_nothing(path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:  # published and tidied up in the meantime
        return ""


def leftovers(folder) -> list[str]:
    return [path.name for name in ("leases", "partial") for path in (Path(folder) / ".synthnb" / name).iterdir()]


# ---- kills


def holders(folder) -> set[int]:
    """Processes that hold a lease."""
    texts = []
    for file in (folder / ".synthnb" / "leases").glob("*"):
        with suppress(FileNotFoundError):
            texts.append(file.read_text())
    return {json.loads(text.splitlines()[0])["pid"] for text in texts if "\n" in text}


def test_kill_9_at_random_moments_loses_and_duplicates_nothing(plan, pipe, whole, tmp_path):
    chance, undisturbed = random.Random(0), tars(whole)
    made = _drawn_with(pipe, GENERATOR, "png", passed=_what_was_passed(pipe, plan.settings, Drawing()))
    drawn, runs = (
        FORK.Value("i", 0),
        [],
    )  # of each run: kills, of these while a shard was drawn, images drawn more than once

    def counted(batches):
        for batch in batches:
            with drawn.get_lock():
                drawn.value += len(batch.rows)
            yield batch

    while (before := sum(kills for kills, _, _ in runs)) < KILLS:
        folder, kills, busy, drawn.value = tmp_path / str(len(runs)), 0, 0, 0
        workers = [start(folder, plan, pipe, wrap=counted, made=made) for _ in range(2)]
        while any(worker.is_alive() for worker in workers):
            time.sleep(chance.uniform(0.1, 0.9))
            i = chance.randrange(2)
            if kills < 10 and before + kills < KILLS and workers[i].is_alive():
                os.kill(workers[i].pid, signal.SIGKILL)
                busy += workers[i].pid in holders(folder)
                workers[i].join()
                assert all(undisturbed[name] == content for name, content in tars(folder).items()), (
                    "something torn is published"
                )
                kills += 1
                workers[i] = start(folder, plan, pipe, wrap=counted, made=made)
        assert [worker.exitcode for worker in workers] == [0, 0]
        assert tars(folder) == undisturbed, "same names, same bytes"
        assert verify(folder, progress=False) == [] and leftovers(folder) == []
        runs.append((kills, busy, drawn.value - plan.images))
    print(f"(kills, while drawing, images drawn again) of each run of {plan.images} images: {runs}")
    assert sum(busy for _, busy, _ in runs) >= KILLS / 2, "kills that hit nothing prove nothing"
    assert all(more <= kills * SETTINGS["shard_size"] for kills, _, more in runs), (
        "a kill costs at most the shard being drawn"
    )


def test_killed_between_sidecar_and_publication(plan, pipe, whole, tmp_path):
    def die_before_publishing():
        os.replace = lambda old, new: os._exit(9) if str(new).endswith("000002.tar") else os.rename(old, new)

    worker = start(tmp_path, plan, pipe, before=die_before_publishing)
    worker.join(60)
    assert (
        worker.exitcode == 9
        and "000002.tar" not in tars(tmp_path)
        and (tmp_path / ".synthnb/stats/000002.json").exists()
    )
    finish(start(tmp_path, plan, pipe))
    assert tars(tmp_path) == tars(whole) and leftovers(tmp_path) == []


def test_a_hanging_worker_loses_its_lease_and_may_come_back(plan, pipe, whole, tmp_path):
    counts = FORK.Queue()

    def hang(batches):
        for i, batch in enumerate(batches):
            if i == 1 and not (tmp_path / "hung").exists():
                (tmp_path / "hung").touch()
                while len(tars(tmp_path)) < 10:  # until the other one has made everything
                    time.sleep(0.05)
            yield batch

    slow = start(tmp_path, plan, pipe, wrap=hang, made_here=counts)
    while not (tmp_path / "hung").exists():
        time.sleep(0.05)
    quick = start(tmp_path, plan, pipe, patience=1.0, made_here=counts)
    finish(slow, quick)
    assert tars(tmp_path) == tars(whole) and leftovers(tmp_path) == []


def test_workers_without_patience_get_done_all_the_same(plan, pipe, whole, tmp_path):
    counts = FORK.Queue()

    def slow(batches):
        for batch in batches:
            time.sleep(0.4)
            yield batch

    finish(*(start(tmp_path, plan, pipe, wrap=slow, patience=0.1, made_here=counts) for _ in range(4)))
    assert sum(counts.get() for _ in range(4)) == 10, "each shard counts for the one that published it"
    assert tars(tmp_path) == tars(whole) and leftovers(tmp_path) == []


def test_wrong_clocks_cost_nothing(plan, pipe, whole, tmp_path):
    counts, real = FORK.Queue(), time.time

    def skew(seconds):
        def apply():
            time.time = lambda: real() + seconds

        return apply

    def misdate(seconds):  # what a file server with another clock would write
        def wrap(batches):
            for batch in batches:
                for path in (tmp_path / ".synthnb" / "leases").glob("*"):
                    with suppress(FileNotFoundError):
                        os.utime(path, (real() + seconds,) * 2)
                yield batch

        return wrap

    finish(
        *(
            start(tmp_path, plan, pipe, patience=30.0, before=skew(s), wrap=misdate(s), made_here=counts)
            for s in (-86_400, 86_400)
        )
    )
    assert counts.get() + counts.get() == 10, "no shard was made twice, none was waited for"
    assert tars(tmp_path) == tars(whole)


def test_four_workers_make_every_shard_once(plan, pipe, whole, tmp_path):
    counts = FORK.Queue()
    finish(*(start(tmp_path, plan, pipe, made_here=counts) for _ in range(4)))
    assert sum(counts.get() for _ in range(4)) == 10
    assert tars(tmp_path) == tars(whole)


# ---- disks


@pytest.fixture
def small_disk(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", tmp_path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)  # a plan that an error holds is still open


def test_full_disk_is_said_and_gone_on_from(plan, pipe, whole, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(60_000))
    with pytest.raises(
        OSError,
        match=r"is full: [\d.]+ MB are free, .* of 10 shards are published and whole; make space and start again",
    ):
        run_worker(small_disk / "shards", plan, pipe)
    published = tars(small_disk / "shards")
    assert 0 < len(published) < 10 and all(content == tars(whole)[name] for name, content in published.items())
    assert leftovers(small_disk / "shards") == []
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    run_worker(small_disk / "shards", plan, pipe)
    assert tars(small_disk / "shards") == tars(whole)


def test_disk_that_will_not_hold_the_plan_is_said(plan, small_disk, capfd):
    (small_disk / "ballast").write_bytes(bytes(60_000))
    with pytest.raises(OSError, match="is full"):
        generate_shards(plan, small_disk / "shards", GENERATOR, drawing=Drawing(device="cpu"))
    said = capfd.readouterr().err
    assert (
        said.count("WARNING: the ") == 1
        and f"MB are free on the disk of {small_disk}/shards: make space while it goes on" in said
    )


def test_read_only_folder_is_refused_before_anything_is_loaded(plan, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    begun = time.monotonic()
    with pytest.raises(OSError, match=f"cannot write into {small_disk}/x"):
        generate_shards(plan, small_disk / "x", generator=GENERATOR)
    assert time.monotonic() - begun < 2


def test_a_read_only_folder_is_curated_through_links_as_the_refusal_says(whole, small_disk, tmp_path_factory):
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    shared = shutil.copytree(whole, small_disk / "it's shared")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=r"cannot write into .* \(Read-only file system\), where scores") as refused:
        score_images(shared, progress=False)
    own = tmp_path_factory.mktemp("own")
    subprocess.run(str(refused.value).partition("shards: ")[2], shell=True, check=True, cwd=own)
    curation = curate(score_images(own / "NEW", progress=False), Filters(blank=2.0))
    assert len(read_kept(write_kept(curation, progress=False))) == 80
    with pytest.raises(ValueError, match="cannot be used for decisions .*: name another file"):
        Decisions(decisions_path(shared))


def test_a_file_on_a_read_only_disk_is_named_by_its_own_name(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError) as refused, whole_file(small_disk / "check.html") as partial:
        partial.write_text("page")
    assert refused.value.filename == str(small_disk / "check.html")


# ---- damage


def test_verify_finds_every_truncation_and_flipped_bit(whole, tmp_path):
    chance = random.Random(0)
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    for trial in range(60):
        name, content = chance.choice(sorted(tars(whole).items()))
        at = chance.randrange(len(content))
        flipped = content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
        (folder / name).write_bytes(content[:at] if trial % 2 else flipped)
        assert any(problem.shard == name[:-4] for problem in verify(folder, progress=False)), (name, at)
        (folder / name).write_bytes(content)
    assert verify(folder, progress=False) == []


def test_truncated_shard_is_remade(plan, pipe, whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    os.truncate(folder / "000003.tar", 5000)
    assert {problem.shard for problem in verify(folder, remove=True, progress=False)} == {"000003"}
    run_worker(folder, plan, pipe)
    assert tars(folder) == tars(whole)


def test_verify_knows_strangers_and_duplicates(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    shutil.copy(folder / "000000.tar", folder / "000099.tar")
    shutil.copy(folder / "000001.tar", folder / "000002.tar")
    found = {(problem.kind, problem.shard) for problem in verify(folder, progress=False)}
    assert ("mismatch", "000099") in found and ("mismatch", "000002") in found and ("missing", "000002") in found
    again = (whole / "000004.tar").read_bytes()
    body = again.rstrip(b"\0")
    body += bytes(-len(body) % 512)
    (folder / "000004.tar").write_bytes(body + again)
    assert ("duplicate", "000004") in {(problem.kind, problem.shard) for problem in verify(folder, progress=False)}


# ---- plans


def test_two_plans_into_one_folder_are_refused(plan, pipe, whole, tmp_path):
    for change, message in (
        ({"guidance": 3.0}, "guidance: 2.0 -> 3.0"),
        ({"steps": 3}, "steps: 2 -> 3"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"shard_size": 16}, "shard_size: 8 -> 16"),
        ({"dtype": "bfloat16"}, "dtype: 'auto' -> 'bfloat16'"),
    ):
        other = write_plan(tmp_path / "other.parquet", PROMPTS, 20, **SETTINGS | change)
        with pytest.raises(ValueError, match=re.escape(message)):
            generate_shards(other, whole, generator=GENERATOR)
        other.path.unlink()
    bound = write_plan(tmp_path / "bound.parquet", PROMPTS, 20, **SETTINGS, revision="0123456789ab")
    with pytest.raises(ValueError, match="made for revision 0123456789ab"):
        generate_shards(bound, tmp_path / "bound", generator=GENERATOR, progress=False)


def register(path, plan, gate, told):
    gate.wait()
    try:
        open_folder(path, plan)
        told.put(plan.hash)
    except ValueError as error:
        told.put(str(error))


def test_of_plans_that_come_at_the_same_moment_one_gets_in(tmp_path):
    plans = [write_plan(tmp_path / f"{i}.parquet", PROMPTS, 2 + i, **SETTINGS | {"seed": i}) for i in range(4)]
    for attempt in range(5):
        gate, told = FORK.Barrier(4), FORK.Queue()
        racers = [
            FORK.Process(target=register, args=(tmp_path / f"shards{attempt}", plan, gate, told)) for plan in plans
        ]
        for racer in racers:
            racer.start()
        answers = [told.get(timeout=60) for _ in racers]
        accepted = [answer for answer in answers if answer in {plan.hash for plan in plans}]
        assert accepted == [
            open_folder(
                tmp_path / f"shards{attempt}", next(plan for plan in plans if plan.hash == accepted[0])
            ).plan.hash
        ]
        assert sum("another plan" in answer for answer in answers) == 3


def test_a_style_goes_with_the_folder_to_every_worker(pipe, tmp_path, warm_workers):
    styles = {
        name: save_style(initial_style(pipe, "<look>", word), tmp_path / f"{name}.safetensors")
        for name, word in (("neon", "neon at night"), ("ink", "ink brush"))
    }
    prompts = {name: [f"arabic digit {name} in the style of <look>"] for name in ("one", "two")}
    plan = write_plan(tmp_path / "plan.parquet", prompts, 8, **SETTINGS, style=load_style(styles["neon"]).id)
    common, folder = dict(generator=GENERATOR, progress=False), tmp_path / "neon"
    drawing = {name: replace(PNG, style=file) for name, file in styles.items()} | {None: PNG}
    for refused, message in (
        (None, "made for the style <look> [0-9a-f]{12}, but none was given"),
        ("ink", "but the one given is <look>"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_shards(plan, folder, drawing=drawing[refused], **common)
        with pytest.raises(ValueError, match=message):
            estimate_cost(plan, GENERATOR, drawing[refused])
    done = generate_shards(plan, folder, drawing=drawing["neon"], pool=Pool(2), **common)
    assert done.images == 16, "what was refused has left nothing behind"
    styles["neon"].unlink()
    image = folder / "0001-two-000005"
    assert why(image)["drawn_with"]["style"] == why(image)["style"] == plan.settings.style
    assert replay(image, GENERATOR, "cpu").mean <= 1
    with pytest.raises(ValueError, match="was begun with the style <look>"):
        generate_shards(plan, folder, drawing=drawing["ink"], **common)
    plain = write_plan(tmp_path / "plain.parquet", prompts, 8, **SETTINGS)
    with pytest.raises(FileNotFoundError, match="no generator folder"):
        generate_shards(plain, tmp_path / "plain", tmp_path / "no model", drawing=drawing["ink"], progress=False)
    generate_shards(
        plain, tmp_path / "plain", drawing=PNG, **common
    )  # the style of the attempt that drew nothing is not taken
    assert why(tmp_path / "plain" / "0001-two-000005")["drawn_with"]["style"] == ""
    with pytest.raises(ValueError, match="was begun with no style, not <look>"):
        generate_shards(plain, tmp_path / "plain", drawing=drawing["ink"], **common)
    assert not torch.equal(read_shards(tmp_path / "plain").images, read_shards(folder).images), (
        "the token changes the images"
    )


def test_a_volume_grows_in_the_middle_of_a_shard(plan, pipe, whole, tmp_path):
    for per_class, added in ((5, ["000000", "000001", "000002"]), (7, ["000002-00004", "000003"]), (6, [])):
        volume = write_plan(tmp_path / f"{per_class}.parquet", PROMPTS, per_class, **SETTINGS)
        before = set(tars(tmp_path / "shards"))
        run_worker(tmp_path / "shards", volume, pipe)
        assert sorted(set(tars(tmp_path / "shards")) - before) == [f"{name}.tar" for name in added]
    run_worker(tmp_path / "shards", plan, pipe)
    assert verify(tmp_path / "shards", progress=False) == []
    grown, straight = (read_shards(folder) for folder in (tmp_path / "shards", whole))
    assert torch.equal(grown.images, straight.images), "the same pixels, in whatever volumes they were made"


def test_budget_and_selection_stop_at_shards(plan, pipe, whole, tmp_path):
    common = dict(generator=GENERATOR, drawing=PNG, progress=False)
    assert generate_shards(plan, tmp_path, budget=Budget(images=20), **common).images == 16
    assert generate_shards(plan, tmp_path, shards=slice(1, None, 3), **common).published == {"000004", "000007"}
    assert generate_shards(plan, tmp_path, budget=Budget(hours=1e-9), **common).images <= 8
    assert "start again to go on" in str(generate_shards(plan, tmp_path, budget=Budget(hours=0.0), **common))
    generate_shards(plan, tmp_path, **common)
    assert tars(tmp_path) == tars(whole)


# ---- a cluster


def owners(leases: Path) -> set[int]:
    """Processes that took a shard first."""
    told = map(read_or_nothing, leases.glob("*.0"))
    return {json.loads(text.splitlines()[0])["pid"] for text in told if text}


def test_a_cluster_that_loses_a_node_loses_no_image(plan, pipe, whole, tmp_path, monkeypatch):
    ray, cluster_utils = pytest.importorskip("ray"), pytest.importorskip("ray.cluster_utils")
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = patiently(lambda: cluster_utils.Cluster(initialize_head=True, head_node_args=head))
    common = dict(generator=GENERATOR, drawing=PNG, progress=False)
    try:
        second = patiently(lambda: cluster.add_node(num_cpus=1))
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        leases, shards = tmp_path / "shards" / ".synthnb" / "leases", tmp_path / "shards"
        large = write_plan(tmp_path / "plan.parquet", PROMPTS, 60, **SETTINGS | {"steps": 6})
        run_worker(tmp_path / "undisturbed", large, pipe)
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(generate_shards, large, shards, pool=Pool(2, ray=cluster.address), **common)
            wait_for(lambda: len(owners(leases)) == 2, seconds=600)
            wait_for(lambda: len(tars(shards)) >= 4, seconds=600)
            cluster.remove_node(second, allow_graceful=False)
            done = job.result(timeout=600)
        assert (done.images, done.failed, done.lost) == (240, 0, [])
        ray.shutdown()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        local = Pool(2, ray="local")
        here = patiently(lambda: generate_shards(plan, tmp_path / "local", pool=local, **common))
        assert here.images == 80
        assert ray.get_runtime_context().gcs_address != cluster.address, (
            "local starts a cluster, whatever the environment names"
        )
        assert tars(tmp_path / "local") == tars(whole)
        assert verify(shards, progress=False) == [] and leftovers(shards) == []
        assert tars(shards) == tars(tmp_path / "undisturbed")
    finally:
        ray.shutdown()
        cluster.shutdown()


# ---- other pipelines


def tiny_parts(tokenizer) -> tuple[CLIPTextConfig, AutoencoderKL, T5EncoderModel, T5TokenizerFast]:
    """What tiny pipelines of random weights share: how their CLIP texts are encoded, decoder, T5 and its tokenizer."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=32,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vae = tiny_vae((16, 32), norm_num_groups=8, shift_factor=0.06, scaling_factor=1.5)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [
        (letter, -1.0) for letter in "▁abcdefghijklmnopqrstuvwxyz,"
    ]
    reader = T5TokenizerFast(vocab=pieces, model_max_length=40)
    return (
        text,
        vae,
        T5EncoderModel(T5Config(vocab_size=len(reader), d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=2)),
        reader,
    )


def stable_diffusion_3(tokenizer, folder: Path) -> Path:
    """A pipeline whose loop is its own."""
    text, vae, encoder, third = tiny_parts(tokenizer)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
    )
    pipe = StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(),
        vae,
        CLIPTextModelWithProjection(text),
        tokenizer,
        CLIPTextModelWithProjection(text),
        tokenizer,
        encoder,
        third,
    )
    pipe.save_pretrained(folder)
    return folder


def flux(tokenizer, folder: Path) -> Path:
    """FLUX of few steps: a transformer over packed latents, without guidance."""
    text, vae, encoder, second = tiny_parts(tokenizer)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), vae, CLIPTextModel(text), tokenizer, encoder, second, transformer
    ).save_pretrained(folder)
    return folder


def latent_consistency(tokenizer, folder: Path) -> Path:
    """Stable Diffusion of few steps: its network is told the guidance, and its sampler draws noise at each step."""
    text, vae, *_ = tiny_parts(tokenizer)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=8,
        time_cond_proj_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012)
    StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("build", [flux, latent_consistency])
def test_few_step_pipelines_go_all_the_way(pipe, tmp_path, build):
    model = build(pipe.tokenizer, tmp_path / "model")
    plan = write_plan(
        tmp_path / "plan.parquet",
        PROMPTS,
        3,
        **SETTINGS
        | {"model": build.__name__, "steps": 2, "guidance": 4.0, "size": 16, "batch_size": 4, "shard_size": 8},
    )
    assert generate_shards(plan, tmp_path / "shards", model, drawing=PNG, progress=False).images == 12
    assert verify(tmp_path / "shards", progress=False) == []
    image = tmp_path / "shards" / "0002-three-000001"
    assert why(image)["drawn_with"]["loop"] == "pipeline" and replay(image, model, "cpu").mean <= 1
    assert read_shards(tmp_path / "shards").images.float().std(0).mean() > 1, "twelve different images"


def test_a_pipeline_with_its_own_loop_goes_all_the_way(pipe, tmp_path, monkeypatch):
    model = stable_diffusion_3(pipe.tokenizer, tmp_path / "model")
    plan = write_plan(
        tmp_path / "plan.parquet", PROMPTS, 3, **SETTINGS | {"model": "tiny-sd3", "batch_size": 4, "shard_size": 8}
    )
    common = dict(generator=model, drawing=PNG, progress=False)
    assert generate_shards(plan, tmp_path / "shards", **common).images == 12
    assert verify(tmp_path / "shards", progress=False) == []
    image = tmp_path / "shards" / "0002-three-000001"
    assert (why(image)["drawn_with"]["loop"], why(image)["at_once"]) == ("pipeline", 4)
    assert replay(image, model, "cpu").mean <= 1
    assert read_shards(tmp_path / "shards").images.float().std(0).mean() > 1, "twelve different images"

    whole = StableDiffusion3Pipeline.__call__

    def small_memory(self, prompt, *args, **kwargs):
        if len(prompt) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, prompt, *args, **kwargs)

    monkeypatch.setattr(StableDiffusion3Pipeline, "__call__", small_memory)
    assert generate_shards(plan, tmp_path / "halved", **common).images == 12
    assert why(tmp_path / "halved" / "0002-three-000001")["at_once"] == 2, "the record says that memory ran out"
    full, halved = (read_shards(tmp_path / name).images.int() for name in ("shards", "halved"))
    assert (full - halved).abs().max() <= 1


def test_images_are_scored_where_they_are_drawn(pipe, tmp_path):
    prompts = pd.DataFrame(
        [
            {
                "label": i,
                "class": name,
                "id": f"{i}",
                "prompt": f"a photo of arabic digit {name}, neon at night",
                "phrase": f"arabic digit {name}",
                "pool": "SD",
                "context_key": "",
                "style_key": "",
            }
            for i, name in enumerate(("three", "eight"))
        ]
    )
    plan = write_plan(tmp_path / "plan.parquet", prompts, 8, **SETTINGS | {"steps": 10})
    common, scored = dict(generator=GENERATOR, progress=False), replace(PNG, clip=glyphworld.folder("clip"))
    generate_shards(plan, tmp_path / "shards", drawing=scored, **common)
    told = [record for _, record in _stream_shards(tmp_path / "shards")]
    assert {record["scores"]["clip_text"] for record in told} == {
        "a photo of arabic digit three",
        "a photo of arabic digit eight",
    }
    eye = load_clip(glyphworld.folder("clip"), None, "cpu")
    images = eye.encode_images(eye.prepare(read_shards(tmp_path / "shards").images))
    texts = eye.encode_texts([record["scores"]["clip_text"] for record in told])
    assert np.allclose([record["scores"]["clip"] for record in told], (images * texts).sum(1), atol=1e-3), (
        "the same as of the files"
    )
    other = eye.encode_texts(
        [text for text in ("a photo of arabic digit eight", "a photo of arabic digit three") for _ in range(8)]
    )
    assert np.mean([r["scores"]["clip"] for r in told]) > (images * other).sum(1).mean(), "the right text fits better"
    assert estimate_cost(plan, GENERATOR, scored, batches=1).counts["images"] == 16
    with pytest.raises(ValueError, match="clip: '.*' -> ''"):
        more = write_plan(tmp_path / "more.parquet", prompts, 12, **SETTINGS | {"steps": 10})
        generate_shards(more, tmp_path / "shards", drawing=PNG, **common)


@pytest.mark.parametrize(
    "asked",
    [{"kind": "jpeg"}, {"kind": "webp", "quality": 80}, {"compile": True}, {"memory": "tiled"}, {"clip": "ViT-B-32"}],
    ids=lambda asked: next(iter(asked)),
)
def test_a_finished_folder_refuses_other_options_as_an_unfinished_one(plan, whole, asked):
    with pytest.raises(ValueError, match="begun with other settings .* choose another folder"):
        generate_shards(plan, whole, GENERATOR, drawing=replace(PNG, **asked), progress=False)
    assert generate_shards(plan, whole, GENERATOR, drawing=PNG, progress=False).images == 0


# ---- readers


def test_webdataset_opens_the_shards(plan, whole):
    webdataset = pytest.importorskip("webdataset")
    dataset = (
        webdataset.WebDataset([str(path) for path in sorted(whole.glob("*.tar"))], shardshuffle=False)
        .decode("rgb8")
        .to_tuple("png", "json", "__key__")
    )
    samples = list(dataset)
    assert [key for _, _, key in samples] == plan.rows(0, plan.images).id.tolist()
    assert np.array_equal(
        np.stack([image for image, _, _ in samples]).transpose(0, 3, 1, 2), read_shards(whole).images.numpy()
    )
    assert samples[5][1]["prompt"] == plan.rows(5, 6).prompt[0]


@pytest.mark.parametrize("how", ["folder", "files"])
def test_hugging_face_datasets_opens_the_shards(plan, whole, tmp_path, how):
    datasets = pytest.importorskip("datasets")
    if how == "folder":
        opened = datasets.load_dataset(str(whole), split="train", cache_dir=str(tmp_path))
    else:
        opened = datasets.load_dataset(
            "webdataset", data_files=str(whole / "*.tar"), split="train", cache_dir=str(tmp_path)
        )
    assert opened["__key__"] == plan.rows(0, plan.images).id.tolist()
    assert opened[3]["png"].size == (32, 32) and opened[3]["json"]["drawn_with"]["scheduler"]


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_are_explained_and_drawn_again(plan, kind, tmp_path):
    drawing, budget = Drawing(device="cpu", kind=kind), Budget(images=8)
    generate_shards(plan, tmp_path, GENERATOR, drawing=drawing, budget=budget, progress=False)
    content, record = next(_stream_shards(tmp_path))
    image = Image.open(BytesIO(content))
    assert image.format == kind.upper() and b"digitalsourcetype/trainedAlgorithmicMedia" in content
    assert {
        **embedded_record(BytesIO(content)),
        **{name: record[name] for name in ("file", "height", "width", "sha256")},
    } == record
    assert replay(tmp_path / record["id"], GENERATOR, "cpu").identical
    assert why(tmp_path / record["id"])["sha256"] == record["sha256"]


# ---- the whole job, with worker processes of its own


def whole_job(plan, folder, said):
    """What a user's script would do, its words in a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs have it ignored
    with open(said, "w") as sys.stdout, redirect_stderr(sys.stdout):
        try:
            print(generate_shards(plan, folder, GENERATOR, drawing=PNG, pool=Pool(2)))
        except KeyboardInterrupt as stopped:
            print(f"[{stopped}]")
            sys.exit(1)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def start_job(*arguments):
    process = FORK.Process(target=whole_job, args=arguments)
    process.start()
    return process


def test_ctrl_c_then_a_dead_worker_then_the_end(pipe, tmp_path, warm_workers):
    plan = write_plan(tmp_path / "plan.parquet", PROMPTS, 60, **SETTINGS | {"steps": 6})
    folder, leases = tmp_path / "shards", tmp_path / "shards" / ".synthnb" / "leases"
    first = start_job(plan, folder, tmp_path / "first.txt")
    wait_for(lambda: len(list(folder.glob("*.tar"))) >= 2)
    os.kill(first.pid, signal.SIGINT)
    first.join(60)
    stopped_at, said = len(tars(folder)), (tmp_path / "first.txt").read_text()
    assert first.exitcode == 1 and 2 <= stopped_at < 30
    assert re.search(
        rf"\[stopped: {8 * stopped_at} images in {stopped_at} new shards in .*; "
        rf"{30 - stopped_at} shards are left, start again to go on\]",
        said,
    )
    assert leftovers(folder) == []

    second = start_job(plan, folder, tmp_path / "second.txt")
    wait_for(
        lambda: (
            len(list(folder.glob("*.tar"))) > stopped_at
            and any(file.read_text().count("\n") for file in leases.glob("*.0"))
        )
    )
    owner = json.loads(next(text for text in (file.read_text() for file in leases.glob("*.0")) if text).splitlines()[0])
    os.kill(owner["pid"], signal.SIGKILL)
    second.join(120)
    out = (tmp_path / "second.txt").read_text()
    assert second.exitcode == 0, out
    assert f"{8 * (30 - stopped_at)} images in {30 - stopped_at} new shards" in out and "ended with status -9" in out
    assert verify(folder, progress=False) == [] and leftovers(folder) == []


def test_a_mistake_in_every_worker_is_said(plan, tmp_path, warm_workers):
    (tmp_path / "model").mkdir()
    with pytest.raises(RuntimeError, match="all workers died.*no model_index.json") as refused:
        generate_shards(plan, tmp_path / "shards", tmp_path / "model", pool=Pool(2), progress=False)
    assert str(refused.value).count("no model_index.json") == 1 and "and 1 more" in str(refused.value)
    assert leftovers(tmp_path / "shards") == []
