//! Keeps bases and adapters in memory and answers prompts with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::Device;

use super::batch::Batch;
use super::complete::{Request, complete};
use super::detokenize::Detokenizer;
use super::generate::{Answer, Options, Piece, Speaker, StopReason};
use super::loaded::Loaded;
use super::sampling::Sampling;
use super::score;
use crate::data::{Conversation, Encoder, Record};
use crate::error::{Error, Result};
use crate::models::{Decoder, DecoderConfig, Form, Frozen, Tokenizer, Tuning, load_nf4};
use crate::tune::{self, read_adapter};

/// How many models stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Base models.
    pub bases: usize,
    /// Adapters, of all bases together.
    pub adapters: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { bases: 2, adapters: 32 }
    }
}

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The base's Hugging Face directory.
    pub base_dir: PathBuf,
    /// A shorter context than the base's configuration allows.
    pub context_length: Option<usize>,
    /// What tunes it.
    pub adapter: Option<Adapter>,
}

/// An adapter in `peft`'s format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Names it in memory; a custom model's ARN. One id is always the same adapter.
    pub id: String,
    /// Where its files are.
    pub dir: PathBuf,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text: one user's turn where the base has a chat template, and taken as it is where it has
    /// none or the text was already rendered by its author.
    Text(String),
    /// A conversation that ends with the user's turn, through the base's chat template.
    Chat(Conversation),
}

/// A base in memory with all that belongs to it.
struct Base {
    decoder: Decoder,
    tokenizer: Tokenizer,
    encoder: Encoder,
}

/// Answers prompts. Share one; every method may be called from many threads.
pub struct Engine {
    device: Device,
    /// Where bases lie that were quantised before.
    quantized: Option<PathBuf>,
    bases: Loaded<(PathBuf, Form), Base>,
    adapters: Loaded<(String, PathBuf), tune::Adapter>,
}

impl Engine {
    /// Nothing in memory yet. `quantized` is the folder where bases lie that were quantised before.
    pub fn new(device: Device, capacity: Capacity, quantized: Option<PathBuf>) -> Self {
        let (bases, adapters) = (Loaded::new(capacity.bases), Loaded::new(capacity.adapters));
        Self { device, quantized, bases, adapters }
    }

