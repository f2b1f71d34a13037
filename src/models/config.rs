//! What a decoder looks like, read from a Hugging Face `config.json`. Settings that would change
//! the numbers and that we do not implement are refused by name, never ignored.

mod read;
mod size;
mod write;

use std::path::Path;

use serde_json::Value;

pub(super) use self::read::OneOrMany;
pub use self::size::WeightCounts;
use super::limits;
use super::tuning::Projection;
use crate::error::Result;
use crate::kernels::Activation;

/// The model families the decoder runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2, 3, 3.1, 3.2, SmolLM, SmolLM2 and the many models of the same form.
    Llama,
    /// Mistral: Llama with a sliding attention window in its first release.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on the query, key and value projections.
    Qwen2,
    /// Qwen3: query and key are normalised per head; no biases.
    Qwen3,
    /// Gemma 2: norms after the sub-blocks too, capped scores and logits, a window in every other layer.
    Gemma2,
    /// The text models of Gemma 3: heads normalised, windowed layers with rotary frequencies of their own.
    Gemma3,
    /// Phi-3, Phi-3.5 and Phi-4-mini: fused projections, rotary frequencies for short and long texts.
    Phi3,
    /// SmolLM3: Llama with layers that do not know positions.
    SmolLm3,
}

impl Architecture {
    /// Every family, in the order they are listed to a user.
    pub const ALL: [Self; 8] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Gemma2, Self::Gemma3, Self::Phi3, Self::SmolLm3];

    /// The class name in `config.json`'s `architectures`.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
        }
    }

    /// The `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Phi3 => "phi3",
            Self::SmolLm3 => "smollm3",
        }
    }

    /// Gemma 2 or 3, which share most of what sets them apart from Llama.
    fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }
}

/// How rotary frequencies are stretched beyond the length of pre-training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Every frequency divided by `factor`.
    Linear {
        /// How many times longer the context is.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// How many times longer the context is.
        factor: f32,
        /// Wavelengths above `original / low` are divided by `factor`.
        low_freq_factor: f32,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f32,
        /// Context length of pre-training, in tokens.
        original: usize,
    },
    /// LongRoPE (arXiv 2402.13753): each frequency divided by a factor of its own, with one list for
    /// records of up to `original` tokens and another for longer ones.
    LongRope {
        /// Divisors for short records, one for each frequency.
        short: Vec<f32>,
        /// Divisors for long records, one for each frequency.
        long: Vec<f32>,
        /// Context length of pre-training, in tokens.
        original: usize,
        /// Cosines and sines are multiplied by this.
        attention_factor: f64,
    },
}

/// The shape of a decoder and the constants it computes with.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The family, which also names the class in a saved `config.json`.
    pub architecture: Architecture,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// How many layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Width of one head; not always `hidden_size / heads`.
    pub head_dim: usize,
    /// What opens the gate of the MLP.
    pub activation: Activation,
    /// Embeddings are multiplied by this.
    pub embedding_scale: f64,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    /// Added to a norm's stored weights: 1 where they are kept as differences from 1.
    pub norm_offset: f64,
    /// What attention and the MLP give is normalised once more before it is added to the stream.
    pub post_norms: bool,
    /// Scores are divided by the root of this; the width of a head in most models.
    pub query_pre_attn_scalar: f64,
    /// Scores are held within ± this before the softmax.
    pub attention_softcap: Option<f64>,
    /// Logits are held within ± this.
    pub final_softcap: Option<f64>,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How rotary frequencies are stretched, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// Base of the frequencies, never stretched, in layers with a window; as everywhere when `None`.
    pub rope_local_theta: Option<f32>,
    /// Which part of each head turns with the position.
    pub partial_rotary_factor: f64,
    /// For each layer, whether queries and keys turn with the position.
    pub rotated: Vec<bool>,
    /// The longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// For each layer, how many tokens back (itself included) a token sees; all when `None`.
    pub windows: Vec<Option<usize>>,
    /// Query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub output_bias: bool,
    /// The MLP's projections have biases.
    pub mlp_bias: bool,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Standard deviation of a new model's weights.
    pub initializer_range: f64,
    /// First token of a text, as the model's configuration names it.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text, as the model's configuration names them.
    pub eos_token_ids: Vec<u32>,
    /// The layers' maps are stored in NF4.
    pub nf4: bool,
}

impl DecoderConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// When the file is missing, larger than [`limits::MAX_SMALL_FILE`] or not JSON, asks for something the decoder
    /// cannot do, or gives a size above its limit; the message names the setting.
    pub fn read(dir: &Path) -> Result<Self> {
        let text = limits::read_small_text(dir, "config.json")?;
        Self::parse(&text).map_err(|error| error.at(dir.join("config.json").display().to_string()))
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`DecoderConfig::read`].
    pub fn parse(text: &str) -> Result<Self> {
        read::parse(text)
    }

    /// What to write as `config.json`, readable by transformers 4 and 5.
    pub fn to_json(&self) -> Value {
        write::to_json(self)
    }

    /// The linear maps of every layer, in the order they run.
    pub fn projections(&self) -> &'static [Projection] {
        use Projection::{Down, Gate, GateUp, Key, Output, Query, QueryKeyValue, Up, Value};
        if self.architecture == Architecture::Phi3 {
            &[QueryKeyValue, Output, GateUp, Down]
        } else {
            &[Query, Key, Value, Output, Gate, Up, Down]
        }
    }

    /// Outputs and inputs of a linear map: its weight is `[outputs, inputs]`.
    pub fn sizes(&self, projection: Projection) -> (usize, usize) {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match projection {
            Projection::Query => (queries, self.hidden_size),
            Projection::Key | Projection::Value => (keys, self.hidden_size),
            Projection::QueryKeyValue => (queries + 2 * keys, self.hidden_size),
            Projection::Output => (self.hidden_size, queries),
            Projection::Gate | Projection::Up => (self.intermediate_size, self.hidden_size),
            Projection::GateUp => (2 * self.intermediate_size, self.hidden_size),
            Projection::Down => (self.hidden_size, self.intermediate_size),
        }
    }

    /// Query and key are normalised per head before the rotation.
    pub fn qk_norm(&self) -> bool {
        matches!(self.architecture, Architecture::Qwen3 | Architecture::Gemma3)
    }

    /// Gemma 2 multiplies whatever enters its first layer, a soft prompt too; Gemma 3 the rows of its table.
    pub fn scales_soft_prompts(&self) -> bool {
        self.architecture == Architecture::Gemma2
    }

    /// How many elements of each head turn with the position: the first ones, an even number.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.partial_rotary_factor) as usize
    }

    /// Base and scaling of the rotary frequencies of a layer, if it knows positions.
    pub(super) fn rope(&self, layer: usize) -> Option<(f32, Option<&RopeScaling>)> {
        let local = self.rope_local_theta.filter(|_| self.windows[layer].is_some());
        let rope = local.map_or((self.rope_theta, self.rope_scaling.as_ref()), |theta| (theta, None));
        self.rotated[layer].then_some(rope)
    }

    /// Whether a record of `tokens` tokens turns by other frequencies than one of `held`: keys kept
    /// from the shorter one are of no use then.
    pub fn frequencies_change(&self, held: usize, tokens: usize) -> bool {
        match self.rope_scaling {
            Some(RopeScaling::LongRope { original, .. }) => (held > original) != (tokens > original),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
