"""Answers of Tunesmith beside transformers `generate` with a peft adapter: the same shape, prompts and lengths.

    serve.py TUNESMITH [--shape cpu-135m] [--concurrency 1,8,32] [--prompt-tokens 128] [--new-tokens 64]
             [--requests-each 1] [--adapters 1] [--rank 16] [--rounds 2] [--repeats 2] [--peer f32,bf16]
             [--weights bf16] [--out FILE.json]

In turn (A B A B), each run in a process of its own. Both decode greedily with a cache of keys and values, and no
token ends an answer before its length. Two kinds of work:

- As above, all requests of one length come at once, and the peer gets them as one batch: the best case for it.
- `--prompt-tokens 8-512 --new-tokens 8-512 --requests-each 4 --adapters 8` is what comes to a service with many
  adapters (lengths as in S-LoRA's synthetic work, arXiv 2311.03285): callers with one request under way each, the
  next as soon as it is answered, of any length, each to the next of the adapters. The peer takes as many as there are
  callers as one batch, in the order in which they come, padded on the left to the longest prompt, with peft's
  `adapter_names`, until the longest answer is done, which is what `generate` has for it; then the next.

Prints tokens per second of all requests together, the time to first token (of the median request, from when it was
sent; the peer's from when its batch began), the time per output token of the median request, and the ratios against
each of the peer's precisions. Nothing else should run.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from compare import machine

# What says which work it was.
WORK = ["shape", "weights", "promptTokens", "newTokens", "requestsEach", "adapters", "ranks", "threads"]
# What is measured: how it is printed, the name of its ratio, and which is better.
MEASURES = {
    "tokensPerSecond": ("tokens/s", "ratio", max),
    "decodedPerSecond": ("tokens/s, decoding", "decodingRatio", max),
    "firstTokenSeconds": ("s to first token", "firstTokenRatio", min),
    "tokenSeconds": ("s per output token", "tokenRatio", min),
}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tunesmith(args):
    command = [args.tunesmith, "bench", "serve", "--json", "--shape", args.shape, "--weights", args.weights]
    command += ["--concurrency", args.concurrency, "--requests-each", str(args.requests_each)]
    command += ["--prompt-tokens", args.prompt_tokens, "--new-tokens", args.new_tokens]
    command += ["--adapters", str(args.adapters), "--rank", args.rank, "--rounds", str(args.repeats)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def peer(work, precision, repeats):
    """The peer in a process of its own; `None` when it fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({**work, "repeats": repeats}, file)
        file.flush()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
        command = [sys.executable, os.path.abspath(__file__), "--as-peer", file.name, precision]
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def as_peer(path, precision):
    """Measures transformers and peft on the work that a `bench serve --json` describes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, StoppingCriteria, StoppingCriteriaList

    work = json.load(open(path))
    torch.set_num_threads(work["threads"])
    torch.manual_seed(1)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
    config = LlamaConfig(**work["config"])
    model = AutoModelForCausalLM.from_config(config, torch_dtype=dtype)
    adapters = [f"adapter-{number}" for number in range(work["adapters"])]
    for number, name in enumerate(adapters):
        rank = work["ranks"][number % len(work["ranks"])]
        lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules=ALL_LINEAR)
        if number == 0:
            model = get_peft_model(model, lora, adapter_name=name)
        else:
            model.add_adapter(name, lora)
    model.to(dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    class Clock(StoppingCriteria):
        """Notes when each step was done, and ends nothing."""

        def __init__(self):
            self.times = []

        def __call__(self, ids, scores, **others):
            self.times.append(time.perf_counter())
            return torch.zeros(ids.shape[0], dtype=torch.bool)

    def answer(first, requests):
        """One batch, of the work of each request and the number of the first: seconds to each step."""
        longest, most = (max(one[at] for one in requests) for at in (0, 1))
        ids = torch.zeros(len(requests), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(requests):
            ids[row, longest - prompt :] = torch.randint(1, config.vocab_size, (prompt,))
            mask[row, longest - prompt :] = 1
        clock = Clock()
        others = {}
        names = [adapters[(first + row) % len(adapters)] for row in range(len(requests) if adapters else 0)]
        if len(set(names)) > 1:
            others["adapter_names"] = names
        elif names:
            # Alone it needs no mixed pass.
            model.set_adapter(names[0])
        began = time.perf_counter()
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            min_new_tokens=most,
            do_sample=False,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([clock]),
            **others,
        )
        assert out.shape[1] == longest + most, out.shape
        return [at - began for at in clock.times]

    def measure(row):
        """All requests of a row, batch after batch; a token counts where its request asked for it."""
        at_once, requests = row["concurrency"], row["work"]
        firsts, paces, total = [], [], 0.0
        for first in range(0, len(requests), at_once):
            some = requests[first : first + at_once]
            times = answer(first, some)
            total += times[-1]
            firsts += [times[0]] * len(some)
            paces += [(times[new - 1] - times[0]) / (new - 1) for _, new in some]
        decoded = sum(new - 1 for _, new in requests) / (times[-1] - times[0]) if len(requests) == at_once else None
        return {
            "tokensPerSecond": sum(new for _, new in requests) / total,
            "decodedPerSecond": decoded,
            "firstTokenSeconds": statistics.median(firsts),
            "tokenSeconds": statistics.median(paces),
        }

    with torch.inference_mode():
        answer(0, [[work["rows"][0]["work"][0][0], 4]])
        rows = []
        for row in work["rows"]:
            runs = [measure(row) for _ in range(work["repeats"])]
            rows.append({key: runs[0][key] and statistics.median(run[key] for run in runs) for key in runs[0]})
    print(json.dumps(rows))


def beside(ours, peers):
    """One row for each number of requests at once: medians over the rounds, and ratios against the better peer."""
    rows = []
    for at, row in enumerate(ours[0]["rows"]):
        keys = [key for key in MEASURES if row[key]]
        middle = lambda runs: {key: statistics.median(run[at][key] for run in runs) for key in keys}
        figures = middle([run["rows"] for run in ours])
        others = {precision: middle([run for run in runs if run]) for precision, runs in peers.items() if any(runs)}
        row = {"concurrency": row["concurrency"], "requests": row["requests"], **figures, "peer": others}
        best = max(others, key=lambda precision: others[precision]["tokensPerSecond"], default=None)
        row["bestPeer"] = best
        for key in keys if best else []:
            _, name, better = MEASURES[key]
            row[name] = ratio(key, figures, {key: better(one[key] for one in others.values())})
        rows.append(row)
    return rows


def ratio(key, own, other):
    """How many times as good one's figure is as the other's."""
    return own[key] / other[key] if MEASURES[key][2] is max else other[key] / own[key]


def print_table(rows):
    print(f"{'at once':>8}{'requests':>9}  {'what':<22}{'tunesmith':>10}{'peer':>10}{'':>5}{'ratio':>7}")
    for row in rows:
        for key in [key for key in MEASURES if key in row]:
            what, _, _ = MEASURES[key]
            line = f"{row['concurrency']:>8}{row['requests']:>9}  {what:<22}{row[key]:>10.4g}"
            if not row["peer"]:
                print(line + "  the peer failed")
                continue
            for precision, other in row["peer"].items():
                print(line + f"{other[key]:>10.4g}{precision:>5}{ratio(key, row, other):>7.2f}")
                line = " " * 51


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tunesmith")
    parser.add_argument("--shape", default="cpu-135m")
    parser.add_argument("--weights", default="bf16", choices=["bf16", "f32", "nf4"])
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--prompt-tokens", default="128")
    parser.add_argument("--new-tokens", default="64")
    parser.add_argument("--requests-each", type=int, default=1)
    parser.add_argument("--adapters", type=int, default=1)
    parser.add_argument("--rank", default="16")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peer", default="f32,bf16")
    parser.add_argument("--out")
    args = parser.parse_args()

    ours, peers = [], {precision: [] for precision in args.peer.split(",")}
    for _ in range(args.rounds):
        ours.append(tunesmith(args))
        if ours[-1]["config"] is None:
            raise SystemExit("the peer knows a shape by its name alone: --shape must be one of bench serve --help")
        for precision, runs in peers.items():
            runs.append(peer(ours[-1], precision, args.repeats))
    rows = beside(ours, peers)
    print(
        f"{args.shape} on {machine()}: {args.adapters} adapters of rank {args.rank}, prompts of {args.prompt_tokens} "
        f"tokens, answers of {args.new_tokens}; {args.rounds} rounds in turn."
    )
    print_table(rows)
    if args.out:
        facts = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            **{key: ours[0][key] for key in WORK},
            "rounds": args.rounds,
            "repeats": args.repeats,
            "rows": rows,
        }
        with open(args.out, "w") as file:
            json.dump(facts, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-peer"]:
        as_peer(*sys.argv[2:4])
    else:
        main()
