"""Makes tests/golden/fixtures/grpo: what trl's GRPOTrainer makes of one batch with given samples and rewards.

A case holds the samples, their rewards and advantages, the log-probabilities of the policy, of the one that sampled and
of the reference, the loss and its derivative by each log-probability (expected.json), and the gradients of the adapter
that was in training (CASE.safetensors).

Run by hand; the tests read what is committed. Python 3.11 with torch==2.15.0 transformers==4.57.6 peft==0.21.2
trl==1.16.0 safetensors==0.8.0:

    python tests/golden/grpo.py [--seed 11] [--folder tests/golden/fixtures/grpo]
"""

import math
import tempfile

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from cases import LLAMA, drawn, policy, tokens, write

GROUP, PROMPTS, LONGEST = 4, 3, 8

# What a case sets of trl's options, and whether the samples come from an older policy.
CASES = {
    "dapo": (dict(loss_type="dapo"), False),
    "grpo": (dict(loss_type="grpo", beta=0.04), True),
    "dr_grpo": (dict(loss_type="dr_grpo", scale_rewards="none"), True),
    "batch": (dict(loss_type="dapo", scale_rewards="batch", epsilon=0.1, epsilon_high=0.3, beta=0.2), True),
    "warm": (dict(loss_type="dapo", temperature=0.7, beta=0.1), True),
}


def samples(rng, vocabulary):
    """Prompts, four answers to each, and rewards: one group without any difference, one answer without a reward."""
    prompts = [tokens(rng, vocabulary, rng.randrange(2, 7)) for _ in range(PROMPTS)]
    answers = [tokens(rng, vocabulary, rng.randrange(1, LONGEST + 1)) for _ in range(PROMPTS * GROUP)]
    rewards = [rng.choice([0.0, 0.25, 1.0, 2.0]) for _ in answers]
    rewards[GROUP : 2 * GROUP] = [0.5] * GROUP
    rewards[0], rewards[1], rewards[-1] = 0.0, 1.0, None
    return [p for p in prompts for _ in range(GROUP)], answers, rewards


def trainer(options, folder):
    tokenizer = AutoTokenizer.from_pretrained(LLAMA)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    arguments = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=LONGEST,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_dropout=True,
        **options,
    )
    data = Dataset.from_list([{"prompt": "a"}] * PROMPTS)
    made = GRPOTrainer(
        policy(), reward_funcs=lambda **_: [], args=arguments, train_dataset=data, processing_class=tokenizer
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def study(name, options, older, rng, folder):
    with tempfile.TemporaryDirectory() as scratch:
        made = trainer(options, scratch)
    prompts, answers, rewards = samples(rng, made.model.config.vocab_size)
    made._generate = lambda _: (prompts, answers, None, [[] for _ in answers], None, {}, None, None)
    given = torch.tensor([[math.nan if reward is None else reward] for reward in rewards])
    made._calculate_rewards = lambda *_: given
    batch = made._generate_and_score_completions([{"prompt": "a"}] * len(answers))

    seen = []
    inner = made._get_per_token_logps_and_entropies

    def watched(*args, **kwargs):
        result = inner(*args, **kwargs)
        if result[0].requires_grad:
            result[0].retain_grad()
            seen.append(result[0])
        return result

    made._get_per_token_logps_and_entropies = watched
    if older:
        with torch.no_grad():
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
            now = inner(made.model, ids, mask, batch["completion_ids"].size(1))[0]
        noise = torch.tensor([[rng.gauss(0, 0.3) for _ in row] for row in now])
        batch["old_per_token_logps"] = now + noise
    else:
        batch["old_per_token_logps"] = None
    if batch.get("ref_per_token_logps") is not None:
        # trl takes the adapter's own start as the reference: moved, so that there is a divergence.
        noise = torch.tensor([[rng.gauss(0, 0.4) for _ in row] for row in batch["ref_per_token_logps"]])
        batch["ref_per_token_logps"] = batch["ref_per_token_logps"] + noise
    loss = made._compute_loss(made.model, batch)
    loss.backward()

    def ragged(tensor):
        return None if tensor is None else [row[: len(answer)].tolist() for row, answer in zip(tensor, answers)]

    gradients = {
        key.replace(".default.", "."): p.grad.contiguous()
        for key, p in made.model.named_parameters()
        if p.requires_grad and p.grad is not None and ".ref." not in key
    }
    save_file(gradients, folder / f"{name}.safetensors")
    metrics = {key: values[-1] for key, values in made._metrics["train"].items()}
    return {
        "options": options,
        "prompts": prompts,
        "answers": answers,
        "rewards": rewards,
        "advantages": batch["advantages"].tolist(),
        "old": ragged(batch["old_per_token_logps"]),
        "reference": ragged(batch.get("ref_per_token_logps")),
        "log_probabilities": ragged(seen[-1].detach()),
        "slopes": ragged(seen[-1].grad),
        "loss": loss.item(),
        "kl": metrics.get("kl"),
        "clip_low": metrics["clip_ratio/low_mean"],
        "clip_high": metrics["clip_ratio/high_mean"],
    }


def main():
    rng, folder = drawn("grpo")
    write(folder, {name: study(name, *case, rng, folder) for name, case in CASES.items()})


main()
