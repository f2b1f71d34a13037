//! Adapters and models as files. What a training run leaves behind: an adapter in the format of `peft`, the files that belong to it,
//! a manifest that says what it was made from, and a picture of the loss; an adapter put into its base's weights; and
//! what others made, checked before it is served.

mod adapter;
mod inspection;
mod loss_chart;
mod manifest;
mod merge;
mod received;

pub use adapter::{write_adapter, write_adapter_config};
pub use inspection::{Verdict, confine, inspect};
pub use loss_chart::{Curve, loss_chart};
pub use manifest::{BaseFacts, DataFacts, MergedFacts, Results, TrainingManifest};

pub use crate::models::copy_tokenizer;
pub use crate::tune::{QUANTIZATION, WEIGHT_FILES};
pub use merge::{Difference, MergeOptions, Merged, MergedType, merge};
pub use received::{Received, check_adapter, check_model};
