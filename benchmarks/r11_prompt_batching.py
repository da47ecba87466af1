"""R11: sixteen questions through `LocalLLM` against one `generate` a question, same replies, process CPU time."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from synthnb.lar import sense_question
from synthnb.models.local_llm import LocalLLM
from synthnb.models.questions import Sampling

BAR, TARGET, PROMPTS = 5.0, 7.0, 16
NAMES = (
    "zero",
    "o",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "i",
    "v",
    "x",
    "l",
    "c",
)  # ambiguous in glyphworld
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def questions() -> list:
    """The chats of label ambiguity resolution."""
    return [sense_question(name, most=4 + i % 5).messages for i, name in enumerate(NAMES)]


def random_llm(folder: Path, width: int, layers: int) -> None:
    """A Llama with random weights, a chat template and a vocabulary learned from the questions."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [message["content"] for chat in questions() for message in chat],
        vocab_size=2048,
        show_progress=False,
        special_tokens=["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def one_by_one(model, tokenizer, chats: list, max_tokens: int) -> list[str]:
    """The reference: transformers' own calls, one chat after the other."""
    texts = []
    for chat in chats:
        inputs = tokenizer.apply_chat_template(
            list(chat), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)
        texts.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def timed(function) -> tuple[float, float, list]:
    """CPU seconds, wall seconds, result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def compare(name: str, folder: Path, max_tokens: int, rounds: int) -> float:
    """The median over rounds of reference CPU time / ours."""
    llm, chats = LocalLLM(folder, "cpu", "float32", batch_size=PROMPTS), questions()
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    print(
        f"{name}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {PROMPTS} chats, "
        f"up to {max_tokens} new tokens"
    )
    reference = lambda: one_by_one(model, tokenizer, chats, max_tokens)
    ours = lambda: [
        reply.text for reply in llm.replies(chats, Sampling(temperature=0, max_tokens=max_tokens), range(PROMPTS))
    ]
    if reference() != ours():  # the warm-up
        sys.exit("the replies differ, so there is nothing to compare")
    ratios = []
    for i in range(rounds):
        (cpu_r, wall_r, texts_r), (cpu_o, wall_o, texts_o) = timed(reference), timed(ours)
        assert texts_r == texts_o
        ratios.append(cpu_r / cpu_o)
        print(
            f"  round {i}: one by one {cpu_r:6.2f} s CPU {wall_r:6.2f} s wall, "
            f"together {cpu_o:6.2f} s CPU {wall_o:6.2f} s wall, {ratios[-1]:5.2f}x"
        )
    print(f"  median {statistics.median(ratios):.2f}x (bar {BAR}x, target {TARGET}x)", flush=True)
    return statistics.median(ratios)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of a reply")
    parser.add_argument("--model", type=Path, help="a chat model's folder, measured too; only the random one decides")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, one thread"
    )
    with tempfile.TemporaryDirectory() as folder:
        random_llm(Path(folder), width=256, layers=4)
        ratio = compare("random weights", Path(folder), args.tokens, args.rounds)
    if args.model:
        compare(args.model.name, args.model, args.tokens, args.rounds)
    return int(ratio < BAR)


if __name__ == "__main__":
    sys.exit(main())
