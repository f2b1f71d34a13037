"""One measured run of torch + transformers + peft: the work that a `tunesmith bench train --json` describes.

The same shape with random weights, the same records (lengths, learned tokens), the same optimizer, padded
batches with masked prompts as a data collator makes them. Prints a JSON object.

    peer.py WORK.json {f32,bf16}
"""

import json
import math
import resource
import sys
import time

import torch
from peft import AdaptionPromptConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def options(work):
    settings = work["hyperParameters"]
    return lambda name, default, kind=int: kind(float(settings.get(name, default)))


def model_of(work, dtype):
    config = LlamaConfig(**work["config"])
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, torch_dtype=dtype)
    model.config.use_cache = False
    option, method = options(work), work["method"]
    rank = option("loraRank", 16)
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=option("loraAlpha", 2 * rank, float),
        lora_dropout=option("loraDropout", 0, float),
        target_modules=ALL_LINEAR,
    )
    tokens = option("virtualTokens", 20)
    if method == "lora":
        return get_peft_model(model, lora)
    if method == "qlora":
        return get_peft_model(quantized(model, dtype), lora)
    if method == "prefix":
        return get_peft_model(model, PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=tokens))
    if method == "prompt":
        return get_peft_model(model, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=tokens))
    if method == "llama_adapter":
        layers = option("adapterLayers", config.num_hidden_layers - 2)
        length = option("adapterLength", 10)
        return get_peft_model(
            model, AdaptionPromptConfig(task_type=TaskType.CAUSAL_LM, adapter_len=length, adapter_layers=layers)
        )
    if method == "head":
        if config.tie_word_embeddings:
            head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
            head.weight.data.copy_(model.lm_head.weight.data)
            model.lm_head = head
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.lm_head.weight.requires_grad_(True)
        return model
    if method == "full":
        return model
    raise SystemExit(f"the peer has no method {method}")


def quantized(model, dtype):
    """The layers' maps in NF4 with double quantization, as `load_in_4bit` makes them."""
    import bitsandbytes as bnb
    from peft import prepare_model_for_kbit_training

    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if not isinstance(linear, torch.nn.Linear):
                    continue
                four = bnb.nn.Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    compress_statistics=True,
                    quant_type="nf4",
                )
                four.weight = bnb.nn.Params4bit(
                    linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
                )
                setattr(block, name, four.to("cpu"))
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def batch_of(records, vocabulary, generator):
    """Padded to the longest record; prompts and padding are not learned."""
    longest = max(tokens for tokens, _ in records)
    ids = torch.zeros(len(records), longest, dtype=torch.long)
    mask = torch.zeros(len(records), longest, dtype=torch.long)
    labels = torch.full((len(records), longest), -100)
    for row, (tokens, learned) in enumerate(records):
        ids[row, :tokens] = torch.randint(vocabulary, (tokens,), generator=generator)
        mask[row, :tokens] = 1
        # A label stands at the token that is predicted; the first token is never one.
        start = max(tokens - learned, 1)
        labels[row, start:tokens] = ids[row, start:tokens]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def main():
    work = json.load(open(sys.argv[1]))
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]
    torch.set_num_threads(work["threads"])
    model = model_of(work, dtype).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    vocabulary = work["config"]["vocab_size"]
    seconds, speeds, cpu, losses = [], [], 0.0, []
    for step, records in enumerate(work["batches"]):
        batch = batch_of(records, vocabulary, generator)
        began, began_cpu = time.perf_counter(), time.process_time()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        took = time.perf_counter() - began
        if step >= work["warmUpSteps"]:
            cpu += time.process_time() - began_cpu
            seconds.append(took)
            speeds.append(sum(tokens for tokens, _ in records) / took)
            losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses), losses
    print(
        json.dumps(
            {
                "tokensPerSecond": sorted(speeds)[len(speeds) // 2],
                "stepSeconds": seconds,
                "cpuSeconds": cpu,
                "peakBytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "trainedValues": sum(parameter.numel() for parameter in trained),
                "losses": losses,
            }
        )
    )


if __name__ == "__main__":
    main()
