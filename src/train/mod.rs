//! Tensors in, artifact out. No database, no S3, no HTTP, no async runtime.

pub mod backprop;
