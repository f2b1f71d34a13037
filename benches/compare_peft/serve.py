"""Answers of Tunesmith beside transformers `generate` with a peft adapter: the same shape, prompts and lengths.

    serve.py TUNESMITH [--shape cpu-135m] [--concurrency 1,8,32] [--prompt-tokens 128] [--new-tokens 64]
             [--adapters 1] [--rank 16] [--rounds 2] [--repeats 2] [--peer f32,bf16] [--weights bf16] [--out FILE.json]

In turn (A B A B), each run in a process of its own. Tunesmith's requests come at once, each from a thread of its
own; the peer gets them as one batch, which is the best it can do with requests that come at once. Both decode
greedily with a cache of keys and values, and no token ends an answer. Prints tokens per second of all requests
together, the time to the first token (the median of Tunesmith's requests; the peer's come all at once) and ratios
against the better of the peer's precisions. Nothing else should run.
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

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tunesmith(args):
    command = [args.tunesmith, "bench", "serve", "--json", "--shape", args.shape, "--weights", args.weights]
    command += ["--concurrency", args.concurrency, "--prompt-tokens", str(args.prompt_tokens)]
    command += ["--new-tokens", str(args.new_tokens), "--adapters", str(args.adapters), "--rank", str(args.rank)]
    command += ["--rounds", str(args.repeats)]
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
    lora = LoraConfig(task_type="CAUSAL_LM", r=work["rank"], lora_alpha=work["rank"], target_modules=ALL_LINEAR)
    if adapters:
        model = get_peft_model(model, lora, adapter_name=adapters[0])
        for name in adapters[1:]:
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

    def measure(requests, tokens):
        ids = torch.randint(1, config.vocab_size, (requests, work["promptTokens"]))
        clock = Clock()
        others = {}
        if len(adapters) > 1:
            others["adapter_names"] = [adapters[row % len(adapters)] for row in range(requests)]
        began = time.perf_counter()
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([clock]),
            **others,
        )
        assert out.shape[1] == ids.shape[1] + tokens, out.shape
        first, last = clock.times[0] - began, clock.times[-1] - began
        return {
            "tokensPerSecond": requests * tokens / last,
            "decodedPerSecond": requests * (tokens - 1) / (last - first),
            "firstTokenSeconds": first,
        }

    with torch.inference_mode():
        measure(1, 4)
        rows = []
        for row in work["rows"]:
            runs = [measure(row["requests"], work["newTokens"]) for _ in range(work["repeats"])]
            rows.append({key: statistics.median(run[key] for run in runs) for key in runs[0]})
    print(json.dumps(rows))


def beside(ours, peers):
    """One row for each number of requests: medians over the rounds, and ratios against the better peer."""
    rows = []
    for at, requests in enumerate(row["requests"] for row in ours[0]["rows"]):
        middle = lambda runs, key: statistics.median(run[at][key] for run in runs)
        own = [run["rows"] for run in ours]
        keys = ("tokensPerSecond", "decodedPerSecond", "firstTokenSeconds")
        figures = {key: middle(own, key) for key in keys}
        others = {
            precision: {key: middle([run for run in runs if run], key) for key in keys}
            for precision, runs in peers.items()
            if any(runs)
        }
        best = max(others, key=lambda precision: others[precision]["tokensPerSecond"], default=None)
        row = {"requests": requests, **figures, "peer": others, "bestPeer": best}
        if best:
            row["ratio"] = figures["tokensPerSecond"] / others[best]["tokensPerSecond"]
            row["decodingRatio"] = figures["decodedPerSecond"] / max(one["decodedPerSecond"] for one in others.values())
            row["firstTokenRatio"] = min(one["firstTokenSeconds"] for one in others.values()) / figures["firstTokenSeconds"]
        rows.append(row)
    return rows


def print_table(rows):
    print(f"{'requests':>8}{'tok/s':>9}{'peer':>15}{'ratio':>7}{'decoding':>10}{'peer':>9}{'ratio':>7}{'first, s':>10}{'peer':>8}{'ratio':>7}")
    for row in rows:
        line = f"{row['requests']:>8}{row['tokensPerSecond']:>9.1f}"
        best = row["bestPeer"]
        if best is None:
            print(line + "  the peer failed")
            continue
        others = row["peer"]
        line += f"{others[best]['tokensPerSecond']:>10.1f} {best:<4}{row['ratio']:>7.2f}"
        line += f"{row['decodedPerSecond']:>10.1f}{max(one['decodedPerSecond'] for one in others.values()):>9.1f}{row['decodingRatio']:>7.2f}"
        line += f"{row['firstTokenSeconds']:>10.3f}{min(one['firstTokenSeconds'] for one in others.values()):>8.3f}{row['firstTokenRatio']:>7.2f}"
        print(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tunesmith")
    parser.add_argument("--shape", default="cpu-135m")
    parser.add_argument("--weights", default="bf16", choices=["bf16", "f32", "nf4"])
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
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
            **{key: ours[0][key] for key in ("shape", "weights", "promptTokens", "newTokens", "adapters", "rank", "threads")},
            "rounds": args.rounds,
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
