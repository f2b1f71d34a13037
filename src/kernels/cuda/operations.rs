//! The operations on tensors of a device: operands are looked at, launches made, results become tensors. An
//! operation's `cuda_fwd` and `bwd` end here.

mod moments;
mod products;

pub use moments::{DeviceMoments, PagedMoments, PagedUpdate, sum_of_squares};
pub(in crate::kernels) use products::{
    OnDevice, cross_entropy, linear, linear_back, linear_bias_back, row_norms, row_squares,
};

use candle_core::{CudaStorage, Layout, Result, Shape, Tensor, bail};

use super::attention::Saved;
use super::device::{Cuda, Held, Memory, view};
use super::launch::{Element, Machine, View};
use crate::kernels::attention::Attention;
use crate::kernels::dropout::Dropout;
use crate::kernels::embedding::Embedding;
use crate::kernels::gated::Activation;
use crate::kernels::lead::Lead;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::rope::Rope;

/// An operand of a forward pass.
type Operand<'a> = (&'a CudaStorage, &'a Layout);
type Forward = Result<(CudaStorage, Shape)>;

/// Refuses operands of different types.
fn same(op: &str, views: &[View<'_>]) -> Result<()> {
    match views.windows(2).find(|pair| pair[0].element != pair[1].element) {
        Some(pair) => bail!("{op}: operands of {:?} and {:?}: convert one", pair[0].element, pair[1].element),
        None => Ok(()),
    }
}

fn give(memory: Option<Memory>, like: &Tensor) -> Result<Option<Tensor>> {
    memory.map(|memory| memory.into_tensor(like.shape())).transpose()
}

impl RmsNorm {
    pub(in crate::kernels) fn on_device(&self, op: &str, x: Operand<'_>, w: Operand<'_>) -> Forward {
        let (xs, ws) = (view(op, x.0, x.1)?, view(op, w.0, w.1)?);
        same(op, &[xs, ws])?;
        Ok((self.cuda_forward(&Cuda::of(x.0), xs, ws)?.into_storage(), x.1.shape().clone()))
    }

    pub(in crate::kernels) fn back_on_device(
        &self,
        op: &'static str,
        x: &Tensor,
        w: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let held = [x, w, grad].map(|tensor| Held::of(op, tensor));
        let views = [held[0].view()?, held[1].view()?, held[2].view()?];
        same(op, &views)?;
        let (grad_x, grad_w) = self.cuda_backward(&Cuda::of_tensor(x)?, views, w.track_op())?;
        Ok((give(x.track_op().then_some(grad_x), x)?, give(grad_w, w)?))
    }
}

impl Rope {
    pub(in crate::kernels) fn on_device(&self, op: &str, [x, cos, sin]: [Operand<'_>; 3]) -> Forward {
        let [xs, cos, sin] = [view(op, x.0, x.1)?, view(op, cos.0, cos.1)?, view(op, sin.0, sin.1)?];
        angles(op, cos, sin)?;
        Ok((self.cuda_turn(&Cuda::of(x.0), [xs, cos, sin], 1.0)?.into_storage(), x.1.shape().clone()))
    }

    pub(in crate::kernels) fn back_on_device(
        &self,
        op: &'static str,
        cos: &Tensor,
        sin: &Tensor,
        grad: &Tensor,
    ) -> Result<Tensor> {
        let held = [grad, cos, sin].map(|tensor| Held::of(op, tensor));
        let [grads, cos, sin] = [held[0].view()?, held[1].view()?, held[2].view()?];
        angles(op, cos, sin)?;
        self.cuda_turn(&Cuda::of_tensor(grad)?, [grads, cos, sin], -1.0)?.into_tensor(grad.shape())
    }
}

fn angles(op: &str, cos: View<'_>, sin: View<'_>) -> Result<()> {
    if (cos.element, sin.element) != (Element::F32, Element::F32) {
        bail!("{op}: cosines and sines are f32, not {:?}", cos.element);
    }
    Ok(())
}

impl Activation {
    pub(in crate::kernels) fn on_device(self, op: &str, gate: Operand<'_>, up: Operand<'_>) -> Forward {
        let (gates, ups) = (view(op, gate.0, gate.1)?, view(op, up.0, up.1)?);
        same(op, &[gates, ups])?;
        Ok((self.cuda_forward(&Cuda::of(gate.0), gates, ups)?.into_storage(), gate.1.shape().clone()))
    }

    pub(in crate::kernels) fn back_on_device(
        self,
        op: &'static str,
        gate: &Tensor,
        up: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let held = [gate, up, grad].map(|tensor| Held::of(op, tensor));
        let views = [held[0].view()?, held[1].view()?, held[2].view()?];
        same(op, &views)?;
        let wanted = [gate.track_op(), up.track_op()];
        let [grad_gate, grad_up] = self.cuda_backward(&Cuda::of_tensor(gate)?, views, wanted)?;
        Ok((give(grad_gate, gate)?, give(grad_up, up)?))
    }
}

impl Dropout {
    pub(in crate::kernels) fn on_device(&self, op: &str, x: Operand<'_>) -> Forward {
        Ok((self.cuda_masked(&Cuda::of(x.0), view(op, x.0, x.1)?)?.into_storage(), x.1.shape().clone()))
    }
}

impl Embedding {
    pub(in crate::kernels) fn on_device(&self, op: &str, table: Operand<'_>) -> Forward {
        let width = table.1.shape().dims2()?.1;
        let out = self.cuda_forward(&Cuda::of(table.0), view(op, table.0, table.1)?, width)?;
        Ok((out.into_storage(), (self.ids.len(), width).into()))
    }

    pub(in crate::kernels) fn back_on_device(&self, op: &'static str, table: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (held, width) = (Held::of(op, grad), table.dims2()?.1);
        let sums = self.cuda_backward(&Cuda::of_tensor(grad)?, held.view()?, table.elem_count(), width)?;
        sums.into_tensor(table.shape())
    }
}

impl Lead {
    pub(in crate::kernels) fn on_device(&self, op: &str, rows: Operand<'_>, x: Operand<'_>) -> Forward {
        let (leading, xs) = (view(op, rows.0, rows.1)?, view(op, x.0, x.1)?);
        same(op, &[leading, xs])?;
        let width: usize = x.1.dims()[1..].iter().product();
        let out = self.cuda_forward(&Cuda::of(x.0), leading, xs, width)?;
        let mut dims = x.1.dims().to_vec();
        dims[0] += self.lengths.len() * rows.1.dims()[0];
        Ok((out.into_storage(), dims.into()))
    }

    pub(in crate::kernels) fn back_on_device(
        &self,
        op: &'static str,
        rows: &Tensor,
        x: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (held, width) = (Held::of(op, grad), x.dims()[1..].iter().product());
        let wanted = [rows.track_op(), x.track_op()];
        let [grad_rows, grad_x] =
            self.cuda_backward(&Cuda::of_tensor(grad)?, held.view()?, rows.dim(0)?, width, wanted)?;
        Ok((give(grad_rows, rows)?, give(grad_x, x)?))
    }
}

impl Attention {
    pub(in crate::kernels) fn on_device(&self, op: &str, [q, k, v]: [Operand<'_>; 3]) -> Forward {
        let views = [view(op, q.0, q.1)?, view(op, k.0, k.1)?, view(op, v.0, v.1)?];
        same(op, &views)?;
        let (out, log_sums) = self.cuda_forward(&Cuda::of(q.0), views)?;
        // Only ever set once: candle runs the forward pass of an operation when it is made.
        let _ = self.on_device.set(log_sums);
        Ok((out.into_storage(), q.1.shape().clone()))
    }

    pub(in crate::kernels) fn back_on_device(
        &self,
        op: &'static str,
        [q, k, v, out, grad]: [&Tensor; 5],
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let cuda = Cuda::of_tensor(q)?;
        let Some(log_sums) = self.on_device.get() else { bail!("{op}: the backward pass came before the forward") };
        let held = [q, k, v, out, grad].map(|tensor| Held::of(op, tensor));
        let [q_view, k_view, v_view] = [held[0].view()?, held[1].view()?, held[2].view()?];
        let (out, grad) = (held[3].view()?, held[4].view()?);
        same(op, &[q_view, k_view, v_view, out, grad])?;
        let saved = Saved { q: q_view, k: k_view, v: v_view, out, log_sums: cuda.view(log_sums) };
        let wanted = [q.track_op(), k.track_op() || v.track_op()];
        let (grad_q, grads_kv) = self.cuda_backward(&cuda, &saved, grad, wanted)?;
        let (grad_k, grad_v) = match grads_kv {
            Some([grad_k, grad_v]) => (k.track_op().then_some(grad_k), v.track_op().then_some(grad_v)),
            None => (None, None),
        };
        Ok((give(grad_q, q)?, give(grad_k, k)?, give(grad_v, v)?))
    }
}
