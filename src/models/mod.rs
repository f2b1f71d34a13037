//! The base models: which there are, how their weights are read, and the decoder that runs them.
//! One decoder serves every family of [`Architecture`]: they differ only by what
//! [`DecoderConfig`] reads from `config.json`.

mod chat_template;
mod config;
mod decoder;
mod index;
mod layer;
mod layerwise;
pub mod limits;
mod packing;
mod quantized;
mod registry;
mod rotary;
mod shards;
pub mod starter;
mod tokenizer;
mod tokenizer_files;
mod tuning;
mod weights;

pub use chat_template::{ChatTemplate, GENERATION_CLOSE, GENERATION_OPEN, Load};
pub use config::{Architecture, DecoderConfig, RopeScaling, WeightCounts};
pub use decoder::{Decoder, Form};
pub use index::{INDEX, SINGLE, shard_names};
pub use layer::Memory;
pub use layerwise::layerwise_logits;
pub use packing::Packing;
pub use quantized::{load_nf4, quantization_config};
pub use registry::{Customization, FoundationModel, Registry, Unreadable, is_model_id, recommended_hyper_parameters};
pub use shards::{Content, Outline, encode, write_shards};
pub use tokenizer::Tokenizer;
pub(crate) use tokenizer::{encode_text, encode_with_offsets};
pub use tokenizer_files::copy_tokenizer;
pub use tuning::{Attention, Frozen, LowRank, Map, Projection, Site, Tuning};
pub use weights::{Precision, Weights, save_tensors};
