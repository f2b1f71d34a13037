//! Differentiable operations of our own, one file each, as candle custom operations. candle's fast
//! kernels cut the gradient silently and its matmul computes the gradient of a frozen weight; these
//! give every tracked operand its gradient and a frozen one nothing. All compute on the CPU in f32, save
//! for products with a frozen weight in bf16, and give the same bits for the same operands at any number of
//! threads: work is cut by shape alone, and every sum has one fixed order.

mod adamw;
mod amx;
mod attention;
mod bf16;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod dora;
mod dropout;
mod embedding;
mod few_rows;
mod gated;
#[cfg(test)]
mod gradcheck;
mod lead;
mod linear;
mod linear_cross_entropy;
mod lora_linear;
mod low_rank;
mod matmul;
mod nf4;
mod operand;
mod paging;
mod rms_norm;
mod rope;
mod scalar_head;
mod spans;
#[cfg(test)]
mod threads;
mod vector;
mod weight;

pub use adamw::AdamWStep;
pub use attention::attention;
#[cfg(test)]
pub(crate) use bf16::portable::emulated;
pub use bf16::{Packed, has_bf16_products, to_bf16};
#[cfg(feature = "nccl")]
pub use cuda::Nccl;
#[cfg(feature = "cuda")]
pub use cuda::{DeviceMoments, PagedMoments, PagedUpdate, sum_of_squares};
pub use dora::{row_norms, row_squares};
pub use dropout::Dropout;
pub use embedding::embedding;
pub(crate) use few_rows::MOST_ROWS;
pub use few_rows::each_row_alone;
pub use gated::{Activation, gated};
pub use lead::lead;
pub use linear::linear;
pub use linear_cross_entropy::{CrossEntropy, Gradients, head_rows, linear_cross_entropy};
pub use lora_linear::lora_linear;
pub use low_rank::{RowsUpdate, update_rows};
pub use nf4::{BLOCK, DYNAMIC_MAP, LEVELS, NESTED_BLOCK, Nf4, Parts, nf4_bytes};
pub use paging::Paging;
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use scalar_head::{ScalarHead, scalar_head};
pub use spans::Spans;
pub use vector::largest;
pub use weight::{STRIP, Weight};
