//! The CUDA side of the operations. Beside each operation lies its kernel (`rms_norm.cu` beside `rms_norm.rs`);
//! the files here say how it is launched: which memory, which grid, which arguments. They know a machine only
//! by the [`Machine`] trait, so that the same launches run on a device (feature `cuda`) and, in the tests, on an
//! emulator for which the system's C++ compiler builds the very same `.cu` files.

mod adamw;
mod attention;
#[cfg(feature = "cuda")]
mod copies;
#[cfg(feature = "cuda")]
mod device;
mod dora;
mod dropout;
mod embedding;
#[cfg(test)]
mod emulator;
mod gated;
mod launch;
mod lead;
mod linear;
mod linear_cross_entropy;
mod lora_linear;
#[cfg(feature = "nccl")]
mod nccl;
mod nf4;
#[cfg(feature = "cuda")]
mod operations;
mod paged;
mod product;
mod rms_norm;
mod rope;
#[cfg(test)]
mod tests;
mod vector;

#[cfg(feature = "cuda")]
pub(super) use device::Memory;
pub(super) use launch::Module;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
#[cfg(feature = "cuda")]
pub use operations::{DeviceMoments, PagedMoments, PagedUpdate, sum_of_squares};
#[cfg(feature = "cuda")]
pub(super) use operations::{OnDevice, cross_entropy, linear, linear_back, linear_bias_back, row_norms, row_squares};
