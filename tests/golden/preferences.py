"""Makes tests/golden/fixtures/preferences: training on pairs of answers by trl, which defines the losses.

A case holds the adapter of the start (before/), what trl measured in three steps of AdamW over one batch, and the
adapter after them (after/); expected.json holds the records, their tokens, and the losses and metrics of every case.

Run by hand, and only when a case changes; the tests read what is committed. Python 3.11 with torch==2.15.0
transformers==4.57.6 peft==0.21.2 trl==1.16.0 safetensors==0.8.0:

    python tests/golden/preferences.py
    python tests/golden/preferences.py --seed 7 --folder FOLDER   the same cases from a freshly drawn checkpoint and
                                                                  freshly drawn texts, in FOLDER/models and
                                                                  FOLDER/preferences
    python tests/golden/preferences.py --check FOLDER             what was trained there by Tunesmith, loaded by peft
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from cases import FIXTURES, LLAMA, begin, checkpoint, write
from models import save_tokenizer

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = dict(r=4, lora_alpha=8, target_modules=PROJECTIONS)
STEPS = 3
RATE = 1e-2
# A loss by our names, and what trl calls it. trl smooths labels in its robust loss; with one pair in a batch its aot is
# the conservative form of the sigmoid loss (sorting one number changes nothing).
CASES = {
    "sigmoid": dict(loss_type="sigmoid", beta=0.1),
    "sigmoid_smoothed": dict(loss_type="aot", beta=0.5, label_smoothing=0.2),
    "robust": dict(loss_type="robust", beta=0.3, label_smoothing=0.1),
    "hinge": dict(loss_type="hinge", beta=0.05),
    "ipo": dict(loss_type="ipo", beta=0.1),
}
DPO_METRICS = [
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
]
REWARD_METRICS = ["accuracy", "margin", "mean_reward"]
WORDS = "red green blue seven eleven north south river stone lamp cloud bread".split()


def texts(draw, count):
    say = lambda low, high: "".join(" " + draw.choice(WORDS) for _ in range(draw.randint(low, high)))
    return [{"prompt": f"<|begin|>say{say(1, 4)}:", "chosen": say(1, 3), "rejected": say(2, 6)} for _ in range(count)]


def tokenizer(base):
    made = AutoTokenizer.from_pretrained(base)
    # A token that no text holds: the last one that is not padding is where a classifier looks.
    made.pad_token = "<|turn|>"
    return made


def watched(trainer):
    """The trainer's losses before every step, as they are and not rounded for a log."""
    losses, compute = [], trainer.compute_loss

    def compute_loss(*arguments, **named):
        loss = compute(*arguments, **named)
        losses.append(loss.item())
        return loss

    trainer.compute_loss = compute_loss
    return losses


def arguments(kind, folder, batch, **own):
    return kind(
        output_dir=str(folder), per_device_train_batch_size=batch, max_steps=STEPS, learning_rate=RATE,
        lr_scheduler_type="constant", max_grad_norm=0.0, logging_steps=1, report_to=[], use_cpu=True, bf16=False,
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, max_length=None, dataset_num_proc=None,
        **own,
    )


def measured(trainer, losses, names):
    steps = [entry for entry in trainer.state.log_history if names[0] in entry]
    assert len(steps) == len(losses) == STEPS, (steps, losses)
    return [dict(loss=loss, **{name: entry[name] for name in names}) for loss, entry in zip(losses, steps)]


def save(model, folder):
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    # It names the folder of whoever ran this.
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "llama"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def dpo(base, folder, records, own):
    torch.manual_seed(5)
    model = get_peft_model(checkpoint(base), LoraConfig(task_type="CAUSAL_LM", **LORA))
    if not (folder / "before").exists():
        save(model, folder / "before")
    with tempfile.TemporaryDirectory() as scratch:
        args = arguments(DPOConfig, scratch, len(records), **own)
        trainer = DPOTrainer(model, args=args, train_dataset=Dataset.from_list(records), processing_class=tokenizer(base))
        losses = watched(trainer)
        trainer.train()
    rows = list(trainer.train_dataset)
    tokens = [[[row["prompt_ids"], row[answer]] for answer in ("chosen_ids", "rejected_ids")] for row in rows]
    return measured(trainer, losses, DPO_METRICS), tokens


def reward(base, folder, records):
    torch.manual_seed(6)
    words = tokenizer(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32, attn_implementation="eager", pad_token_id=words.pad_token_id
    )
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **LORA))
    save(model, folder / "before")
    with tempfile.TemporaryDirectory() as scratch:
        args = arguments(RewardConfig, scratch, len(records))
        trainer = RewardTrainer(model, args=args, train_dataset=Dataset.from_list(records), processing_class=words)
        losses = watched(trainer)
        trainer.train()
    save(model, folder / "after")
    return measured(trainer, losses, REWARD_METRICS)


def scores(base, artifact, sequences):
    """What peft's reading of a reward model says of token sequences."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32, attn_implementation="eager", pad_token_id=271
    )
    model = PeftModel.from_pretrained(model, artifact).eval()
    with torch.no_grad():
        return [model(torch.tensor([sequence])).logits[0, 0].item() for sequence in sequences]


def make(seed, base, folder):
    begin(folder)
    records = texts(random.Random(seed), 4)
    expected = {"seed": seed, "records": records, "rate": RATE, "cases": {}}
    for name, own in CASES.items():
        batch = records[:1] if name == "sigmoid_smoothed" else records
        steps, tokens = dpo(base, folder / "dpo", batch, own)
        expected["cases"][name] = dict(steps=steps, pairs=len(batch), **{k: v for k, v in own.items() if k != "loss_type"})
        if name == "sigmoid":
            expected["tokens"] = tokens
    expected["reward"] = reward(base, folder / "reward", records)
    sequences = [prompt + answer for pair in expected["tokens"] for prompt, answer in pair]
    expected["scores"] = scores(base, folder / "reward" / "after", sequences)
    write(folder, expected)


def check(folder):
    """The reward model that Tunesmith trained in FOLDER/preferences/ours says in peft what it says in Tunesmith."""
    ours = json.loads((folder / "preferences" / "ours" / "scores.json").read_text())
    expected = json.loads((folder / "preferences" / "expected.json").read_text())
    sequences = [prompt + answer for pair in expected["tokens"] for prompt, answer in pair]
    theirs = scores(folder / "models" / "llama", folder / "preferences" / "ours" / "adapter", sequences)
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    names = set(load_file(folder / "preferences" / "ours" / "adapter" / "adapter_model.safetensors"))
    assert names == set(load_file(folder / "preferences" / "reward" / "after" / "adapter_model.safetensors"))
    assert worst < 1e-4, f"peft's scores differ by {worst}"
    print(f"a reward model as peft reads it: scores differ by at most {worst:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--check", type=Path)
    given = parser.parse_args()
    if given.check:
        check(given.check)
    elif given.folder:
        # A freshly drawn checkpoint is weights alone.
        save_tokenizer(given.folder / "models" / "llama")
        make(given.seed, given.folder / "models" / "llama", given.folder / "preferences")
    else:
        make(given.seed, LLAMA, FIXTURES / "preferences")
