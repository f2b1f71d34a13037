//! Keeps bases and adapters in memory and answers prompts with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;

use super::answer::{Answer, Options, Piece, StopReason, Writer};
use super::batch::{Asked, Batch, Tuned, cancelled};
use super::complete::{Request, complete};
use super::loaded::{InUse, Loaded};
use super::prompt_length::check_length;
use super::sampling::Sampling;
use super::scheduler::{Limits, Scheduler};
use super::score;
use crate::data::{Conversation, Encoder, Record};
use crate::error::{Error, Result};
use crate::kernels::nf4_bytes;
use crate::models::{Decoder, DecoderConfig, Form, Frozen, Tokenizer, Tuning, Weights, load_nf4};
use crate::tune::{self, adapter_bytes, read_adapter};

/// What an engine may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes of base models.
    pub bases: u64,
    /// Bytes of adapters, of all bases together.
    pub adapters: u64,
    /// What the answers under way of each base may take.
    pub limits: Limits,
}

impl Default for Capacity {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Self { bases: 16 * GIB, adapters: 2 * GIB, limits: Limits { sequences: 32, cache: 2 * GIB } }
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
    /// Tells it from what lay in its place before; a custom model's ARN. One id is always the same adapter.
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

/// What makes tokens of prompts, and answers of tokens.
struct Words {
    tokenizer: Tokenizer,
    encoder: Encoder,
}

/// A base in memory with all that belongs to it.
struct Base {
    decoder: Arc<Decoder>,
    words: Words,
    scheduler: Scheduler,
}

/// How many bases' words are kept for those who only count.
const COUNTED: u64 = 16;
/// The most tokens that are counted, where the model's context is not longer.
const MOST_COUNTED: usize = 1 << 20;

type HeldBase = InUse<(PathBuf, Form), Base>;
type HeldAdapter = InUse<(Adapter, PathBuf), tune::Adapter>;

impl Tuned for HeldAdapter {
    fn tuning(&self) -> &dyn Tuning {
        &*self.tuning
    }
}

/// What a target comes to in memory.
struct Model {
    base: HeldBase,
    adapter: Option<Arc<HeldAdapter>>,
    /// The longest text, prompt and answer together, in tokens.
    context_length: usize,
}

/// Answers prompts. Share one; every method may be called from many threads.
pub struct Engine {
    device: Device,
    limits: Limits,
    /// Where bases lie that were quantised before.
    quantized: Option<PathBuf>,
    bases: Loaded<(PathBuf, Form), Base>,
    adapters: Loaded<(Adapter, PathBuf), tune::Adapter>,
    /// To count tokens without a model in memory.
    words: Loaded<PathBuf, Words>,
}

impl Engine {
    /// Nothing in memory yet. `quantized` is the folder where bases lie that were quantised before.
    pub fn new(device: Device, capacity: Capacity, quantized: Option<PathBuf>) -> Self {
        let Capacity { bases, adapters, limits } = capacity;
        let (bases, adapters, words) = (Loaded::new(bases), Loaded::new(adapters), Loaded::new(COUNTED));
        Self { device, limits, quantized, bases, adapters, words }
    }

