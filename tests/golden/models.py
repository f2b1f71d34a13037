"""Makes tests/golden/fixtures/models: tiny random checkpoints of every model family, and what
transformers and peft compute with them: logits, greedy answers, LoRA gradients and losses.

Run by hand, and only when a family is added or a case changes; the tests read what is committed.
Python 3.11 with torch==2.15.0 transformers==4.57.6 peft==0.21.2 safetensors==0.8.0 tokenizers==0.22.2:

    python tests/golden/models.py
"""

import json
import math
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FOLDER = Path(__file__).parent / "fixtures" / "models"
VOCABULARY = 272
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    attn_implementation="eager",
)
# Two records: what one computes must not depend on the other.
RECORDS = [[5, 17, 200, 33, 90, 41, 256, 7, 7, 120, 64, 3], [250, 1, 99, 14, 180, 2, 61]]

FAMILIES = {
    # Frequencies fall into all three ranges of the scaling; weights in two files.
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            **SHAPE,
            rope_theta=500.0,
            rope_scaling=dict(
                rope_type="llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
        torch.float32,
        "60KB",
    ),
    # A window shorter than the records.
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=4), torch.float16, "5GB"),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=True), torch.bfloat16, "5GB"),
    # Heads wider than hidden_size / heads; a window in the second layer only.
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**SHAPE, head_dim=12, use_sliding_window=True, sliding_window=3, max_window_layers=1),
        torch.bfloat16,
        "5GB",
    ),
}


def randomize(model, seed):
    """Weights large enough that attention is not uniform and logits differ in the first digit."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * noise if "norm" in name else 0.25 * noise)


def tokenizer():
    """Byte-level BPE with a few merges, so that characters may be split over tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 3,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(["the cat and the hat", "then the answer is the other one"], trainer)
    made.add_special_tokens(["<|begin|>", "<|end|>", "<|turn|>"])
    assert made.get_vocab_size() == VOCABULARY
    return made


def save_tokenizer(folder):
    tokenizer().save(str(folder / "tokenizer.json"))
    template = (
        "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    config = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        chat_template=template,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def families():
    for seed, (name, (cls, config, dtype, shards)) in enumerate(FAMILIES.items()):
        folder = FOLDER / name
        torch.manual_seed(seed)
        model = cls(config).eval()
        randomize(model, seed)
        model.to(dtype).save_pretrained(folder, max_shard_size=shards)
        # Read back, so that only the weights are rounded and not the rotary frequencies too.
        model = base(name)
        (folder / "generation_config.json").unlink()
        with torch.no_grad():
            logits = torch.cat([model(torch.tensor([record])).logits[0] for record in RECORDS])
            answer = model.generate(
                torch.tensor([RECORDS[0]]), do_sample=False, max_new_tokens=16, eos_token_id=None, pad_token_id=0
            )
        save_file({"logits": logits.contiguous()}, folder / "expected.safetensors")
        greedy = answer[0, len(RECORDS[0]) :].tolist()
        (folder / "expected.json").write_text(json.dumps(dict(records=RECORDS, greedy=greedy)) + "\n")
    save_tokenizer(FOLDER / "llama")


def loss_of(model, batch):
    """Mean over all labelled tokens of all records; a record never sees another."""
    total, count = 0.0, 0
    for tokens, learn in batch:
        logits = model(torch.tensor([tokens])).logits[0, :-1].double()
        labels = torch.tensor(tokens[1:])
        mask = torch.tensor(learn[1:])
        total = total + torch.nn.functional.cross_entropy(logits[mask], labels[mask], reduction="sum")
        count += int(mask.sum())
    return total / count


def batch():
    """Three records, of which the second part is learned."""
    generator = torch.Generator().manual_seed(99)
    made = []
    for length in (10, 6, 14):
        tokens = torch.randint(0, VOCABULARY - 3, (length,), generator=generator).tolist()
        made.append((tokens, [i >= length // 2 for i in range(length)]))
    return made


def base(name):
    cls, *_ = FAMILIES[name]
    return cls.from_pretrained(FOLDER / name, dtype=torch.float32, attn_implementation="eager").eval()


def lora_training():
    """Three AdamW steps on one batch: the adapter before, gradients of the first step, losses, the adapter after."""
    folder = FOLDER / "lora"
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(7)
    model = get_peft_model(base("llama"), config)
    model.save_pretrained(folder / "before")
    trained = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    records, losses = batch(), []
    for step in range(3):
        optimizer.zero_grad()
        loss = loss_of(model, records)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            save_file({name: p.grad.contiguous() for name, p in trained.items()}, folder / "gradients.safetensors")
        optimizer.step()
    losses.append(loss_of(model, records).item())
    model.save_pretrained(folder / "after")
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([record])).logits[0] for record in RECORDS])
    save_file({"logits": logits.contiguous()}, folder / "after.safetensors")
    adamw = dict(learning_rate=1e-2, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01)
    (folder / "expected.json").write_text(json.dumps(dict(batch=records, adamw=adamw, losses=losses)) + "\n")


def patterned_adapter():
    """What peft can say about single modules: other ranks, other alphas, and the root-of-rank scale."""
    folder = FOLDER / "patterned"
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"v_proj": 2},
        alpha_pattern={"layers.1.mlp.down_proj": 3},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(8)
    model = get_peft_model(base("qwen2"), config)
    model.save_pretrained(folder)
    with torch.no_grad():
        reloaded = PeftModel.from_pretrained(base("qwen2"), folder)
        logits = torch.cat([reloaded(torch.tensor([record])).logits[0] for record in RECORDS])
    save_file({"logits": logits.contiguous()}, folder / "expected.safetensors")


def full_gradients():
    """Gradients of every weight of a tied model with biases and of one with head norms, each told by its
    length and by its product with cos(0), cos(1), …: two numbers that no other tensor has."""
    for name in ("qwen2", "qwen3"):
        model = base(name)
        loss = loss_of(model, batch())
        loss.backward()
        told = {}
        for weight, p in model.named_parameters():
            flat = p.grad.flatten().double()
            wave = torch.cos(torch.arange(flat.numel(), dtype=torch.float64))
            told[weight] = [flat.norm().item(), (flat @ wave).item()]
        assert all(math.isfinite(value) for pair in told.values() for value in pair)
        expected = json.dumps(dict(loss=loss.item(), gradients=told), indent=1)
        (FOLDER / name / "gradients.json").write_text(expected + "\n")


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    families()
    lora_training()
    patterned_adapter()
    full_gradients()
    for readme in FOLDER.rglob("README.md"):
        readme.unlink()
    # peft notes where the base lay on the machine that made the fixture.
    for config in FOLDER.rglob("adapter_config.json"):
        written = json.loads(config.read_text())
        written["base_model_name_or_path"] = None
        written["target_modules"].sort()
        config.write_text(json.dumps(written, indent=1) + "\n")
