"""Makes tests/golden/fixtures/kernels: values and gradients of every kernel, by PyTorch in float64.

Run by hand, and only when a kernel changes its meaning; the tests read what is committed.
Python 3.11 with torch==2.15.0 transformers==4.57.6 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6:

    python tests/golden/kernels.py                      # all
    python tests/golden/kernels.py geglu rms_norm_offset # these; the others stay as they are
"""

import sys
import tempfile

from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import save_file
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

FOLDER = Path(__file__).parent / "fixtures" / "kernels"
generator = torch.Generator().manual_seed(20)


def normal(*shape, scale=1.0):
    """Values that are exact in float32, so that both sides compute from the same numbers."""
    return (torch.randn(*shape, generator=generator) * scale).double()


def save(name, inputs, function, constants=None):
    """Writes the inputs, y, dy, and d<input> for every input."""
    leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    y = function(**leaves)
    dy = normal(*y.shape)
    (y * dy).sum().backward()
    tensors = {**inputs, "y": y.detach(), "dy": dy, **(constants or {})}
    tensors |= {f"d{key}": leaf.grad for key, leaf in leaves.items()}
    save_file({key: value.float().contiguous() for key, value in tensors.items()}, FOLDER / f"{name}.safetensors")


def linear():
    save("linear", {"x": normal(9, 24), "weight": normal(20, 24), "bias": normal(20)}, F.linear)


def lora_linear():
    """peft's own layer around a frozen linear: r 4, alpha 6."""
    weight, bias = normal(20, 24), normal(20)
    base = torch.nn.Linear(24, 20).double()
    base.load_state_dict({"weight": weight, "bias": bias})
    layer = LoraLinear(base, "default", config=LoraConfig(r=4, lora_alpha=6), r=4, lora_alpha=6).double()

    def run(x, a, b):
        parameters = {"lora_A.default.weight": a, "lora_B.default.weight": b}
        return torch.func.functional_call(layer, parameters, (x,))

    inputs = {"x": normal(9, 24), "a": normal(4, 24), "b": normal(20, 4)}
    save("lora_linear", inputs, run, {"weight": weight, "bias": bias})


def rms_norm():
    save("rms_norm", {"x": normal(21, 24), "weight": normal(24)},
         lambda x, weight: F.rms_norm(x, (24,), weight, eps=1e-5))


def rms_norm_offset():
    """Gemma's own layer; it rounds to f32 inside, so its formula is written out and held to it."""
    layer = Gemma2RMSNorm(24, eps=1e-5)

    def run(x, weight):
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (1 + weight)
        theirs = torch.func.functional_call(layer, {"weight": weight.float()}, (x.float(),))
        assert torch.allclose(y.float(), theirs, rtol=1e-6, atol=1e-6)
        return y

    save("rms_norm_offset", {"x": normal(21, 24), "weight": normal(24)}, run)


def rope():
    angles = torch.arange(9).double()[:, None] * (10000.0 ** (-torch.arange(4).double() / 4))[None]
    cos, sin = angles.cos().float().double(), angles.sin().float().double()

    def run(x):
        twice = lambda half: torch.cat([half, half], dim=-1)[None]
        turned, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], twice(cos), twice(sin))
        return turned[0].transpose(0, 1)

    save("rope", {"x": normal(9, 3, 8)}, run, {"cos": cos, "sin": sin})


def swiglu():
    save("swiglu", {"gate": normal(9, 24, scale=3.0), "up": normal(9, 24)}, lambda gate, up: F.silu(gate) * up)


def geglu():
    save("geglu", {"gate": normal(9, 24, scale=3.0), "up": normal(9, 24)},
         lambda gate, up: F.gelu(gate, approximate="tanh") * up)


