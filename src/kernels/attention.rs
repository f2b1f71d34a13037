//! Causal attention over a flat stream of records: softmax(scale · q kᵀ) v inside each record, with
//! grouped key heads, an optional sliding window and an optional soft cap of the scores. Work goes by blocks of queries, so the largest
//! thing held is one block's scores; the backward pass computes them again from the log-sum-exp of
//! each row, which is all that is kept (FlashAttention's scheme, arXiv 2205.14135).

mod cpu;
mod one_query;

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::operand::{Values, values};
use super::spans::Spans;

const NAME: &str = "attention";

/// `q` `[N, Hq, d]`, `k` and `v` `[M, Hkv, d]` with Hkv dividing Hq: `[N, Hq, d]`. Query head h reads
/// key head h / (Hq / Hkv). With a `window` of w a query sees its own key and the w - 1 before it. With a
/// `softcap` of c every scaled score s becomes c · tanh(s / c) before the softmax (Gemma 2).
///
/// # Errors
/// When the shapes do not fit each other or the spans, the cap is not positive, or an operand is not f32
/// on the CPU.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &Spans,
    scale: f64,
    window: Option<usize>,
    softcap: Option<f64>,
) -> Result<Tensor> {
    let ((queries, heads, size), (keys, key_heads, key_size)) = (q.dims3()?, k.dims3()?);
    if k.dims() != v.dims() || size != key_size || size == 0 {
        bail!("{NAME}: q {:?}, k {:?} and v {:?} do not fit", q.shape(), k.shape(), v.shape());
    }
    if key_heads == 0 || heads == 0 || heads % key_heads != 0 {
        bail!("{NAME}: {heads} query heads cannot share {key_heads} key heads evenly");
    }
    if (queries, keys) != (spans.queries(), spans.keys()) {
        let (expected, held) = (spans.queries(), spans.keys());
        bail!("{NAME}: the spans cover {expected} queries and {held} keys, there are {queries} and {keys}");
    }
    if window == Some(0) {
        bail!("{NAME}: a window of 0 hides every key");
    }
    if softcap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
        bail!("{NAME}: a soft cap must be positive, not {softcap:?}");
    }
    let softcap = softcap.map(|cap| cap as f32);
    let shape = Heads { heads, key_heads, size };
    let op = Attention {
        spans: spans.clone(),
        shape,
        scale: scale as f32,
        window,
        softcap,
        log_sums: OnceLock::new(),
        #[cfg(feature = "cuda")]
        on_device: OnceLock::new(),
    };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// How a row of q, and one of k or v, is divided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) size: usize,
}

impl Heads {
    /// The key head that a query head reads.
    fn key_head(&self, head: usize) -> usize {
        head / (self.heads / self.key_heads)
    }
}

pub(super) struct Attention {
    pub(super) spans: Spans,
    pub(super) shape: Heads,
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
    pub(super) softcap: Option<f32>,
    /// `[N, Hq]`: set by the forward pass, read by the backward pass.
    pub(super) log_sums: OnceLock<Vec<f32>>,
    /// As `log_sums`, on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) on_device: OnceLock<super::cuda::Memory>,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, log_sums) = self.forward(values(NAME, q, ql)?, values(NAME, k, kl)?, values(NAME, v, vl)?);
        // Only ever set once: candle runs the forward pass of an operation when it is made.
        let _ = self.log_sums.set(log_sums);
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        ql: &Layout,
        k: &candle_core::CudaStorage,
        kl: &Layout,
        v: &candle_core::CudaStorage,
        vl: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_device(NAME, [(q, ql), (k, kl), (v, vl)])
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if q.device().is_cuda() {
            return self.back_on_device(NAME, [q, k, v, out, &grad]);
        }
        let Some(log_sums) = self.log_sums.get() else { bail!("{NAME}: the backward pass came before the forward") };
        let (qs, ks, vs) = (Values::of(NAME, q)?, Values::of(NAME, k)?, Values::of(NAME, v)?);
        let (outs, grads) = (Values::of(NAME, out)?, Values::of(NAME, &grad)?);
        let (grad_q, grad_k, grad_v) =
            self.backward(&cpu::Forward { q: &qs, k: &ks, v: &vs, out: &outs, log_sums }, &grads);
        // All three come out of one pass; what nobody asked for is dropped here.
        let give = |operand: &Tensor, values: Vec<f32>| {
            operand.track_op().then(|| Tensor::from_vec(values, operand.shape(), operand.device())).transpose()
        };
        Ok((give(q, grad_q)?, give(k, grad_k)?, give(v, grad_v)?))
    }
}

#[cfg(test)]
mod tests;
