//! Adapters and models as files. What a training run leaves behind: an adapter in the format of `peft`, the files that belong to it,
//! a manifest that says what it was made from, and a picture of the loss; and what others made, checked
//! before it is served.

mod adapter;
mod loss_chart;
mod manifest;
mod received;
mod tokenizer;

pub use adapter::write_adapter;
pub use loss_chart::{Curve, loss_chart};
pub use manifest::{BaseFacts, DataFacts, Results, TrainingManifest};

pub use crate::tune::{QUANTIZATION, WEIGHT_FILES};
pub use received::{Received, check_adapter, check_model};
pub use tokenizer::copy_tokenizer;
