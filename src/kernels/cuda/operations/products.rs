//! The operations that are products of matrices, on tensors of a device.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor, bail};

use super::{Forward, Operand, give, same};
use crate::kernels::cuda::device::{Cuda, Held, Memory, view};
use crate::kernels::cuda::dora;
use crate::kernels::cuda::launch::{Element, Machine, View};
use crate::kernels::cuda::linear_cross_entropy::Head;
use crate::kernels::cuda::lora_linear::Update;
use crate::kernels::cuda::nf4::Resident;
use crate::kernels::cuda::vector::Converted;
use crate::kernels::linear::Sizes;
use crate::kernels::linear_cross_entropy::{CrossEntropy, Gradients, Labelled};
use crate::kernels::lora_linear::LoraLinear;
use crate::kernels::weight::{Frozen, Weight};

/// xWᵀ + b.
pub(in crate::kernels) fn linear(op: &str, x: Operand<'_>, weight: Operand<'_>, bias: Option<Operand<'_>>) -> Forward {
    let sizes = Sizes::of(op, x.1.shape(), weight.1.shape(), bias.map(|bias| bias.1.shape()))?;
    let (xs, weights) = (view(op, x.0, x.1)?, view(op, weight.0, weight.1)?);
    let bias = bias.map(|bias| view(op, bias.0, bias.1)).transpose()?;
    same(op, &[xs, weights, bias.unwrap_or(xs)])?;
    let out = sizes.cuda_forward(&Cuda::of(x.0), xs, weights, bias)?;
    Ok((out.into_storage(), (sizes.rows, sizes.outputs).into()))
}

/// The gradients of x and the weight.
pub(in crate::kernels) fn linear_back(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (sizes, cuda) = (Sizes::of(op, x.shape(), weight.shape(), None)?, Cuda::of_tensor(x)?);
    let held = [x, weight, grad].map(|tensor| Held::of(op, tensor));
    let [xs, weights, grads] = [held[0].view()?, held[1].view()?, held[2].view()?];
    same(op, &[xs, weights, grads])?;
    let grad_x = x.track_op().then(|| sizes.cuda_grad_x(&cuda, weights, grads)).transpose()?;
    let grad_weight = weight.track_op().then(|| sizes.cuda_grad_weight(&cuda, xs, grads)).transpose()?;
    Ok((give(grad_x, x)?, give(grad_weight, weight)?))
}

/// The gradient of the bias.
pub(in crate::kernels) fn linear_bias_back(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
) -> Result<Tensor> {
    let (sizes, held) = (Sizes::of(op, x.shape(), weight.shape(), None)?, Held::of(op, grad));
    sizes.cuda_grad_bias(&Cuda::of_tensor(grad)?, held.view()?)?.into_tensor(sizes.outputs)
}

/// A matrix in NF4 on the device that it was first used on.
#[derive(Clone, Default)]
pub(in crate::kernels) struct OnDevice(OnceLock<Arc<(Cuda, Resident<Cuda>)>>);

impl std::fmt::Debug for OnDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OnDevice").field(&self.0.get().is_some()).finish()
    }
}

impl PartialEq for OnDevice {
    /// A copy says nothing about the matrix.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A frozen weight and its bias, ready for a product with an operand of one type.
struct Ready<'a> {
    weight: ReadyWeight<'a>,
    bias: Option<Held<'a>>,
}

enum ReadyWeight<'a> {
    Dense(Held<'a>),
    Decoded(Memory),
}

impl Ready<'_> {
    fn weight(&self, cuda: &Cuda) -> Result<View<'_>> {
        match &self.weight {
            ReadyWeight::Dense(held) => held.view(),
            ReadyWeight::Decoded(memory) => Ok(cuda.view(memory)),
        }
    }

    fn bias(&self) -> Result<Option<View<'_>>> {
        self.bias.as_ref().map(Held::view).transpose()
    }
}

impl Frozen {
    fn ready<'a>(&'a self, op: &'static str, cuda: &Cuda, element: Element) -> Result<Ready<'a>> {
        let bias = self.bias.as_ref().map(|bias| Held::of(op, bias));
        let weight = match &self.weight {
            Weight::Dense(tensor) => ReadyWeight::Dense(Held::of(op, tensor)),
            Weight::Bf16(_) => bail!("{op}: weights packed for the CPU do not run on a GPU: load them in f32"),
            Weight::Nf4(matrix) => {
                let place = &matrix.on_device().0;
                if place.get().is_none() {
                    // Another thread may have been first: its copy is as good.
                    let _ = place.set(Arc::new((cuda.clone(), Resident::new(cuda, matrix)?)));
                }
                match place.get().filter(|resident| resident.0.is(cuda)) {
                    Some(resident) => ReadyWeight::Decoded(resident.1.decode(cuda, element)?),
                    None => bail!("{op}: the weight was used on another GPU before"),
                }
            }
        };
        Ok(Ready { weight, bias })
    }

    pub(in crate::kernels) fn on_device(&self, op: &'static str, x: Operand<'_>) -> Forward {
        let (rows, inputs) = x.1.shape().dims2()?;
        let sizes = Sizes { rows, inputs, outputs: self.weight.dims()?.0 };
        let (cuda, xs) = (Cuda::of(x.0), view(op, x.0, x.1)?);
        let ready = self.ready(op, &cuda, xs.element)?;
        let (weight, bias) = (ready.weight(&cuda)?, ready.bias()?);
        same(op, &[xs, weight, bias.unwrap_or(xs)])?;
        Ok((sizes.cuda_forward(&cuda, xs, weight, bias)?.into_storage(), (rows, sizes.outputs).into()))
    }

