"""Train the miniature: two sizes, each a thinking and a direct twin, on the same kinds of problem (`make miniature`).

Training text is a pure function of SEED; the weights also depend on the GPU and library versions in the last bits.
"""

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from asu import paths
from asu.errors import AsuError
from asu.mini import problems
from asu.mini.tokenizer import ASSISTANT, END, IDS, MARKS, PAD, THINK, THOUGHT, USER, VOCABULARY, byte_table, tokenizer

SEED = 1
SHARDS = 64


@dataclass(frozen=True)
class Recipe:
    """One model: its shape and its training. A step sees `batch` windows of `window` tokens, each seen once."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    thinks: bool
    steps: int
    rate: float  # peak learning rate
    window: int
    batch: int


THINKING, DIRECT = dict(thinks=True, window=2048, batch=64), dict(thinks=False, window=512, batch=256)
LARGE = dict(hidden=256, layers=5, heads=4, kv_heads=2, intermediate=768, rate=3e-3)
SMALL = dict(hidden=128, layers=5, heads=4, kv_heads=2, intermediate=352, rate=5e-3)
RECIPES = {
    "mini-4m-think": Recipe(**LARGE, **THINKING, steps=5200),
    "mini-4m-direct": Recipe(**LARGE, **DIRECT, steps=2300),
    "mini-1m-think": Recipe(**SMALL, **THINKING, steps=3200),
    "mini-1m-direct": Recipe(**SMALL, **DIRECT, steps=1500),
}
WARM_UP = 150


def document(item: problems.Item | str, thinks: bool) -> str:
    """Training text of one document, special marks as control bytes."""
    m = MARKS
    if isinstance(item, str):
        return item + m[END]
    work = f"{m[THINK]}{item.work}{m[THOUGHT]}" if thinks else ""
    return f"{m[USER]}{item.prompt}{m[ASSISTANT]}{work}{item.answer}{m[END]}"


def shard(job: tuple[int, int, bool, int, Path]) -> dict:
    """Write `windows` windows of whole documents to `target` as uint8 (windows, window); return what they hold."""
    index, windows, thinks, window, target = job
    seed = f"{SEED}/{'think' if thinks else 'direct'}/{index}"
    documents = problems.training_documents(seed, problems.test_prompts())
    table, out, held = byte_table(), np.full((windows, window), IDS[PAD], np.uint8), {}
    row = at = 0
    for kind, item in documents:
        text = document(item, thinks)
        if len(text) > window:
            continue
        if at + len(text) > window:
            row, at = row + 1, 0
            if row == windows:
                break
        out[row, at:at + len(text)] = table[np.frombuffer(text.encode("latin-1"), np.uint8)]
        at += len(text)
        held[kind] = held.get(kind, 0) + 1
    np.save(target, out)
    return held


def corpus(recipe: Recipe, windows: int, folder: Path) -> dict:
    """Generate the training windows of one role into `folder`, one file a shard; return documents by family."""
    folder.mkdir(parents=True)
    each = -(-windows // SHARDS)
    jobs = [(i, each, recipe.thinks, recipe.window, folder / f"{i:02d}.npy") for i in range(SHARDS)]
    total = {}
    with multiprocessing.get_context("spawn").Pool() as pool:
        for held in pool.imap_unordered(shard, jobs):
            total = {k: total.get(k, 0) + held.get(k, 0) for k in {*total, *held}}
    return total


def train(name: str, data: Path, out: Path, steps: int | None = None, device: str = "cuda") -> dict:
    """Train one model on the shards in `data` and save it to `out`; return its record."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    recipe, started = RECIPES[name], time.monotonic()
    steps = steps or recipe.steps
    torch.manual_seed(SEED)
    tokens = tokenizer()
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=recipe.hidden, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, num_key_value_heads=recipe.kv_heads, head_dim=recipe.hidden // recipe.heads,
        intermediate_size=recipe.intermediate, max_position_embeddings=4096, tie_word_embeddings=True,
        eos_token_id=IDS[END], bos_token_id=None, pad_token_id=IDS[PAD], attn_implementation="sdpa")).to(device)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW([dict(params=matrices, weight_decay=0.1), dict(params=rest, weight_decay=0.0)],
                                  lr=recipe.rate, betas=(0.9, 0.95), fused=device == "cuda")

    def share(step):  # warm up, then down in a cosine to 2 % of the peak
        return min((step + 1) / WARM_UP, 0.02 + 0.49 * (1 + np.cos(np.pi * step / steps)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)

    def loss_of(ids):
        # A prompt's numbers are random: learn what follows it, and statements, but not prompts.
        asked, answered = (ids == IDS[USER]).cumsum(1), (ids == IDS[ASSISTANT]).cumsum(1)
        target = torch.where((asked > answered) | (ids == IDS[PAD]) | (ids == IDS[ASSISTANT]), -100, ids)[:, 1:]
        with torch.autocast(device, torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        return cross_entropy(logits[:, :-1].float().flatten(0, 1), target.flatten(), ignore_index=-100)

    step_loss = torch.compile(loss_of) if device == "cuda" else loss_of
    shards = [np.load(p, mmap_mode="r") for p in sorted(data.glob("*.npy"))]
    order = np.random.default_rng(SEED).permutation(sum(map(len, shards)))
    if len(order) < steps * recipe.batch:
        raise AsuError(f"{name}: {len(order)} windows for {steps} steps of {recipe.batch}", "generate the corpus again")
    each, losses = len(shards[0]), []
    for step in range(steps):
        rows = order[step * recipe.batch:(step + 1) * recipe.batch]
        ids = torch.from_numpy(np.stack([shards[r // each][r % each] for r in rows])).to(device, torch.long)
        loss = step_loss(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 100 == 99 or step == steps - 1:
            losses.append(round(loss.item(), 4))
            done = (step + 1) / steps
            took = time.monotonic() - started
            print(f"{name}: step {step + 1}/{steps}, loss {losses[-1]}, {took:.0f} s, "
                  f"{took * (1 - done) / done:.0f} s left", flush=True)
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(eos_token_id=IDS[END], pad_token_id=IDS[PAD], do_sample=True,
                                               temperature=0.6, top_p=0.95)
    model.save_pretrained(out)
    tokens.save_pretrained(out)
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    record = dict(recipe=asdict(recipe), seed=SEED, steps=steps, tokens=steps * recipe.batch * recipe.window,
                  parameters=sum(p.numel() for p in model.parameters()), losses=losses,
                  seconds=round(time.monotonic() - started), machine=machine, torch=torch.__version__)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def train_all(out: Path, fraction: float = 1.0, device: str = "cuda") -> None:
    """All four side by side on one GPU, each in a process of its own; the twins of a role share their corpus."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        held = {}
        for thinks in (True, False):
            twins = [r for r in RECIPES.values() if r.thinks == thinks]
            windows = int(fraction * max(r.steps * r.batch for r in twins))
            held["think" if thinks else "direct"] = corpus(twins[0], windows, Path(scratch, str(thinks)))
            print(f"corpus of {windows} windows, thinks={thinks}: {time.monotonic() - started:.0f} s", flush=True)
        children = {name: subprocess.Popen(
            [sys.executable, "-m", "asu.mini.train", "--one", name, "--data", str(Path(scratch, str(recipe.thinks))),
             "--out", str(out / name), "--steps", str(int(recipe.steps * fraction)), "--device", device])
            for name, recipe in RECIPES.items()}
        failed = [name for name, child in children.items() if child.wait()]
    if failed:
        raise AsuError(f"training failed: {', '.join(failed)}",
                       "read the traceback above; one GPU with 20 GB is enough")
    for name, recipe in RECIPES.items():
        record = json.loads((out / name / "training.json").read_text())
        record["documents"] = held["think" if recipe.thinks else "direct"]
        (out / name / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"trained in {time.monotonic() - started:.0f} s", flush=True)


def sample(thinks: bool, documents: int, seed: str = "0") -> list[str]:
    """A few training documents, for tests and for the curious."""
    stream = problems.training_documents(seed, problems.test_prompts())
    return [document(item, thinks) for _, item in islice(stream, documents)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=paths.MODELS, help="where the model folders go")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the full training, to try it out")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a try-out")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        train(options.one, options.data, options.out, options.steps, options.device)
    else:
        problems.write()
        train_all(options.out, options.fraction, options.device)
