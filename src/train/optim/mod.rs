//! The optimizer, and the norm that gradients are clipped by. Gradients come in as sums over tokens;
//! one scale, folded into the update, makes them means and clips them, so they are never copied.

mod adamw;
mod moments;
mod norm;

pub(crate) use adamw::{AdamW, AdamWSettings};
pub(crate) use norm::{clip_factor, norm};