    /// Answers `prompt`, loading what is not in memory. Blocks. See [`Speaker::answer`].
    ///
    /// # Errors
    /// When the base or the adapter cannot be read or do not fit each other, the base has no chat
    /// template for a conversation, or [`Speaker::answer`] fails.
    pub fn answer(
        &self,
        target: &Target,
        prompt: &Prompt,
        options: &Options,
        cancel: &AtomicBool,
        on_piece: &mut dyn FnMut(Piece<'_>),
    ) -> Result<Answer> {
        self.with_speaker(target, |speaker, base| speaker.answer(&base.encode(prompt)?, options, cancel, on_piece))
    }

    /// The likeliest answers to `prompts`, found side by side, in order. `goes_on` is asked before every token; when
    /// it says no, the result is `None`. An answer without text stands for a prompt that fills the context. Blocks.
    ///
    /// # Errors
    /// As [`Engine::answer`].
    pub fn answers(
        &self,
        target: &Target,
        prompts: &[Prompt],
        max_tokens: usize,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Answer>>> {
        let likeliest = Sampling { max_tokens, temperature: 0.0, top_p: 1.0, top_k: None, seed: 0 };
        self.with_speaker(target, |speaker, base| {
            let prompts = prompts.iter().map(|prompt| base.encode(prompt)).collect::<Result<Vec<_>>>()?;
            let room = speaker.context_length.saturating_sub(speaker.tuning.virtual_tokens());
            let fits = |prompt: &&Vec<u32>| !prompt.is_empty() && prompt.len() < room;
            let requests: Vec<Request<'_>> =
                prompts.iter().filter(fits).map(|prompt| Request { prompt, ways: vec![likeliest] }).collect();
            let ends = speaker.tokenizer.ends();
            let mut batch = Batch::new(speaker.decoder, speaker.tuning, ends, speaker.context_length);
            let Some(completions) = complete(&mut batch, &requests, requests.len(), goes_on)? else { return Ok(None) };
            let mut completions = completions.into_iter().flatten();
            let answer = |prompt: &Vec<u32>| -> Result<Answer> {
                let done = if fits(&prompt) { completions.next() } else { None };
                let (mut tokens, stop_reason) =
                    done.map_or((Vec::new(), StopReason::ContextWindow), |done| (done.tokens, done.stop_reason));
                let output_tokens = tokens.len();
                if stop_reason == StopReason::EndTurn {
                    tokens.pop();
                }
                let mut words = Detokenizer::new(speaker.tokenizer);
                let mut text = String::new();
                for token in &tokens {
                    text += &words.push(*token)?;
                }
                text += &words.finish()?;
                Ok(Answer { text, tokens, stop_reason, stop_sequence: None, input_tokens: prompt.len(), output_tokens })
            };
            prompts.iter().map(answer).collect::<Result<_>>().map(Some)
        })
    }

    /// Calls `body` with the target, loaded if it is not in memory.
    fn with_speaker<T>(&self, target: &Target, body: impl FnOnce(Speaker<'_>, &Base) -> Result<T>) -> Result<T> {
        let adapter = self.adapter(target)?;
        if adapter.as_ref().is_some_and(|adapter| adapter.tuning.score().is_some()) {
            return Err(Error::validation(
                "The model is a reward model: it judges answers and cannot give any. Invoke another model, and use this \
                 one as the grader of a reinforcement fine-tuning job.",
            ));
        }
        // An adapter is asked on the base that it was trained on, which may be one in 4 bits.
        let form = adapter.as_ref().map_or(Form::Frozen, |adapter| adapter.method.form());
        let base = self.base(target, form)?;
        let tuning: &dyn Tuning = match &adapter {
            Some(adapter) => &*adapter.tuning,
            None => &Frozen,
        };
        let longest = base.decoder.config().max_positions;
        let speaker = Speaker {
            decoder: &base.decoder,
            tuning,
            tokenizer: &base.tokenizer,
            context_length: target.context_length.map_or(longest, |length| length.min(longest)),
        };
        body(speaker, &base)
    }

    /// What a reward model says of `records`, each a prompt with an answer or a conversation that ends with one:
    /// a number each, higher for better. Blocks.
    ///
    /// # Errors
    /// `Validation` when the target is no reward model, or a record is too long for it or not what its base
    /// takes; else when base or adapter cannot be read.
    pub fn score(&self, target: &Target, records: &[Record]) -> Result<Vec<f32>> {
        let adapter = self.adapter(target)?.ok_or_else(|| {
            Error::validation("A base model is no reward model: give a custom model of trainingObjective reward")
        })?;
        let base = self.base(target, adapter.method.form())?;
        let mut sequences = Vec::with_capacity(records.len());
        for record in records {
            sequences.extend(base.encoder.sequences(record)?.into_iter().map(|encoded| encoded.tokens));
        }
        score(&base.decoder, &*adapter.tuning, &sequences)
    }

    /// How many tokens a prompt has.
    ///
    /// # Errors
    /// When the base cannot be read, or has no chat template for a conversation.
    pub fn count(&self, target: &Target, prompt: &Prompt) -> Result<usize> {
        Ok(self.base(target, Form::Frozen)?.encode(prompt)?.len())
    }

    /// Loads a target if it is not in memory, so that its first answer does not wait for that. Blocks.
    ///
    /// # Errors
    /// When the base or the adapter cannot be read or do not fit each other.
    pub fn load(&self, target: &Target) -> Result<()> {
        let adapter = self.adapter(target)?;
        self.base(target, adapter.map_or(Form::Frozen, |adapter| adapter.method.form())).map(drop)
    }

    /// Drops an adapter from memory, because its model was deleted.
    pub fn forget(&self, adapter: &str) {
        self.adapters.forget(|(id, _)| id == adapter);
    }

    fn base(&self, target: &Target, form: Form) -> Result<Arc<Base>> {
        let dir = &target.base_dir;
        self.bases.get(&(dir.clone(), form), || Base::load(dir, form, &self.device, self.quantized.as_deref()))
    }

    fn adapter(&self, target: &Target) -> Result<Option<Arc<tune::Adapter>>> {
        let Some(adapter) = &target.adapter else { return Ok(None) };
        // With the base in the key an adapter is never run on a base that it was not checked against.
        let key = (adapter.id.clone(), target.base_dir.clone());
        let load = || read_adapter(&adapter.dir, &DecoderConfig::read(&target.base_dir)?, &self.device, false);
        self.adapters.get(&key, load).map(Some)
    }
}

impl Base {
    fn load(dir: &Path, form: Form, device: &Device, quantized: Option<&Path>) -> Result<Self> {
        let tokenizer = Tokenizer::read(dir)?;
        let encoder =
            Encoder::new(tokenizer.inner().clone(), tokenizer.bos(), tokenizer.eos(), tokenizer.chat_template())?;
        let decoder = match form {
            Form::Nf4 => load_nf4(dir, device, quantized)?,
            form => Decoder::load(dir, device, form)?,
        };
        Ok(Self { decoder, tokenizer, encoder })
    }

    fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text(text) => self.encoder.text_prompt(text),
            Prompt::Chat(conversation) => self.encoder.chat_prompt(conversation),
        }
    }
}
