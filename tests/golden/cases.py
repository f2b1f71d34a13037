"""What the scripts of trl's trainers have in common: the checkpoint that a case begins with, the command line of a
draw, and the folder in which its cases lie. Imported by grpo.py, ppo.py and preferences.py; makes nothing by itself.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).parent / "fixtures"
LLAMA = FIXTURES / "models" / "llama"


def checkpoint(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def policy():
    """The tiny Llama with its trained adapter, which goes on training."""
    return PeftModel.from_pretrained(checkpoint(LLAMA), FIXTURES / "models" / "lora" / "after", is_trainable=True)


def tokens(rng, vocabulary, length):
    """A text of tokens, none of them a special one."""
    return [rng.randrange(8, vocabulary) for _ in range(length)]


def begin(folder):
    """Empties the folder: what an earlier run left must not survive."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def write(folder, expected):
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def drawn(name):
    """The draw that the command line asks for, by default the committed one: its generator, and its folder, emptied."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--folder", type=Path, default=FIXTURES / name)
    arguments = parser.parse_args()
    begin(arguments.folder)
    return random.Random(arguments.seed), arguments.folder