    /// Answers `prompt`, loading what is not in memory; together with whoever else asks the same base, and with
    /// the answer that it gets alone. Text goes to `on_piece` as soon as it is certain; the pieces together are the
    /// answer's text. `cancel` ends the work at the next token. Blocks.
    ///
    /// # Errors
    /// When the base or the adapter cannot be read or do not fit each other, the base has no chat
    /// template for a conversation, the prompt is empty or fills the context, the work was cancelled, or the model
    /// produces values that are not numbers.
    pub fn answer(
        &self,
        target: &Target,
        prompt: &Prompt,
        options: &Options,
        cancel: &AtomicBool,
        on_piece: &mut dyn FnMut(Piece<'_>),
    ) -> Result<Answer> {
        let goes_on = || if cancel.load(Ordering::Relaxed) { Err(cancelled()) } else { Ok(()) };
        let model = self.model(target, &goes_on)?;
        check_length(&model.base.words.tokenizer, prompt, model.context_length)?;
        let prompt = model.base.words.encode(prompt, &goes_on)?;
        let mut writer = Writer::new(&model.base.words.tokenizer, &options.stop_sequences, prompt.len(), on_piece);
        let mut write = |token| writer.push(token);
        let asked = model.asked().with_place(options.reserved);
        let ended = model.base.scheduler.ask(asked, &prompt, &options.sampling(), cancel, &mut write)?;
        writer.finish(ended.unwrap_or(StopReason::StopSequence))
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
        let wait = || if goes_on() { Ok(()) } else { Err(cancelled()) };
        let model = match self.model(target, &wait) {
            Err(_) if !goes_on() => return Ok(None),
            model => model?,
        };
        let (base, tuning) = (&model.base, model.tuning());
        let encoded = prompts.iter().map(|prompt| base.words.encode(prompt, &wait)).collect::<Result<Vec<_>>>();
        let prompts = match encoded {
            Err(_) if !goes_on() => return Ok(None),
            encoded => encoded?,
        };
        let room = model.context_length.saturating_sub(tuning.virtual_tokens());
        let fits = |prompt: &&Vec<u32>| !prompt.is_empty() && prompt.len() < room;
        let requests: Vec<Request<'_>> =
            prompts.iter().filter(fits).map(|prompt| Request { prompt, ways: vec![likeliest] }).collect();
        let mut batch = Batch::new(&base.decoder, tuning, base.words.tokenizer.ends(), model.context_length);
        let Some(completions) = complete(&mut batch, &requests, requests.len(), goes_on)? else { return Ok(None) };
        let mut completions = completions.into_iter().flatten();
        let answer = |prompt: &Vec<u32>| -> Result<Answer> {
            let done = if fits(&prompt) { completions.next() } else { None };
            let (mut tokens, stop_reason) =
                done.map_or((Vec::new(), StopReason::ContextWindow), |done| (done.tokens, done.stop_reason));
            if stop_reason == StopReason::EndTurn {
                tokens.pop();
            }
            let mut ignore = |_: Piece<'_>| ();
            let mut writer = Writer::new(&base.words.tokenizer, &[], prompt.len(), &mut ignore);
            for token in tokens {
                writer.push(token)?;
            }
            writer.finish(stop_reason)
        };
        prompts.iter().map(answer).collect::<Result<_>>().map(Some)
    }

    /// The target, loaded if it is not in memory. `goes_on` is asked while there is no room for it.
    fn model(&self, target: &Target, goes_on: &dyn Fn() -> Result<()>) -> Result<Model> {
        // The adapter first: who has a base waits for nothing more, so whoever waits for one gets it in the end.
        let adapter = self.adapter(target, goes_on)?;
        if adapter.as_ref().is_some_and(|adapter| adapter.tuning.score().is_some()) {
            return Err(Error::validation(
                "The model is a reward model: it judges answers and cannot give any. Invoke another model, and use this \
                 one as the grader of a reinforcement fine-tuning job.",
            ));
        }
        let base = self.base(target, adapter.as_deref(), goes_on)?;
        let longest = base.decoder.config().max_positions;
        let context_length = target.context_length.map_or(longest, |length| length.min(longest));
        Ok(Model { base, adapter, context_length })
    }

    /// What a reward model says of `records`, each a prompt with an answer or a conversation that ends with one:
    /// a number each, higher for better. Blocks.
    ///
    /// # Errors
    /// `Validation` when the target is no reward model, or a record is too long for it or not what its base
    /// takes; else when base or adapter cannot be read, or what `goes_on` says, which is asked while there is no room
    /// for them.
    pub fn score(&self, target: &Target, records: &[Record], goes_on: &dyn Fn() -> Result<()>) -> Result<Vec<f32>> {
        let adapter = self.adapter(target, goes_on)?.ok_or_else(|| {
            Error::validation("A base model is no reward model: give a custom model of trainingObjective reward")
        })?;
        let base = self.base(target, Some(&adapter), goes_on)?;
        let mut sequences = Vec::with_capacity(records.len());
        for record in records {
            sequences.extend(base.words.encoder.sequences(record)?.into_iter().map(|encoded| encoded.tokens));
        }
        score(&base.decoder, &*adapter.tuning, &sequences)
    }

    /// How many tokens a prompt has. The model itself is not brought into memory for that.
    ///
    /// # Errors
    /// When the base cannot be read, has no chat template for a conversation, or the prompt has more than a million
    /// tokens and more than the model's context.
    pub fn count(&self, target: &Target, prompt: &Prompt) -> Result<usize> {
        self.count_while(target, prompt, &|| Ok(()))
    }

    /// The same as long as `goes_on` says that it is wanted.
    ///
    /// # Errors
    /// As [`Engine::count`]; else what `goes_on` says.
    pub fn count_while(&self, target: &Target, prompt: &Prompt, goes_on: &dyn Fn() -> Result<()>) -> Result<usize> {
        let dir = &target.base_dir;
        let words = self.words.get(dir, || Ok(1), || Ok((Words::read(dir)?, 1)), &|| Ok(()))?;
        check_length(&words.tokenizer, prompt, MOST_COUNTED.max(target.context_length.unwrap_or_default()))?;
        Ok(words.encode(prompt, goes_on)?.len())
    }

    /// Bytes of the adapters in memory, those in use included.
    pub fn adapter_bytes(&self) -> u64 {
        self.adapters.bytes()
    }

    /// Loads a target if it is not in memory, so that its first answer does not wait for that. `goes_on` is asked
    /// while there is no room for it. Blocks.
    ///
    /// # Errors
    /// When the target could not answer: base or adapter cannot be read or do not fit each other, or it is a reward
    /// model.
    pub fn load(&self, target: &Target, goes_on: &dyn Fn() -> Result<()>) -> Result<()> {
        self.model(target, goes_on).map(drop)
    }

    /// Drops from memory what lies in `dir`, a base or an adapter, because it is to be removed there. Who answers with
    /// it goes on to the end.
    pub fn forget_dir(&self, dir: &Path) {
        self.bases.forget(|(base, _)| base == dir);
        self.words.forget(|base| base == dir);
        self.adapters.forget(|(adapter, base)| adapter.dir == dir || base == dir);
    }

    fn base(
        &self,
        target: &Target,
        adapter: Option<&HeldAdapter>,
        goes_on: &dyn Fn() -> Result<()>,
    ) -> Result<HeldBase> {
        // An adapter is asked on the base that it was trained on, which may be one in 4 bits.
        let form = match adapter.map(|adapter| adapter.method.form()) {
            None | Some(Form::Frozen) => Form::Served,
            Some(form) => form,
        };
        let dir = &target.base_dir;
        let size = || expected_bytes(dir, form);
        let load = || {
            let base = Base::load(dir, form, &self.device, self.quantized.as_deref(), self.limits)?;
            let bytes = base.decoder.bytes() as u64;
            Ok((base, bytes))
        };
        self.bases.get(&(dir.clone(), form), size, load, goes_on)
    }

    fn adapter(&self, target: &Target, goes_on: &dyn Fn() -> Result<()>) -> Result<Option<Arc<HeldAdapter>>> {
        let Some(adapter) = &target.adapter else { return Ok(None) };
        // With the base in the key an adapter is never run on a base that it was not checked against.
        let key = (adapter.clone(), target.base_dir.clone());
        // What is wrong with one that cannot be measured, loading it says.
        let size = || Ok(adapter_bytes(&adapter.dir).unwrap_or_default());
        let load = || {
            let base = DecoderConfig::read(&target.base_dir)?;
            let mut read = read_adapter(&adapter.dir, &base, &self.device, false)?;
            read.tuning.settle()?;
            Ok((read, adapter_bytes(&adapter.dir)?))
        };
        self.adapters.get(&key, size, load, goes_on).map(|held| Some(Arc::new(held)))
    }
}

impl Model {
    fn tuning(&self) -> &dyn Tuning {
        self.adapter.as_ref().map_or(&Frozen, |adapter| adapter.tuning())
    }

