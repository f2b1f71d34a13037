//! One promise of the whole folder, tested: the number of threads changes no bit.

use candle_core::{Device, Tensor, Var};

use super::gradcheck::{flat, operand};
use super::*;

/// Results by name.
type Everything = Vec<(&'static str, Vec<f32>)>;

/// Values and gradients of every operation, on operands large enough to be shared among threads.
fn everything() -> Everything {
    let var = |shape: &[usize], seed| Var::from_tensor(&operand(shape, seed)).unwrap();
    let (tokens, width, wide, heads, size) = (130, 96, 200, 6, 16);
    let x = var(&[tokens, width], 1);
    let (weight, bias, gate) = (var(&[wide, width], 2), var(&[wide], 3), var(&[wide, width], 4));
    let (a, b, norm) = (var(&[8, width], 5), var(&[wide, 8], 6), var(&[width], 7));
    let (q, k, v) = (var(&[tokens, heads, size], 8), var(&[tokens, 2, size], 9), var(&[tokens, 2, size], 10));
    let angles = operand(&[tokens, size / 2], 11);
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * i % wide as u32).collect();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap();

    let normed = rms_norm(&x, &norm, 1e-5, 0.0).unwrap();
    let dropout = Dropout { probability: 0.1, key: 5 };
    let tuned = lora_linear(&normed, &operand(&[wide, width], 12).into(), None, &a, &b, 2.0, Some(&dropout)).unwrap();
    let gated = gated(&linear(&normed, &weight, Some(&bias)).unwrap(), &tuned, Activation::GeluTanh).unwrap();
    let turned = rope(&q, &angles.cos().unwrap(), &angles.sin().unwrap()).unwrap();
    let attended = attention(&turned, &k, &v, &Spans::packed(&[100, 30]), 0.25, None, Some(2.0)).unwrap();
    let embedded = embedding(&gate, &ids).unwrap();
    let sum = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap();
    let loss = (sum(&gated) + sum(&attended)).unwrap();
    let packed = Weight::packed(&operand(&[wide, width], 13)).unwrap();
    let rounded = lora_linear(&normed, &packed, Some(&bias.detach()), &a, &b, 2.0, None).unwrap();
    let loss = ((loss + sum(&embedded)).unwrap() + sum(&rounded)).unwrap();
    let grads = loss.backward().unwrap();
    let labels: Vec<Option<u32>> = (0..tokens as u32).map(|i| (i % 5 != 0).then_some(i % wide as u32)).collect();
    let head =
        linear_cross_entropy(&x, weight.as_tensor(), &labels, None, Some(5.0), Gradients::HiddenAndWeight).unwrap();

    let mut all = vec![
        ("gated", flat(&gated)),
        ("attended", flat(&attended)),
        ("rounded", flat(&rounded)),
        ("losses", head.token_losses),
        ("head, hidden", flat(&head.grad_hidden)),
        ("head, weight", flat(&head.grad_weight.unwrap())),
    ];
    let vars = [&x, &weight, &bias, &gate, &a, &b, &norm, &q, &k, &v];
    let names = ["x", "weight", "bias", "table", "a", "b", "norm", "q", "k", "v"];
    all.extend(names.into_iter().zip(vars).map(|(name, var)| (name, flat(grads.get(var.as_tensor()).unwrap()))));
    all
}

#[test]
fn every_operation_gives_the_same_bits_at_any_number_of_threads() {
    let plain = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(everything);
    let with_bf16_products = |threads| emulated(threads, everything);
    for on in [&plain as &dyn Fn(usize) -> Everything, &with_bf16_products] {
        let one = on(1);
        for threads in [2, 3, 8] {
            for ((name, one), (_, many)) in one.iter().zip(on(threads)) {
                assert!(one.iter().zip(&many).all(|(a, b)| a.to_bits() == b.to_bits()), "{name} at {threads} threads");
            }
        }
    }
}
