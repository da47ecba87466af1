"""Models of a hub that is there, gated, removed, incomplete or broken.

A stand-in serves them, a process of its own fetches.
Run as a script, this file is that process: `python tests/test_hub.py` prints what was said.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stand_in_hub import Hub, Repository, files_of

KINDS = {"generator": "generator", "llm": "llm", "classifier": "cnn", "clip": "clip"}
SAID = {  # what happens -> words of the message: which it is, and what to do
    "gated": ("it is gated", "hf auth login"),
    "removed": ("it was removed or made private", "a copy under another name"),
    "variant": ("only as the variant fp16", "save_pretrained(FOLDER)"),
    "pickled": ("are pickled", "take a copy of the model with safetensors"),
    "broken": ("the connection broke", "start again, whole files are kept"),
    "lacking": ("", ""),
    "offline": ("it is not in the cache", "hf download"),
    "in part": ("only a part of it is in the cache", "hf download"),
}


def main(home: str) -> None:
    """Fetch everything, and print what was said."""
    from synthnb.glyphworld import world as glyphworld

    repositories = {}
    for kind, name in KINDS.items():
        files = files_of(glyphworld.folder(name))
        largest = max((file for file in files if file.endswith(".safetensors")), key=lambda file: len(files[file]))
        renamed = {
            ending: {file.replace(".safetensors", ending): body for file, body in files.items()}
            for ending in (".fp16.safetensors", ".bin")
        }
        repositories |= {
            f"{kind}/good": Repository(files),
            f"{kind}/gated": Repository(files, "gated"),
            f"{kind}/removed": Repository(files, "removed"),
            f"{kind}/variant": Repository(renamed[".fp16.safetensors"]),
            f"{kind}/pickled": Repository(renamed[".bin"]),
            f"{kind}/broken": Repository(files, largest),
            f"{kind}/lacking": Repository({file: body for file, body in files.items() if file != largest}),
        }
    hub = Hub(repositories)
    os.environ |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": home,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    from huggingface_hub import constants

    from synthnb.models.classifiers import load_classifier
    from synthnb.models.clip import load_clip
    from synthnb.models.local_llm import LocalLLM
    from synthnb.models.pipelines import load_generator

    openers = {
        "generator": lambda name: load_generator(name, "cpu"),
        "llm": lambda name: LocalLLM(name, "cpu").model,
        "classifier": lambda name: load_classifier(f"hf-hub:{name}"),
        "clip": lambda name: load_clip(f"hf-hub:{name}", device="cpu"),
    }
    said = {}
    for offline, cases in (
        (False, ("good", "gated", "removed", "variant", "pickled", "broken", "lacking")),
        (True, ("good", "offline", "in part")),
    ):
        constants.HF_HUB_OFFLINE = offline
        for case in cases:
            for kind, opened in openers.items():
                name = f"{kind}/{'broken' if case == 'in part' else case}"
                try:
                    opened(name)
                    said[f"{kind} {case}{' offline' if offline and case == 'good' else ''}"] = ""
                except Exception as error:
                    said[f"{kind} {case}"] = f"{type(error).__name__}: {error}"
    print(json.dumps({"said": said, "fetched": hub.fetched}))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    process = subprocess.run(
        [sys.executable, __file__, tmp_path_factory.mktemp("home")], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", SAID)
@pytest.mark.parametrize("kind", KINDS)
def test_a_message_says_which_it_is_and_what_to_do(kind, case, told):
    said = told["said"][f"{kind} {case}"]
    assert said.startswith("RuntimeError"), said
    assert all(
        words in said or ((kind, case) == ("clip", "broken") and "has not been fetched whole: start again" in said)
        for words in SAID[case]
    ), said
    assert "\n" not in said.strip()


@pytest.mark.parametrize(
    "kind", ["generator", "llm", "classifier"]
)  # the shipped CLIP's tokenizer is opened from its folder only
def test_what_is_there_is_opened_and_then_needs_no_network(kind, told):
    assert told["said"][f"{kind} good"] == "" == told["said"][f"{kind} good offline"]
    assert len(set(told["fetched"])) == len(told["fetched"]), "a file is fetched once"


if __name__ == "__main__":
    main(sys.argv[1])
