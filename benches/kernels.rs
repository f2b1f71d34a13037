//! Every operation by itself, forward and forward with backward, at the sizes of SmolLM2-135M's layers and
//! 1024 tokens: `cargo bench --bench kernels`, or one of them, `cargo bench --bench kernels -- attention`.

#![expect(clippy::expect_used, reason = "a benchmark that cannot run has nothing to say")]

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tunesmith::kernels::{
    self, Activation, Dropout, Gradients, Nf4, Spans, Weight, attention, embedding, gated, linear,
    linear_cross_entropy, lora_linear, rms_norm, rope,
};
use tunesmith::rng::Rng;

const TOKENS: usize = 1024;
const HIDDEN: usize = 576;
const MLP: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD: usize = 64;
const VOCABULARY: usize = 49_152;
const RANK: usize = 16;

fn values(shape: &[usize], seed: u64) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_vec(Rng::new(seed, "bench", 0).normals(count, 0.5), shape, &Device::Cpu).expect("memory")
}

fn variable(shape: &[usize], seed: u64) -> Tensor {
    Var::from_tensor(&values(shape, seed)).expect("memory").into_inner()
}

/// Measures `forward` alone, and with the gradients of all its variables.
fn both(criterion: &mut Criterion, name: &str, flops: Option<u64>, forward: impl Fn() -> Result<Tensor>) {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(20);
    if let Some(flops) = flops {
        group.throughput(Throughput::Elements(flops));
    }
    group.bench_function("forward", |bencher| bencher.iter(|| forward().expect("the shapes fit")));
    // What a backward pass begins with costs little beside the operation: one sum.
    group.bench_function("forward and backward", |bencher| {
        bencher.iter(|| forward().and_then(|y| y.sum_all()).and_then(|sum| sum.backward()).expect("the shapes fit"));
    });
    group.finish();
}

fn products(criterion: &mut Criterion) {
    let x = variable(&[TOKENS, HIDDEN], 1);
    let weight = values(&[MLP, HIDDEN], 2);
    let flops = Some(2 * (TOKENS * HIDDEN * MLP) as u64);
    both(criterion, "linear, frozen", flops, || linear(&x, &weight, None));
    let trained = variable(&[MLP, HIDDEN], 2);
    both(criterion, "linear, trained", flops, || linear(&x, &trained, None));
    let (a, b) = (variable(&[RANK, HIDDEN], 3), variable(&[MLP, RANK], 4));
    let dense = Weight::from(weight.clone());
    both(criterion, "lora_linear", flops, || lora_linear(&x, &dense, None, &a, &b, 2.0, None));
    let dropout = Dropout { probability: 0.1, key: 7 };
    both(criterion, "lora_linear, dropout", flops, || lora_linear(&x, &dense, None, &a, &b, 2.0, Some(&dropout)));
    let flat = weight.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("f32");
    let quantized = Weight::Nf4(Arc::new(Nf4::quantize(&flat, MLP, HIDDEN).expect("whole blocks")));
    both(criterion, "linear, nf4", flops, || quantized.apply(&x, None));
    both(criterion, "dora, row norms", None, || {
        let squares = kernels::row_squares(&dense)?;
        kernels::row_norms(&dense, &squares, &a, &b, 2.0)
    });
}

fn between_products(criterion: &mut Criterion) {
    let x = variable(&[TOKENS, HIDDEN], 1);
    let scale = values(&[HIDDEN], 2);
    both(criterion, "rms_norm", None, || rms_norm(&x, &scale, 1e-5, 0.0));
    let heads = variable(&[TOKENS, HEADS, HEAD], 3);
    let angles = values(&[TOKENS, HEAD / 2], 4);
    let (cos, sin) = (angles.cos().expect("f32"), angles.sin().expect("f32"));
    both(criterion, "rope", None, || rope(&heads, &cos, &sin));
    let (gate, up) = (variable(&[TOKENS, MLP], 5), variable(&[TOKENS, MLP], 6));
    both(criterion, "gated, silu", None, || gated(&gate, &up, Activation::Silu));
    both(criterion, "gated, gelu", None, || gated(&gate, &up, Activation::GeluTanh));
    let dropout = Dropout { probability: 0.1, key: 7 };
    both(criterion, "dropout", None, || dropout.apply(&x));
    let table = variable(&[VOCABULARY, HIDDEN], 8);
    let ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7919 % VOCABULARY as u32).collect();
    let ids = Tensor::new(ids, &Device::Cpu).expect("memory");
    both(criterion, "embedding", None, || embedding(&table, &ids));
}

fn attentions(criterion: &mut Criterion) {
    let (q, k, v) = (
        variable(&[TOKENS, HEADS, HEAD], 1),
        variable(&[TOKENS, KV_HEADS, HEAD], 2),
        variable(&[TOKENS, KV_HEADS, HEAD], 3),
    );
    for (name, lengths, window) in [
        ("attention, one record of 1024", vec![TOKENS], None),
        ("attention, four records of 256", vec![TOKENS / 4; 4], None),
        ("attention, a window of 128", vec![TOKENS], Some(128)),
    ] {
        let spans = Spans::packed(&lengths);
        both(criterion, name, None, || attention(&q, &k, &v, &spans, 0.125, window, None));
    }
}

fn heads(criterion: &mut Criterion) {
    let hidden = values(&[TOKENS, HIDDEN], 1);
    let weight = values(&[VOCABULARY, HIDDEN], 2);
    let mut group = criterion.benchmark_group("linear_cross_entropy");
    group.sample_size(10);
    for (name, labelled) in [("all labelled", 1), ("one in four labelled", 4)] {
        let labels: Vec<Option<u32>> = (0..TOKENS).map(|i| (i % labelled == 0).then_some(i as u32)).collect();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                linear_cross_entropy(&hidden, &weight, &labels, None, None, Gradients::Hidden).expect("the shapes fit")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, products, between_products, attentions, heads);
criterion_main!(benches);