    pub(in crate::kernels) fn back_on_device(&self, op: &'static str, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let ((rows, inputs), cuda, held) = (x.dims2()?, Cuda::of_tensor(x)?, Held::of(op, grad));
        let sizes = Sizes { rows, inputs, outputs: self.weight.dims()?.0 };
        let ready = self.ready(op, &cuda, held.view()?.element)?;
        let (weight, grad) = (ready.weight(&cuda)?, held.view()?);
        same(op, &[weight, grad])?;
        sizes.cuda_grad_x(&cuda, weight, grad)?.into_tensor(x.shape())
    }
}

impl LoraLinear {
    fn update<'a>(&self, rows: usize, [x, a, b]: [View<'a>; 3]) -> Update<'a> {
        let sizes = Sizes { rows, inputs: a.len / self.rank.max(1), outputs: self.outputs };
        Update { sizes, rank: self.rank, scale: self.scale as f32, dropout: self.dropout, x, a, b }
    }

    pub(in crate::kernels) fn on_device(&self, op: &'static str, [x, a, b]: [Operand<'_>; 3]) -> Forward {
        let cuda = Cuda::of(x.0);
        let views = [view(op, x.0, x.1)?, view(op, a.0, a.1)?, view(op, b.0, b.1)?];
        let (rows, element) = (x.1.shape().dims2()?.0, views[0].element);
        let update = self.update(rows, views);
        let ready = self.base.as_ref().map(|base| base.ready(op, &cuda, element)).transpose()?;
        let (weight, bias) = match &ready {
            Some(ready) => (Some(ready.weight(&cuda)?), ready.bias()?),
            None => (None, None),
        };
        same(op, &[views[0], weight.unwrap_or(views[0]), bias.unwrap_or(views[0])])?;
        let out = update.cuda_forward(&cuda, weight, bias)?;
        Ok((out.into_storage(), (rows, self.outputs).into()))
    }

    pub(in crate::kernels) fn back_on_device(
        &self,
        op: &'static str,
        [x, a, b, grad]: [&Tensor; 4],
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let cuda = Cuda::of_tensor(x)?;
        let held = [x, a, b, grad].map(|tensor| Held::of(op, tensor));
        let views = [held[0].view()?, held[1].view()?, held[2].view()?];
        let upstream = held[3].view()?;
        let update = self.update(x.dims2()?.0, views);
        // The base is needed for the gradient of x alone.
        let base = self.base.as_ref().filter(|_| x.track_op());
        let ready = base.map(|base| base.ready(op, &cuda, views[0].element)).transpose()?;
        let weight = ready.as_ref().map(|ready| ready.weight(&cuda)).transpose()?;
        same(op, &[views[0], upstream, weight.unwrap_or(upstream)])?;
        let wanted = [x, a, b].map(Tensor::track_op);
        let [grad_x, grad_a, grad_b] = update.cuda_backward(&cuda, weight, upstream, wanted)?;
        // A gradient has its operand's type.
        let like = |gradient: Option<Memory>, operand: &Tensor| -> Result<Option<Tensor>> {
            give(gradient, operand)?.map(|tensor| tensor.to_dtype(operand.dtype())).transpose()
        };
        Ok((give(grad_x, x)?, like(grad_a, a)?, like(grad_b, b)?))
    }
}

/// The head and its loss; the caller has checked the sizes.
pub(in crate::kernels) fn cross_entropy(
    op: &'static str,
    hidden: &Tensor,
    weight: &Tensor,
    labelled: &[Labelled],
    softcap: Option<f32>,
    gradients: Gradients,
) -> Result<CrossEntropy> {
    let (cuda, (rows, width), vocabulary) = (Cuda::of_tensor(hidden)?, hidden.dims2()?, weight.dim(0)?);
    let held = [hidden, weight].map(|tensor| Held::of(op, tensor));
    let (hiddens, weights) = (held[0].view()?, held[1].view()?);
    same(op, &[hiddens, weights])?;
    let head = Head { hidden: hiddens, weight: weights, width, vocabulary, softcap, gradients };
    let sums = head.run(&cuda, labelled)?;
    let (mut loss_sum, mut token_losses) = (0.0, vec![0f32; rows]);
    for (at, loss) in labelled.iter().zip(sums.losses) {
        token_losses[at.row] = loss;
        loss_sum += f64::from(at.scale) * f64::from(loss);
    }
    let grad_weight = sums.grad_weight.map(|grad| grad.into_tensor(weight.shape())?.to_dtype(weight.dtype()));
    Ok(CrossEntropy {
        loss_sum,
        token_losses,
        grad_hidden: sums.grad_hidden.into_tensor(hidden.shape())?,
        grad_weight: grad_weight.transpose()?,
    })
}

/// The squared length of every row of a dense weight.
pub(in crate::kernels) fn row_squares(op: &'static str, weight: &Tensor) -> Result<Vec<f64>> {
    let (held, width) = (Held::of(op, weight), weight.dim(1)?);
    dora::row_squares(&Cuda::of_tensor(weight)?, held.view()?, width)
}

/// The lengths of the rows of a tuned weight, in the type of `products`.
pub(in crate::kernels) fn row_norms(
    op: &'static str,
    [products, gram, b]: [&Tensor; 3],
    squares: &[f64],
    scale: f64,
) -> Result<Tensor> {
    let cuda = Cuda::of_tensor(b)?;
    let held = [products, gram, b].map(|tensor| Held::of(op, tensor));
    let mut converted = Vec::with_capacity(3);
    for held in &held {
        converted.push(Converted::new(&cuda, held.view()?, Element::F32)?);
    }
    let [products, gram, b] = [0, 1, 2].map(|place: usize| converted[place].view(&cuda));
    dora::row_norms(&cuda, [products, gram, b], squares, scale)?.into_tensor(squares.len())
}
