"""Makes tests/golden/fixtures/methods: for every tuning method a training run by the library that defines it.

A case holds the artifact of the start (before/), the gradients of the first step under the artifact's tensor names
(gradients.safetensors), the losses, the texts and a greedy answer (expected.json), the artifact after three steps of
AdamW (after/), and the logits that the library computes from that artifact, read back (after.safetensors).

Run by hand, and only when a method is added or a case changes; the tests read what is committed. Python 3.11 with
torch==2.15.0 transformers==4.57.6 peft==0.21.2 adapters==1.3.0 bitsandbytes==0.50.2 safetensors==0.8.0:

    python tests/golden/methods.py
    python tests/golden/methods.py --seed 7 --folder FOLDER   the same cases from freshly drawn checkpoints and texts,
                                                              in FOLDER/models and FOLDER/methods
"""

import argparse
import json
import logging
import random
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import adapters
import torch
from adapters import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import (
    AdaptionPromptConfig,
    LNTuningConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import models

# It warns, for the layers that it makes on loading an adapter, that none is active yet.
logging.getLogger("adapters").setLevel(logging.ERROR)

ADAMW = dict(learning_rate=1e-2, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# The name under which the `adapters` library keeps an adapter is part of every tensor's name.
ADAPTER = "tunesmith"


# What a case, and the check of our own artifacts, read.


def checkpoint(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def nf4(weight):
    """The weight after NF4 with double quantisation. Quantised as one row: where the processor has AVX-512,
    bitsandbytes 0.50.2 looks up the wrong scale if a row is not a whole number of blocks."""
    row = weight.detach().reshape(1, -1)
    codes, state = quantize_4bit(row, blocksize=64, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(codes, state).reshape(weight.shape)


def quantise(model):
    """Puts every projection through NF4 and says what it has become, by its name in the checkpoint."""
    weights = {name: p for name, p in model.named_parameters() if name.split(".")[-2] in PROJECTIONS}
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(nf4(weight))
    return {name: weight.detach().clone() for name, weight in weights.items()}


def load(case, base, artifact):
    """The model that the library makes of an artifact, over the checkpoint in `base`."""
    if case == "full":
        return checkpoint(artifact)
    model = checkpoint(base)
    if case == "qlora":
        quantise(model)
    if case.startswith("adapter_"):
        adapters.init(model)
        model.load_adapter(str(artifact), set_active=True, use_safetensors=True)
        return model.eval()
    return PeftModel.from_pretrained(model, artifact).eval()


def logits_of(model, records):
    """One row for every real token; virtual tokens in front have rows of their own, which are left out."""
    with torch.no_grad():
        rows = [model(torch.tensor([record])).logits[0, -len(record) :] for record in records]
    return torch.cat(rows).contiguous()


def greedy(model, record, count=16):
    """Without a cache for the `adapters` library: with transformers 4.57 its attention layers never see the cache,
    so a cached answer is computed from the last token alone."""
    tokens = torch.tensor([record])
    answer = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),  # or a token 0 in the text would count as padding
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=not hasattr(model, "adapters_config"),
    )
    return answer[0, len(record) :].tolist()


# How a case is made.


@dataclass
class Study:
    """Where the cases go, and the checkpoints and texts that they start from."""

    models: Path
    methods: Path
    seed: int
    records: list
    batch: list

    def start(self, case, base):
        """The base of a case; random draws from here on belong to this case alone."""
        torch.manual_seed(zlib.crc32(f"{self.seed} {case}".encode()))
        (self.methods / case).mkdir(parents=True)
        return checkpoint(self.models / base)

    def train(self, case, base, model, trained, save, batch=None, virtual=0):
        """Three steps over the parameters of `trained`, named as in the artifact that `save` writes into a folder.
        `virtual` is the number of rows that the logits have in front of those of the tokens."""
        folder, batch = self.methods / case, batch or self.batch
        save(folder / "before")
        losses, gradients = steps(model, trained, batch, virtual)
        save_file(gradients, folder / "gradients.safetensors")
        save(folder / "after")
        self.finish(case, base, model, batch, losses)

    def finish(self, case, base, model, batch, losses):
        """What the artifact gives once it is read back: the same as the model that was trained."""
        folder = self.methods / case
        loaded = load(case, self.models / base, folder / "after")
        logits = logits_of(loaded, self.records)
        assert (logits - logits_of(model, self.records)).abs().max() <= 1e-6
        save_file({"logits": logits}, folder / "after.safetensors")
        answer = greedy(loaded, self.records[0])
        text = list(self.records[0])
        for _ in answer:
            text.append(logits_of(loaded, [text])[-1].argmax().item())
        assert text[-len(answer) :] == answer, "generation and logits differ"
        expected = dict(
            base=base, batch=batch, adamw=ADAMW, losses=losses, greedy=answer, records=self.records
        )
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")

    def train_peft(self, case, base, model, **options):
        """A method whose artifact holds the trained parameters themselves."""
        trained = {in_file(name): p for name, p in model.named_parameters() if p.requires_grad}
        self.train(case, base, model, trained, lambda folder: save_peft(model, folder), **options)
        saved = load_file(self.methods / case / "before" / "adapter_model.safetensors")
        assert {name: p.shape for name, p in trained.items()} == {name: p.shape for name, p in saved.items()}


def steps(model, trained, batch, virtual=0):
    """Three steps of AdamW: the loss before each and after the last, and the gradients of the first."""
    assert {id(p) for p in trained.values()} == {id(p) for p in model.parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(),
        lr=ADAMW["learning_rate"],
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        eps=ADAMW["epsilon"],
        weight_decay=ADAMW["weight_decay"],
    )
    assert abs(loss_of(model, batch, virtual).item() - own_loss(model, batch)) < 1e-5
    losses, gradients = [], None
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(model, batch, virtual)
        loss.backward()
        losses.append(loss.item())
        gradients = gradients or {name: p.grad.clone().contiguous() for name, p in trained.items()}
        optimizer.step()
    losses.append(loss_of(model, batch, virtual).item())
    small = [name for name, gradient in gradients.items() if gradient.abs().max() < 1e-4]
    assert not small, f"gradients too small to compare: {small}"
    return losses, gradients


def loss_of(model, batch, virtual):
    """Mean over all labelled tokens of all records; a record never sees another. A record's first token is never
    labelled: without a virtual row in front nothing predicts it."""
    total, count = 0.0, 0
    for tokens, learn in batch:
        logits = model(torch.tensor([tokens])).logits[0].double()
        assert len(logits) == len(tokens) + virtual
        assert not learn[0]
        targets = [i for i, learned in enumerate(learn) if learned]
        rows = logits[[i + virtual - 1 for i in targets]]
        labels = torch.tensor([tokens[i] for i in targets])
        total = total + torch.nn.functional.cross_entropy(rows, labels, reduction="sum")
        count += len(targets)
    return total / count


def own_loss(model, batch):
    """The same, by the loss that the library itself computes from labels."""
    total, count = 0.0, 0
    with torch.no_grad():
        for tokens, learn in batch:
            labels = torch.tensor([[token if learned else -100 for token, learned in zip(tokens, learn)]])
            targets = sum(learn)
            total += model(torch.tensor([tokens]), labels=labels).loss.item() * targets
            count += targets
    return total / count


def in_file(name):
    """The name that peft gives a parameter of the adapter `default` in the artifact."""
    if name.startswith("prompt_encoder."):
        return "prompt_embeddings"
    return name.removesuffix(".default.weight") if "magnitude" in name else name.replace(".default", "")


def save_peft(model, folder):
    """Without the card, without the base's path on the machine that made the fixture, and without the base's own
    embedding and head, which peft adds where the head is the target, and does not need for loading."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=1) + "\n")


def draw(parameter, mean, deviation):
    with torch.no_grad():
        parameter.normal_(mean, deviation)


# The cases.


def dora(study):
    """Magnitudes that are not the norms that peft starts them from."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=PROJECTIONS,
        use_dora=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(study.start("dora", "qwen2"), config)
    for name, p in model.named_parameters():
        if "magnitude" in name:
            with torch.no_grad():
                p.mul_(1 + 0.2 * torch.randn(p.shape))
    study.train_peft("dora", "qwen2", model)


def prefix(study):
    config = PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    model = get_peft_model(study.start("prefix", "llama"), config)
    draw(model.prompt_encoder["default"].embedding.weight, 0, 0.5)
    study.train_peft("prefix", "llama", model)


def prefix_projection(study):
    """The artifact holds what the encoder gives; the encoder itself is what trains, and lies next to it."""
    config = PrefixTuningConfig(
        num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=24, task_type="CAUSAL_LM"
    )
    model = get_peft_model(study.start("prefix_projection", "llama"), config)
    encoder = model.prompt_encoder["default"]

    def save(folder):
        save_peft(model, folder)
        save_file(encoder.state_dict(), folder / "encoder.safetensors")

    trained = dict(encoder.named_parameters())
    study.train("prefix_projection", "llama", model, trained, save)


def prompt(study):
    config = PromptTuningConfig(num_virtual_tokens=6, prompt_tuning_init="RANDOM", task_type="CAUSAL_LM")
    model = get_peft_model(study.start("prompt", "llama"), config)
    draw(model.prompt_encoder["default"].embedding.weight, 0, 0.5)
    study.train_peft("prompt", "llama", model, virtual=6)


def llama_adapter(study):
    adaption_prompt(study, "llama_adapter", "llama", layers=2)


def llama_adapter_top(study):
    """In the last layer only, and in a model with an attention window, which the prompts lie outside of."""
    adaption_prompt(study, "llama_adapter_top", "mistral", layers=1)


def adaption_prompt(study, case, base, layers):
    config = AdaptionPromptConfig(adapter_len=4, adapter_layers=layers, task_type="CAUSAL_LM")
    model = get_peft_model(study.start(case, base), config)
    for name, p in model.named_parameters():
        if name.endswith("adaption_gate"):
            draw(p, 0.5, 0.2)
    study.train_peft(case, base, model)


def adapter_houlsby(study):
    bottleneck(study, "adapter_houlsby", DoubleSeqBnConfig(reduction_factor=8))


def adapter_pfeiffer(study):
    bottleneck(study, "adapter_pfeiffer", SeqBnConfig(reduction_factor=16))


def adapter_parallel(study):
    bottleneck(study, "adapter_parallel", ParBnConfig(reduction_factor=2))


def adapter_gelu(study):
    bottleneck(study, "adapter_gelu", SeqBnConfig(reduction_factor=4, non_linearity="gelu"))


def bottleneck(study, case, config):
    model = study.start(case, "llama")
    adapters.init(model)
    model.add_adapter(ADAPTER, config)
    model.train_adapter(ADAPTER)
    model.eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for p in trained.values():
        draw(p, 0, 0.1)

    def save(folder):
        model.save_adapter(str(folder), ADAPTER, use_safetensors=True)
        # The frozen output head comes along, and is not needed for loading.
        for name in ("head_config.json", "model_head.safetensors"):
            (folder / name).unlink(missing_ok=True)
        path = folder / "adapter_config.json"
        written = json.loads(path.read_text()) | {"model_name": None}
        path.write_text(json.dumps(written, indent=1) + "\n")

    study.train(case, "llama", model, trained, save)


def head(study):
    output_head(study, "head", "llama")


def head_tied(study):
    """The base's output head is its embedding; only the head is tuned. peft gives the target a copy of the layer and
    leaves the layer itself tied, so loading needs no care: the tuned head answers and the embedding stays. Only who
    merges the head into the base must untie first (a copy of the embedding as lm_head.weight, and
    tie_word_embeddings false), for transformers would tie again on loading and drop the tuned head."""
    output_head(study, "head_tied", "qwen2")


def output_head(study, case, base):
    """peft has no method for the head alone, but its layer-norm tuning replaces any layer that it is pointed at."""
    config = LNTuningConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(study.start(case, base), config)
    embedding = model.get_input_embeddings().weight.clone()
    study.train_peft(case, base, model)
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    loaded = load(case, study.models / base, study.methods / case / "after")
    assert torch.equal(loaded.get_input_embeddings().weight, embedding)


def qlora(study):
    """LoRA over projections that have been through NF4; their values lie next to it, to tell where a difference is."""
    model = study.start("qlora", "llama")
    save_file(quantise(model), study.methods / "qlora" / "base.safetensors")
    study.train_peft("qlora", "llama", get_peft_model(model, lora_config()))


def lora_config():
    return LoraConfig(
        r=4, lora_alpha=8, target_modules=PROJECTIONS, init_lora_weights=False, task_type="CAUSAL_LM"
    )


def full(study):
    """All weights of a tied model. It starts from the base itself, whose gradients lie with the base."""
    model = study.start("full", "qwen2")
    losses, _ = steps(model, dict(model.named_parameters()), study.batch)
    artifact = study.methods / "full" / "after"
    model.save_pretrained(artifact)
    (artifact / "generation_config.json").unlink()
    study.finish("full", "qwen2", model, study.batch, losses)


def lora_continued(study):
    """From the adapter of an earlier run, with a fresh optimizer."""
    base = study.start("lora_continued", "llama")
    model = PeftModel.from_pretrained(base, study.models / "lora" / "after", is_trainable=True).eval()
    study.train_peft("lora_continued", "llama", model)


CASES = [
    dora,
    prefix,
    prefix_projection,
    prompt,
    llama_adapter,
    llama_adapter_top,
    adapter_houlsby,
    adapter_pfeiffer,
    adapter_parallel,
    adapter_gelu,
    head,
    head_tied,
    qlora,
    full,
    lora_continued,
]


def committed():
    """The checkpoints of models.py and its texts."""
    fixtures = Path(__file__).parent / "fixtures"
    shutil.rmtree(fixtures / "methods", ignore_errors=True)
    return Study(fixtures / "models", fixtures / "methods", 0, models.RECORDS, models.batch())


def drawn(seed, folder):
    """Fresh checkpoints of the same shapes, a fresh LoRA adapter to go on from, and fresh texts."""
    chance = random.Random(seed)
    texts = [[chance.randrange(models.VOCABULARY - 3) for _ in range(chance.randint(6, 14))] for _ in range(5)]
    batch = [(text, [i >= len(text) // 2 for i in range(len(text))]) for text in texts[2:]]
    study = Study(folder / "models", folder / "methods", seed, texts[:2], batch)
    for name in ("llama", "mistral", "qwen2"):
        cls, config, dtype, shards = models.FAMILIES[name]
        model = cls(config)
        models.randomize(model, chance.randrange(2**32))
        model.to(dtype).save_pretrained(study.models / name, max_shard_size=shards)
        (study.models / name / "generation_config.json").unlink()
    torch.manual_seed(seed)
    save_peft(get_peft_model(checkpoint(study.models / "llama"), lora_config()), study.models / "lora" / "after")
    return study


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if (arguments.seed is None) != (arguments.folder is None):
        parser.error("--seed and --folder go together")
    torch.set_num_threads(1)  # the last bits depend on it
    study = committed() if arguments.folder is None else drawn(arguments.seed, arguments.folder)
    for case in CASES:
        case(study)
