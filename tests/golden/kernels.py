"""Makes tests/golden/fixtures/kernels: values and gradients of every kernel, by PyTorch in float64.

Run by hand, and only when a kernel changes its meaning; the tests read what is committed.
Python 3.11 with torch==2.15.0 transformers==4.57.6 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6:

    python tests/golden/kernels.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import save_file
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


def attention(name, queries, keys, window):
    """Records by scaled_dot_product_attention one at a time, with the mask spelt out."""
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


def linear_cross_entropy():
    """The output is the loss of every row; unlabelled rows are torch's ignore_index."""
    labels = torch.tensor([4, -100, 49, 0, -100, 17, 17, 3])
    scales = torch.tensor([1.0, 1.0, 0.5, 2.0, 1.0, 0.25, -1.0, 1.0]).double()
    hidden, weight = normal(8, 24).requires_grad_(), normal(50, 24, scale=0.5).requires_grad_()
    losses = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    (losses * scales).sum().backward()
    tensors = {"hidden": hidden.detach(), "weight": weight.detach(), "labels": labels, "scales": scales,
               "losses": losses.detach(), "dhidden": hidden.grad, "dweight": weight.grad}
    save_file({key: value.float().contiguous() for key, value in tensors.items()},
              FOLDER / "linear_cross_entropy.safetensors")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    linear()
    lora_linear()
    rms_norm()
    rope()
    swiglu()
    attention("attention", [3, 66], [3, 66], None)
    attention("attention_window", [5, 66], [5, 66], 20)
    attention("attention_cache", [1, 4], [30, 9], None)
    embedding()
    linear_cross_entropy()
