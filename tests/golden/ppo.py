"""Makes tests/golden/fixtures/ppo: what trl's PPOTrainer makes of one batch with given answers, rewards and values.

The trainer's own train() runs for one step of one epoch on the tiny Llama, with an adapter that trains, the base with the
adapter switched off as the reference, and a value model that is a head on the policy's trunk. Only what is drawn or
learned elsewhere is given: the answers (batch_generation), the rewards (get_reward of the reward model), and noise on
the old log-probabilities and values, so that both are clipped. Everything else is read where the trainer computes it:
the local variables of train() at its masked_whiten and at its backward.

A case holds the answers with their rewards, old and reference log-probabilities, values, advantages and returns, the
new log-probabilities and values with the derivatives of the loss by them, and the losses and clipped fractions
(expected.json); the gradients of the adapter and of the head (CASE.safetensors); and the head (head.safetensors).

trl 1.16 has no PPO any more; 1.10.0 has it in trl.experimental, and runs on the other libraries as they are. Run by
hand; the tests read what is committed. Python 3.11 with torch==2.15.0 transformers==4.57.6 peft==0.21.2
safetensors==0.8.0 and, in front, trl==1.10.0:

    pip install --no-deps --target FOLDER trl==1.10.0
    PYTHONPATH=FOLDER python tests/golden/ppo.py [--seed 11] [--folder tests/golden/fixtures/ppo]
"""

import json
import sys
import tempfile

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

import cases

ANSWERS, LONGEST = 6, 8
# A token that no prompt and no answer holds: trl takes the first one in an answer for its end.
PAD = "<|turn|>"

# What a case sets of trl's options.
CASES = {
    "usual": dict(temperature=1.0),
    "warm": dict(temperature=0.7, kl_coef=0.3, gamma=0.9, lam=0.8),
    "narrow": dict(temperature=1.0, cliprange=0.1, cliprange_value=0.05, vf_coef=0.5, kl_coef=0.0),
}


class Critic(torch.nn.Module):
    """A value model whose trunk is the policy's; trl looks for these names."""

    base_model_prefix = "trunk"

    def __init__(self, policy):
        super().__init__()
        self.trunk = policy.get_base_model().model
        self.score = torch.nn.Linear(policy.config.hidden_size, 1, bias=False)


class Judge(torch.nn.Module):
    """Stands where the reward model stands; what it says is given."""


def answers(rng, vocabulary):
    """Prompts, an answer to each, the longest and the shortest there can be among them, and rewards."""
    tokens = lambda length: cases.tokens(rng, vocabulary, length)
    prompts = [tokens(rng.randrange(2, 7)) for _ in range(ANSWERS)]
    lengths = [LONGEST, 1, LONGEST - 1] + [rng.randrange(2, LONGEST) for _ in range(ANSWERS - 3)]
    return prompts, [tokens(length) for length in lengths], [rng.choice([-1.0, 0.0, 0.5, 2.0]) for _ in lengths]


def of_train():
    """The local variables of the train() that is running."""
    frame = sys._getframe()
    while frame.f_code.co_name != "train":
        frame = frame.f_back
    return dict(frame.f_locals)


