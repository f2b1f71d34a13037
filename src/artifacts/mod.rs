//! What a training run leaves behind: an adapter in the format of `peft`, the files that belong to it,
//! a manifest that says what it was made from, and a picture of the loss.

mod loss_chart;
mod manifest;
mod peft;
mod tokenizer;

pub use loss_chart::{Curve, loss_chart};
pub use manifest::{BaseFacts, DataFacts, Results, TrainingManifest};
pub use peft::write_lora;
pub use tokenizer::copy_tokenizer;
