"""Tunesmith beside torch + transformers + peft on the same work, in turn (A B A B), each in a process of its own.

    compare.py TUNESMITH [--shape cpu-135m] [--methods lora,qlora,…] [--data rows,instructions] [--rounds 2]
               [--steps 4] [--peer f32,bf16] [--set loraRank=16] [--out FILE.json]

Prints a table: medians over the rounds, and ratios of tokens per second (more is better) and of peak
resident memory (less is better) against the better of the peer's precisions. Nothing else should run.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def tunesmith(args, method, data):
    command = [args.tunesmith, "bench", "train", "--json", "--shape", args.shape, "--method", method, "--data", data]
    command += ["--steps", str(args.steps), "--warm-up", "1"]
    for one in args.set:
        command += ["--set", one]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def peer(work, precision):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(work, file)
        file.flush()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
        command = [sys.executable, os.path.join(HERE, "peer.py"), file.name, precision]
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment)
    if done.returncode != 0:
        return None
    return json.loads(done.stdout.splitlines()[-1])


def median(runs, key):
    values = [run[key] for run in runs if run and run.get(key) is not None]
    return statistics.median(values) if values else None


def row(method, data, ours, peers):
    rates = {precision: median(runs, "tokensPerSecond") for precision, runs in peers.items()}
    known = {precision: rate for precision, rate in rates.items() if rate}
    best = max(known, key=known.get) if known else None
    speed, memory = median(ours, "tokensPerSecond"), median(ours, "peakBytes")
    return {
        "method": method,
        "data": data,
        "tokensPerSecond": speed,
        "peakBytes": memory,
        "cpuSeconds": median(ours, "cpuSeconds"),
        "mfu": median(ours, "mfu"),
        "matmulFlopsPerSecond": median(ours, "matmulFlopsPerSecond"),
        "peer": {
            precision: {
                "tokensPerSecond": rates[precision],
                "peakBytes": median(runs, "peakBytes"),
                "cpuSeconds": median(runs, "cpuSeconds"),
            }
            for precision, runs in peers.items()
        },
        "bestPeer": best,
        "speedRatio": speed / known[best] if best else None,
        "memoryRatio": memory / median(peers[best], "peakBytes") if best else None,
        "cpuRatio": median(ours, "cpuSeconds") / median(peers[best], "cpuSeconds") if best else None,
    }


def print_table(rows):
    print(f"\n{'method':<14}{'data':<13}{'tok/s':>8}{'peer':>14}{'ratio':>7}{'GB':>7}{'peer':>7}{'ratio':>7}{'CPU ratio':>11}{'MFU':>7}")
    for one in rows:
        best = one["bestPeer"]
        figures = one["peer"].get(best)
        beside = f"{figures['tokensPerSecond']:.1f} {best}" if best else "failed"
        print(
            f"{one['method']:<14}{one['data']:<13}{one['tokensPerSecond']:>8.1f}{beside:>14}"
            + (f"{one['speedRatio']:>7.2f}" if best else f"{'':>7}")
            + f"{one['peakBytes'] / 1e9:>7.2f}"
            + (f"{figures['peakBytes'] / 1e9:>7.2f}{one['memoryRatio']:>7.2f}{one['cpuRatio']:>11.2f}" if best else f"{'':>25}")
            + f"{100 * one['mfu']:>6.1f}%"
        )


def machine():
    name = platform.processor()
    try:
        lines = open("/proc/cpuinfo").read().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags")).split()
        name += " with " + ", ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags)
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tunesmith")
    parser.add_argument("--shape", default="cpu-135m")
    parser.add_argument("--methods", default="lora,qlora,prefix,prompt,llama_adapter,head,full")
    parser.add_argument("--data", default="rows,instructions")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--peer", default="f32,bf16")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out")
    args = parser.parse_args()

    rows = []
    for data in args.data.split(","):
        for method in args.methods.split(","):
            ours, peers = [], {precision: [] for precision in args.peer.split(",")}
            for _ in range(args.rounds):
                ours.append(tunesmith(args, method, data))
                for precision, runs in peers.items():
                    runs.append(peer(ours[-1], precision))
            rows.append(row(method, data, ours, peers))
            print_table(rows[-1:])
            sys.stdout.flush()
    print(f"\n{args.shape} on {machine()}; {args.rounds} rounds of {args.steps} measured steps, in turn.")
    print_table(rows)
    if args.out:
        facts = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "shape": args.shape,
            "rounds": args.rounds,
            "steps": args.steps,
            "set": args.set,
            "rows": rows,
        }
        with open(args.out, "w") as file:
            json.dump(facts, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