def study(name, options, head, rng, folder):
    tokenizer = AutoTokenizer.from_pretrained(cases.LLAMA, padding_side="left")
    tokenizer.pad_token = PAD
    pad = tokenizer.pad_token_id
    policy = cases.policy()
    critic, judge = Critic(policy), Judge()
    with torch.no_grad():
        critic.score.weight.copy_(head)

    prompts, given, rewards = answers(rng, min(pad, policy.config.vocab_size))
    noise = lambda size: torch.tensor([[rng.gauss(0, size) for _ in range(LONGEST)] for _ in prompts])
    of_tokens, of_values = noise(0.3), noise(0.4)
    place = lambda queries: [prompts.index([token for token in row if token != pad]) for row in queries.tolist()]

    def batch_generation(model, queries, _batch, pad_token_id, generation_config):
        """The given answers, and logits under which they were drawn: the policy's, moved by noise at the token."""
        rows = place(queries)
        responses = torch.full((len(rows), LONGEST), pad_token_id)
        for at, row in enumerate(rows):
            responses[at, : len(given[row])] = torch.tensor(given[row])
        everything = torch.cat([queries, responses], dim=1)
        logits = ppo_trainer.forward(model, everything, pad_token_id).logits[:, queries.shape[1] - 1 : -1]
        logits = logits / generation_config.temperature
        logits.scatter_add_(2, responses[:, :, None], of_tokens[rows][:, :, None])
        return everything, logits

    get_reward = ppo_trainer.get_reward

    def watched_reward(model, sequences, pad_token_id, context_length):
        rows = place(sequences[:, :context_length])
        if model is judge:
            return None, torch.tensor([rewards[row] for row in rows]), None
        values, last, lengths = get_reward(model, sequences, pad_token_id, context_length)
        values = values.clone()
        values[:, context_length - 1 : -1, 0] += of_values[rows]
        return values, last, lengths

    seen = {}
    whiten = ppo_trainer.masked_whiten

    def watched_whiten(values, mask, *rest, **named):
        seen["before"] = of_train()
        result = whiten(values, mask, *rest, **named)
        seen["advantages"] = result
        return result

    ppo_trainer.batch_generation, ppo_trainer.get_reward = batch_generation, watched_reward
    ppo_trainer.masked_whiten = watched_whiten
    try:
        with tempfile.TemporaryDirectory() as scratch:
            arguments = PPOConfig(
                output_dir=scratch,
                per_device_train_batch_size=ANSWERS,
                gradient_accumulation_steps=1,
                num_mini_batches=1,
                num_ppo_epochs=1,
                total_episodes=ANSWERS,
                response_length=LONGEST,
                num_sample_generations=0,
                learning_rate=1e-3,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
                **options,
            )
            data = Dataset.from_list([{"input_ids": prompt} for prompt in prompts])
            trainer = PPOTrainer(
                args=arguments, processing_class=tokenizer, model=policy, ref_model=None, reward_model=judge,
                train_dataset=data, value_model=critic,
            )
            logged = []
            trainer.log = logged.append
            backward = trainer.accelerator.backward

            def watched_backward(loss, **named):
                seen["at"] = of_train()
                for watched in ("new_logprobs", "vpred"):
                    seen["at"][watched].retain_grad()
                backward(loss, **named)
                seen["gradients"] = {
                    key: weight.grad.clone() for key, weight in trainer.model.named_parameters() if weight.grad is not None
                }

            trainer.accelerator.backward = watched_backward
            trainer.train()
    finally:
        ppo_trainer.batch_generation, ppo_trainer.get_reward = batch_generation, get_reward
        ppo_trainer.masked_whiten = whiten

    before, at, metrics = seen["before"], seen["at"], logged[-1]
    rows = place(before["queries"])
    inner = [rows.index(row) for row in range(ANSWERS)]
    # The trainer goes through the batch in another order than it made it in.
    outer = [at["micro_batch_inds"].tolist().index(row) for row in inner]
    tokens = lambda tensor, order: [tensor[row, : len(given[n])].tolist() for n, row in enumerate(order)]
    # A value has one place more where the answer ended before its limit.
    states = lambda tensor, order: [tensor[row, : len(given[n]) + 1].tolist() for n, row in enumerate(order)]
    ours = lambda key: (
        "value_head.weight" if key == "value_model.score.weight" else key.removeprefix("policy.").replace(".default.", ".")
    )
    gradients = {ours(key): gradient.contiguous() for key, gradient in seen["gradients"].items()}
    assert len(gradients) == 1 + sum(weight.requires_grad for weight in policy.parameters()), sorted(gradients)
    save_file(gradients, folder / f"{name}.safetensors")
    count = sum(map(len, given))
    return {
        "options": options,
        "prompts": prompts,
        "answers": given,
        "rewards": rewards,
        "old": tokens(before["logprobs"], inner),
        "reference": tokens(before["ref_logprobs"], inner),
        "values": states(before["values"], inner),
        "advantages": tokens(seen["advantages"], inner),
        "returns": states(before["returns"], inner),
        "new_log_probabilities": tokens(at["new_logprobs"].detach(), outer),
        "slopes": tokens(at["new_logprobs"].grad, outer),
        "new_values": states(at["vpred"].detach(), outer),
        "value_slopes": states(at["vpred"].grad, outer),
        "loss": at["loss"].item(),
        "policy_loss": at["pg_loss"].item(),
        "value_loss": at["vf_loss"].item(),
        "clipped": metrics["policy/clipfrac_avg"],
        "values_clipped": metrics["val/clipfrac_avg"],
        # trl's mean is over the padding too, where nothing differs.
        "approx_kl": metrics["policy/approxkl_avg"] * ANSWERS * LONGEST / count,
        "kl": metrics["objective/kl"],
        "entropy": metrics["objective/entropy"],
    }


def main():
    rng, folder = cases.drawn("ppo")
    width = json.loads((cases.LLAMA / "config.json").read_text())["hidden_size"]
    head = torch.tensor([[rng.gauss(0, 0.3) for _ in range(width)]])
    save_file({"value_head.weight": head}, folder / "head.safetensors")
    cases.write(folder, {name: study(name, options, head, rng, folder) for name, options in CASES.items()})


main()
