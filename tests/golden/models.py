"""Makes tests/golden/fixtures/models: tiny random checkpoints of every model family, and what
transformers and peft compute with them: logits, greedy answers, LoRA gradients and losses.

Run by hand, and only when a family is added or a case changes; the tests read what is committed.
Python 3.11 with torch==2.15.0 transformers==4.57.6 peft==0.21.2 safetensors==0.8.0 tokenizers==0.22.2:

    python tests/golden/models.py                 # all
    python tests/golden/models.py gemma2 phi3     # these families; everything else stays as it is
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
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
    # Caps that bend scores and logits, scores scaled by another number than the width of a head, a window in
    # the first layer only.
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(
            **SHAPE,
            head_dim=12,
            query_pre_attn_scalar=20,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=2.0,
            sliding_window=4,
            pad_token_id=None,
        ),
        torch.bfloat16,
        "5GB",
    ),
    # Windows in the first and the third layer, which turn by frequencies of their own; stretched ones in the second.
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **SHAPE | dict(num_hidden_layers=3),
            head_dim=12,
            query_pre_attn_scalar=20,
            sliding_window=4,
            sliding_window_pattern=2,
            rope_theta=1000.0,
            rope_local_base_freq=50.0,
            rope_scaling=dict(rope_type="linear", factor=2.0),
            pad_token_id=None,
        ),
        torch.bfloat16,
        "5GB",
    ),
    # The first record is longer than the pre-training was and the second is not; six of eight elements of a head turn.
    "phi3": (
        Phi3ForCausalLM,
        Phi3Config(
            **SHAPE,
            partial_rotary_factor=0.75,
            rope_theta=500.0,
            rope_scaling=dict(type="longrope", short_factor=[1.0, 1.1, 1.3], long_factor=[1.2, 2.0, 3.5]),
            original_max_position_embeddings=8,
            sliding_window=9,
            pad_token_id=None,
        ),
        torch.bfloat16,
        "5GB",
    ),
    # The second layer does not know positions, and has a window.
    "smollm3": (
        SmolLM3ForCausalLM,
        SmolLM3Config(
            **SHAPE, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=4, pad_token_id=None
        ),
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
            gemma = "Gemma" in type(model).__name__
            if "norm" in name:
                # Gemma keeps the difference from 1.
                weight.copy_((0 if gemma else 1) + 0.2 * noise)
            else:
                # Gemma scales its embeddings up; as large as the others, each token would answer with itself.
                weight.copy_((0.08 if gemma and "embed" in name else 0.25) * noise)


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


def families(names):
    for seed, (name, (cls, config, dtype, shards)) in enumerate(FAMILIES.items()):
        if name not in names:
            continue
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
        expected = dict(records=RECORDS, greedy=greedy)
        if name == "phi3":
            # An answer that outgrows the pre-training's length. Without the cache: transformers 4.57.6 loses its
            # place in the text when it drops the keys there.
            grown = model.generate(
                torch.tensor([RECORDS[1]]), do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0,
                use_cache=False,
            )
            expected["grown"] = grown[0, len(RECORDS[1]) :].tolist()
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")
        if name == "llama":
            save_tokenizer(folder)


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


def fused_adapter():
    """LoRA on projections that are fused, and on one that is not."""
    folder = FOLDER / "fused"
    config = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["qkv_proj", "gate_up_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(9)
    model = get_peft_model(base("phi3"), config)
    model.save_pretrained(folder)
    with torch.no_grad():
        reloaded = PeftModel.from_pretrained(base("phi3"), folder)
        logits = torch.cat([reloaded(torch.tensor([record])).logits[0] for record in RECORDS])
    save_file({"logits": logits.contiguous()}, folder / "expected.safetensors")


def full_gradients(names):
    """Gradients of every weight of a tied model with biases, of one with head norms, and of every family with
    arithmetic of its own, each told by its length and by its product with cos(0), cos(1), …: two numbers that
    no other tensor has."""
    for name in names:
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


GRADIENTS = ("qwen2", "qwen3", "gemma2", "gemma3", "phi3")

if __name__ == "__main__":
    wanted = sys.argv[1:]
    if unknown := set(wanted) - set(FAMILIES):
        sys.exit(f"no such families: {sorted(unknown)}; there are {list(FAMILIES)}")
    for folder in [FOLDER / name for name in wanted] or [FOLDER]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    families(wanted or FAMILIES)
    if not wanted:
        lora_training()
        patterned_adapter()
    if not wanted or "phi3" in wanted:
        fused_adapter()
    full_gradients([name for name in GRADIENTS if not wanted or name in wanted])
    for readme in FOLDER.rglob("README.md"):
        readme.unlink()
    # peft notes where the base lay on the machine that made the fixture.
    for config in FOLDER.rglob("adapter_config.json"):
        written = json.loads(config.read_text())
        written["base_model_name_or_path"] = None
        written["target_modules"].sort()
        config.write_text(json.dumps(written, indent=1) + "\n")
