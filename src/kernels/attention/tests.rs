//! Promises of attention: the definition, its gradients, and that records never see each other.

use candle_core::{Device, Tensor, Var};

use super::*;
use crate::kernels::gradcheck::{self, assert_close, flat, operand};

/// The definition, one score at a time, in f64.
fn naive([q, k, v]: [&Tensor; 3], spans: &Spans, scale: f64, window: Option<usize>, softcap: Option<f64>) -> Tensor {
    let ((_, heads, size), key_heads) = (q.dims3().unwrap(), k.dim(1).unwrap());
    let (qs, ks, vs) = (flat(q), flat(k), flat(v));
    let mut out = vec![0f32; qs.len()];
    for span in spans.iter() {
        for (row, query) in span.queries.clone().enumerate() {
            for head in 0..heads {
                let q = &qs[(query * heads + head) * size..][..size];
                let key = |row: usize| ((span.keys.start + row) * key_heads + head * key_heads / heads) * size;
                let seen = span.visible(row, window);
                let weights: Vec<f64> = seen
                    .clone()
                    .map(|row| q.iter().zip(&ks[key(row)..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>())
                    .map(|score| softcap.map_or(score * scale, |cap| cap * (score * scale / cap).tanh()).exp())
                    .collect();
                let total: f64 = weights.iter().sum();
                for i in 0..size {
                    let sum: f64 =
                        seen.clone().zip(&weights).map(|(row, weight)| weight * f64::from(vs[key(row) + i])).sum();
                    out[(query * heads + head) * size + i] = (sum / total) as f32;
                }
            }
        }
    }
    Tensor::from_vec(out, q.shape(), &Device::Cpu).unwrap()
}

fn operands(queries: usize, keys: usize, heads: usize, key_heads: usize, size: usize) -> [Tensor; 3] {
    [operand(&[queries, heads, size], 1), operand(&[keys, key_heads, size], 2), operand(&[keys, key_heads, size], 3)]
}

#[test]
fn it_equals_the_definition_for_groups_windows_caches_and_several_blocks() {
    let long = Spans::packed(&[3, 150, 1, 70]);
    let cached = Spans::with_cache(&[1, 2, 5], &[90, 2, 9]).unwrap();
    for (spans, heads, key_heads) in [(&long, 4, 2), (&long, 3, 3), (&cached, 4, 1)] {
        for (window, cap) in [(None, None), (Some(1), None), (Some(7), Some(0.8)), (Some(100), None), (None, Some(2.0))]
        {
            let [q, k, v] = operands(spans.queries(), spans.keys(), heads, key_heads, 8);
            let got = attention(&q, &k, &v, spans, 1.3, window, cap).unwrap();
            assert_close(&got, &naive([&q, &k, &v], spans, 1.3, window, cap), 1e-5);
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for (queries, keys) in [([4, 2], [4, 2]), ([2, 3], [5, 4])] {
        let spans = Spans::with_cache(&queries, &keys).unwrap();
        for (window, cap) in [(None, None), (Some(2), None), (None, Some(0.5)), (Some(2), Some(0.5))] {
            let operands = operands(spans.queries(), spans.keys(), 4, 2, 3);
            gradcheck::check(&operands, |t| attention(&t[0], &t[1], &t[2], &spans, 0.7, window, cap));
        }
    }
}

#[test]
fn gradients_over_several_blocks_equal_finite_differences() {
    let spans = Spans::packed(&[70]);
    gradcheck::check(&operands(70, 70, 1, 1, 2), |t| attention(&t[0], &t[1], &t[2], &spans, 0.9, None, Some(0.5)));
    gradcheck::check(&operands(70, 70, 1, 1, 2), |t| attention(&t[0], &t[1], &t[2], &spans, 0.9, Some(9), None));
}

#[test]
fn packed_records_equal_records_alone_in_value_and_gradient() {
    let lengths = [5, 81, 1, 20];
    let total = lengths.iter().sum();
    let run = |q: &Tensor, k: &Tensor, v: &Tensor, lengths: &[usize]| {
        let [q, k, v] = [q, k, v].map(|t| Var::from_tensor(&t.contiguous().unwrap()).unwrap());
        let out = attention(&q, &k, &v, &Spans::packed(lengths), 0.5, Some(30), Some(0.7)).unwrap();
        let grads = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let grads = [&q, &k, &v].map(|var| flat(grads.get(var.as_tensor()).unwrap()));
        (flat(&out), grads)
    };
    let [q, k, v] = operands(total, total, 4, 2, 8);
    let (packed, packed_grads) = run(&q, &k, &v, &lengths);
    let (mut alone, mut alone_grads) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    let mut start = 0;
    for length in lengths {
        let [q, k, v] = [&q, &k, &v].map(|t| t.narrow(0, start, length).unwrap());
        let (out, grads) = run(&q, &k, &v, &[length]);
        alone.extend(out);
        alone_grads.iter_mut().zip(grads).for_each(|(all, one)| all.extend(one));
        start += length;
    }
    assert_eq!(packed, alone);
    assert_eq!(packed_grads, alone_grads);
}

#[test]
fn a_frozen_operand_gets_no_gradient() {
    let [q, k, v] = operands(6, 6, 2, 1, 4);
    let q = Var::from_tensor(&q).unwrap();
    let out = attention(&q, &k, &v, &Spans::packed(&[6]), 1.0, None, None).unwrap();
    let grads = out.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&q).is_some() && grads.get(&k).is_none() && grads.get(&v).is_none());
}

#[test]
fn a_record_without_tokens_is_passed_over() {
    let [q, k, v] = operands(5, 5, 2, 1, 4);
    let with = attention(&q, &k, &v, &Spans::packed(&[0, 2, 0, 3, 0]), 1.0, None, None).unwrap();
    let without = attention(&q, &k, &v, &Spans::packed(&[2, 3]), 1.0, None, None).unwrap();
    assert_eq!(flat(&with), flat(&without));
}

#[test]
fn scores_that_are_not_a_number_show_in_the_output() {
    let [q, k, v] = operands(3, 3, 1, 1, 2);
    let q = (q * f64::NAN).unwrap();
    assert!(flat(&attention(&q, &k, &v, &Spans::packed(&[3]), 1.0, None, None).unwrap()).iter().all(|x| x.is_nan()));
}

#[test]
fn spans_heads_and_windows_that_do_not_fit_are_refused_in_words() {
    let [q, k, v] = operands(6, 6, 2, 1, 4);
    let message = |spans: &[usize], window| {
        attention(&q, &k, &v, &Spans::packed(spans), 1.0, window, None).unwrap_err().to_string()
    };
    assert!(message(&[5], None).contains("the spans cover 5 queries"));
    assert!(message(&[6], Some(0)).contains("hides every key"));
    let three = operand(&[6, 3, 4], 1);
    let two = operand(&[6, 2, 4], 1);
    assert!(attention(&three, &two, &two, &Spans::packed(&[6]), 1.0, None, None).is_err());
    let capped = attention(&q, &k, &v, &Spans::packed(&[6]), 1.0, None, Some(0.0)).unwrap_err().to_string();
    assert!(capped.contains("a soft cap must be positive"), "{capped}");
}
