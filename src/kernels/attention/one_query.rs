//! One query against the keys it sees, which is what every step of decoding comes to: too little for a matrix
//! product, and read straight from where keys and values lie. The order of every sum follows from the number of
//! keys alone, so where they lie and who attends beside changes no bit.

use super::Attention;
use super::cpu::Task;
use crate::kernels::few_rows::inner_products;
use crate::kernels::vector::{exp_and_sum, max, soft_cap, vectorized};

/// Values that are added to an output before it is written back.
const TOGETHER: usize = 4;

impl Attention {
    /// As [`Attention::forward_block`] for a block of one query.
    pub(super) fn one_query(&self, scores: &mut Vec<f32>, task: &Task<'_>) -> (Vec<f32>, Vec<f32>) {
        let Task { span, block, head, q, k, v } = task;
        let (size, heads, key_heads) = (self.shape.size, self.shape.heads, self.shape.key_heads);
        let query = ((span.queries.start + block.queries.start) * heads + head) * size;
        let first = span.keys.start + block.keys.start;
        let row = |key: usize| {
            let at = ((first + key) * key_heads + self.shape.key_head(*head)) * size;
            at..at + size
        };
        scores.resize(block.keys.len(), 0.0);
        inner_products(&q[query..query + size], |key| &k[row(key)], self.scale, scores);
        let mut out = vec![0f32; size];
        let log_sum = vectorized(
            #[inline(always)]
            || {
                if let Some(cap) = self.softcap {
                    soft_cap(scores, cap);
                }
                let largest = max(scores);
                let sum = exp_and_sum(scores, largest);
                let mut key = 0;
                while key + TOGETHER <= scores.len() {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|next| &v[row(key + next)]);
                    let weights = [scores[key], scores[key + 1], scores[key + 2], scores[key + 3]];
                    for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                        let sum = weights[1].mul_add(*b, weights[0].mul_add(*a, *out));
                        *out = weights[3].mul_add(*d, weights[2].mul_add(*c, sum));
                    }
                    key += TOGETHER;
                }
                for (key, weight) in scores.iter().enumerate().skip(key) {
                    for (out, value) in out.iter_mut().zip(&v[row(key)]) {
                        *out = weight.mul_add(*value, *out);
                    }
                }
                let inverse = sum.recip();
                out.iter_mut().for_each(|out| *out *= inverse);
                largest + sum.ln()
            },
        );
        (out, vec![log_sum])
    }
}
