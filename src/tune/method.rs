//! What a caller can ask for: a tuning method with its options, and how it is put on a base.

use super::{
    AdapterConfig, BottleneckAdapter, Full, Head, LlamaAdapter, LlamaAdapterConfig, Lora, LoraConfig, Method, Prefix,
    PrefixConfig, PromptConfig, SoftPrompt, VirtualTokens,
};
use crate::error::{Error, Result};
use crate::models::{Decoder, DecoderConfig, Form};

/// A tuning method with its options.
#[derive(Debug, Clone, PartialEq)]
pub enum TuningMethod {
    /// Low-rank updates of frozen weights.
    Lora(LoraConfig),
    /// The same over a base in 4 bits.
    Qlora(LoraConfig),
    /// Bottlenecks between the layers' parts.
    Adapter(AdapterConfig),
    /// Keys and values in front of every layer's own.
    Prefix(PrefixConfig),
    /// Embeddings in front of every record.
    Prompt(PromptConfig),
    /// Gated prompts in the attention of the top layers.
    LlamaAdapter(LlamaAdapterConfig),
    /// The output head alone.
    Head,
    /// Every weight.
    Full,
}

impl TuningMethod {
    /// The names in hyperparameters, the default first.
    pub const NAMES: [&'static str; 8] =
        ["lora", "qlora", "adapter", "prefix", "prompt", "llama_adapter", "head", "full"];

    /// The name in hyperparameters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lora(_) => "lora",
            Self::Qlora(_) => "qlora",
            Self::Adapter(_) => "adapter",
            Self::Prefix(_) => "prefix",
            Self::Prompt(_) => "prompt",
            Self::LlamaAdapter(_) => "llama_adapter",
            Self::Head => "head",
            Self::Full => "full",
        }
    }

    /// How the base lies in memory.
    pub fn form(&self) -> Form {
        match self {
            Self::Full => Form::Trainable,
            Self::Qlora(_) => Form::Nf4,
            _ => Form::Frozen,
        }
    }

    /// Why what it learns cannot be put into the base's weights, if it cannot.
    pub fn unmergeable(&self) -> Option<&'static str> {
        match self {
            Self::Lora(_) | Self::Qlora(_) | Self::Head => None,
            Self::Adapter(_) => {
                Some("bottlenecks have a bend between their maps, which no weight of the base can take")
            }
            Self::Prefix(_) => Some("a prefix is keys and values in front of a text, not a change of weights"),
            Self::Prompt(_) => Some("a soft prompt is embeddings in front of a text, not a change of weights"),
            Self::LlamaAdapter(_) => Some("gated prompts stand beside attention, which no weight of the base can take"),
            Self::Full => Some("a fully tuned model is whole already"),
        }
    }

    /// Positions that it takes from every record.
    pub fn virtual_tokens(&self) -> usize {
        match self {
            Self::Prefix(PrefixConfig { tokens, .. }) | Self::Prompt(PromptConfig { tokens, .. }) => *tokens,
            _ => 0,
        }
    }

    /// What its virtual tokens begin as, where it has some that begin as tokens.
    pub fn begin(&self) -> Option<&VirtualTokens> {
        match self {
            Self::Prefix(PrefixConfig { begin, projection: None, .. }) | Self::Prompt(PromptConfig { begin, .. }) => {
                Some(begin)
            }
            _ => None,
        }
    }

    /// With what depends on the base filled in.
    ///
    /// # Errors
    /// When it names target modules that the base does not have.
    pub fn on(&self, base: &DecoderConfig) -> Result<Self> {
        Ok(match self {
            Self::Lora(config) => Self::Lora(config.on(base)?),
            Self::Qlora(config) => Self::Qlora(config.on(base)?),
            other => other.clone(),
        })
    }

    /// Whether it goes on a base of this shape.
    ///
    /// # Errors
    /// `Validation` that says what does not fit.
    pub fn check(&self, base: &DecoderConfig) -> Result<()> {
        if self.virtual_tokens() >= base.max_positions {
            return Err(Error::validation(format!(
                "virtualTokens {} leave no room for text: the model's context length is {}",
                self.virtual_tokens(),
                base.max_positions
            )));
        }
        self.on(base)?;
        match self {
            Self::LlamaAdapter(config) => config.check(base),
            Self::Adapter(config) if config.reduction_factor > base.hidden_size as f64 => {
                Err(Error::validation(format!(
                    "adapterReductionFactor {} is more than the model's width of {}",
                    config.reduction_factor, base.hidden_size
                )))
            }
            _ => Ok(()),
        }
    }

    /// Puts it on a decoder that lies in memory in its [`TuningMethod::form`]. `text` are the tokens that
    /// virtual tokens begin with.
    ///
    /// # Errors
    /// When it does not go on this base.
    pub fn build(&self, decoder: &Decoder, text: Option<&[u32]>, seed: u64) -> Result<Box<dyn Method>> {
        self.check(decoder.config())?;
        Ok(match self {
            Self::Lora(config) | Self::Qlora(config) => Box::new(Lora::new(decoder, config.clone(), seed)?),
            Self::Adapter(config) => Box::new(BottleneckAdapter::new(decoder, *config, seed)?),
            Self::Prefix(config) => Box::new(Prefix::new(decoder, config, text, seed)?),
            Self::Prompt(config) => Box::new(SoftPrompt::new(decoder, config, text, seed)?),
            Self::LlamaAdapter(config) => Box::new(LlamaAdapter::new(decoder, *config, seed)?),
            Self::Head => Box::new(Head::new(decoder)?),
            Self::Full => Box::new(Full::new(decoder)?),
        })
    }
}
