"""Makes tests/golden/fixtures/merged: what peft's merge_and_unload makes of the weights that an adapter changes.

Run by hand, and only when a case changes; the tests read what is committed. Python 3.11 with torch==2.15.0
transformers==4.57.6 peft==0.21.2 safetensors==0.8.0:

    python tests/golden/merge.py
    python tests/golden/merge.py --check target/debug/tunesmith   merges every case by the binary, loads what it wrote
                                                                  by transformers, and compares it with the adapter
                                                                  over its base
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

FIXTURES = Path(__file__).parent / "fixtures"
FOLDER = FIXTURES / "merged"
# Case: base, adapter, and the type that the base is loaded and merged in: of 16 bits only where its file has them, for
# peft rounds such a base when it loads it, and once more when it merges.
CASES = {
    "lora": ("llama", "models/lora/after", torch.float32),
    "patterned": ("qwen2", "models/patterned", torch.float32),
    "dora": ("qwen2", "methods/dora/after", torch.bfloat16),
    "head_tied": ("qwen2", "methods/head_tied/after", torch.float32),
}
CHECKED = CASES | {
    "lora in 16 bits": ("llama", "models/lora/after", torch.bfloat16),
    "fused": ("phi3", "models/fused", torch.float32),
    "head": ("llama", "methods/head/after", torch.bfloat16),
    "continued": ("llama", "methods/lora_continued/after", torch.float16),
}


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def tuned(base, adapter, dtype):
    return PeftModel.from_pretrained(load(FIXTURES / "models" / base, dtype), FIXTURES / adapter).eval()


def make():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for case, (base, adapter, dtype) in CASES.items():
        before = {name: p.clone() for name, p in load(FIXTURES / "models" / base, dtype).named_parameters()}
        after = dict(tuned(base, adapter, dtype).merge_and_unload().named_parameters())
        changed = {
            name: p.detach().contiguous()
            for name, p in after.items()
            if name not in before or not torch.equal(p, before[name])
        }
        assert all(p.dtype == dtype for p in changed.values())
        save_file(changed, FOLDER / f"{case}.safetensors")


def check(binary):
    records = json.loads((FIXTURES / "models" / "llama" / "expected.json").read_text())["records"]

    def logits(model):
        with torch.no_grad():
            return torch.cat([model(torch.tensor([record])).logits[0] for record in records]).float()

    name = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
    for case, (base, adapter, dtype) in CHECKED.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "merged"
            command = [binary, "models", "merge", "--base", FIXTURES / "models" / base, "--adapter", FIXTURES / adapter]
            command += ["--out", out, "--dtype", name[dtype], "--max-shard-size", "40kB", "--json"]
            report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            merged = load(out, torch.float32)
            assert load(out, "auto").dtype == dtype
            if base == "llama":
                assert AutoTokenizer.from_pretrained(out).chat_template
        apart = (logits(merged) - logits(tuned(base, adapter, torch.float32))).abs()
        allowed = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.5}[dtype]
        assert apart.max() < allowed, f"{case}: {apart.max()}"
        print(f"{case}: {len(report['files'])} files of {report['dtype']}, logits within {apart.max():.2e}, "
              f"said to be within {report['difference']['largest']:.2e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", metavar="BINARY")
    given = parser.parse_args()
    check(given.check) if given.check else make()