def attention(name, queries, keys, window, softcap=None):
    """Records by scaled_dot_product_attention one at a time, with the mask spelt out; it knows no cap, so
    that case is spelt out whole."""
    heads, key_heads, size = 4, 2, 8

    def run(q, k, v):
        outputs, query, key = [], 0, 0
        for count, held in zip(queries, keys):
            row = torch.arange(count)[:, None] + held - count
            column = torch.arange(held)[None]
            mask = column <= row
            if window:
                mask &= column > row - window
            part = [t.transpose(0, 1)[None] for t in (q[query:query + count], k[key:key + held], v[key:key + held])]
            if softcap:
                part[1:] = [t.repeat_interleave(heads // key_heads, dim=1) for t in part[1:]]
                scores = softcap * torch.tanh(0.35 * part[0] @ part[1].transpose(2, 3) / softcap)
                out = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ part[2]
            else:
                out = F.scaled_dot_product_attention(*part, attn_mask=mask, scale=0.35, enable_gqa=True)
            outputs.append(out[0].transpose(0, 1))
            query, key = query + count, key + held
        return torch.cat(outputs)

    inputs = {
        "q": normal(sum(queries), heads, size, scale=2.0),
        "k": normal(sum(keys), key_heads, size, scale=2.0),
        "v": normal(sum(keys), key_heads, size),
    }
    save(name, inputs, run)


def embedding():
    ids = torch.tensor([3, 0, 3, 11, 5, 3])
    save("embedding", {"table": normal(12, 10)}, lambda table: F.embedding(ids, table), {"ids": ids})


def linear_cross_entropy(name, softcap=None):
    """The output is the loss of every row; unlabelled rows are torch's ignore_index."""
    labels = torch.tensor([4, -100, 49, 0, -100, 17, 17, 3])
    scales = torch.tensor([1.0, 1.0, 0.5, 2.0, 1.0, 0.25, -1.0, 1.0]).double()
    hidden, weight = normal(8, 24).requires_grad_(), normal(50, 24, scale=0.5).requires_grad_()
    logits = hidden @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(logits, labels, reduction="none")
    (losses * scales).sum().backward()
    tensors = {"hidden": hidden.detach(), "weight": weight.detach(), "labels": labels, "scales": scales,
               "losses": losses.detach(), "dhidden": hidden.grad, "dweight": weight.grad}
    save_file({key: value.float().contiguous() for key, value in tensors.items()},
              FOLDER / f"{name}.safetensors")


def linear_bf16():
    """torch's own product of bf16 operands: it rounds the weight, and each sum once, to 8 bits."""
    x, weight, dy = normal(29, 150), normal(70, 150), normal(29, 70)
    x, dy = x.bfloat16().requires_grad_(), dy.bfloat16()
    y = F.linear(x, weight.bfloat16())
    y.backward(dy)
    tensors = {"x": x.detach(), "weight": weight, "dy": dy, "y": y.detach(), "dx": x.grad}
    save_file({key: value.float().contiguous() for key, value in tensors.items()}, FOLDER / "linear_bf16.safetensors")


CASES = {
    "linear": linear,
    "lora_linear": lora_linear,
    "rms_norm": rms_norm,
    "rope": rope,
    "swiglu": swiglu,
    "attention": lambda: attention("attention", [3, 66], [3, 66], None),
    "attention_window": lambda: attention("attention_window", [5, 66], [5, 66], 20),
    "attention_cache": lambda: attention("attention_cache", [1, 4], [30, 9], None),
    "embedding": embedding,
    "linear_cross_entropy": lambda: linear_cross_entropy("linear_cross_entropy"),
    # The cases above draw from one stream in their order: new ones go below and change none of them.
    "rms_norm_offset": rms_norm_offset,
    "geglu": geglu,
    "attention_softcap": lambda: attention("attention_softcap", [3, 40], [3, 40], 12, softcap=1.5),
    "linear_cross_entropy_softcap": lambda: linear_cross_entropy("linear_cross_entropy_softcap", softcap=3.0),
    "linear_bf16": linear_bf16,
}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[1:] or list(CASES)
    for name, make in CASES.items():
        # All are run, whatever is wanted, so that each draws the same numbers every time.
        folder, FOLDER = FOLDER, FOLDER if name in wanted else Path(tempfile.mkdtemp())
        make()
        FOLDER = folder