    fn asked(&self) -> Asked<'static> {
        match &self.adapter {
            Some(adapter) => Asked::new(Arc::clone(adapter) as Arc<dyn Tuned>, self.context_length),
            None => Asked::borrowed(&Frozen, self.context_length),
        }
    }
}

impl Base {
    fn load(dir: &Path, form: Form, device: &Device, quantized: Option<&Path>, limits: Limits) -> Result<Self> {
        let words = Words::read(dir)?;
        let decoder = Arc::new(match form {
            Form::Nf4 => load_nf4(dir, device, quantized)?,
            form => Decoder::load(dir, device, form)?,
        });
        let scheduler = Scheduler::new(Arc::clone(&decoder), words.tokenizer.ends(), limits);
        Ok(Self { decoder, words, scheduler })
    }
}

/// Bytes that a base will take, before its weights are read.
fn expected_bytes(dir: &Path, form: Form) -> Result<u64> {
    let config = DecoderConfig::read(dir)?;
    let counts = config.weight_counts();
    let dense = |values: u64| values * size_of::<f32>() as u64;
    Ok(match form {
        _ if config.nf4 || form == Form::Nf4 => nf4_bytes(counts.maps) + dense(counts.total() - counts.maps),
        Form::Served if Weights::open(dir)?.are_bf16() => {
            // A tied head lies in bf16 beside the table.
            let head = if counts.head == 0 { counts.embedding } else { counts.head };
            2 * (counts.maps + head) + dense(counts.embedding + counts.rest)
        }
        _ => dense(counts.total()),
    })
}

impl Words {
    fn read(dir: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::read(dir)?;
        let encoder = Encoder::of(&tokenizer)?;
        Ok(Self { tokenizer, encoder })
    }

    fn encode(&self, prompt: &Prompt, goes_on: &dyn Fn() -> Result<()>) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text(text) => self.encoder.text_prompt_while(text, goes_on),
            Prompt::Chat(conversation) => self.encoder.chat_prompt_while(conversation, goes_on),
        }
    }
}
