//! A model's chat template as a bounded program. Whoever made the model wrote it, so it is believed in nothing: its
//! size and nesting are counted before it is compiled, rendering runs with fuel that grows with the conversation, and
//! a deadline and the caller's cancellation are seen at every loop, macro and expression.
//!
//! Templates are Jinja as `transformers` runs it (`apply_chat_template`): blocks trimmed, Python's string methods,
//! `raise_exception`, `tojson` without HTML escapes. `{% generation %}` marks the assistant's words where a template has
//! it.

mod bounds;
mod hooks;
mod plain;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, mpsc};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};
use regex::Regex;

use self::hooks::Watch;
use crate::clock::Clock;
use crate::error::{Error, Result};

/// Noncharacters of Unicode, reserved for use inside a program, so no text may hold them: they stand where
/// `{% generation %}` begins and ends.
pub const GENERATION_OPEN: char = '\u{FDD0}';
/// See [`GENERATION_OPEN`].
pub const GENERATION_CLOSE: char = '\u{FDD1}';

/// The name that the compiled template has in its environment.
const NAME: &str = "chat";
/// Fuel for the smallest conversation. One unit is an instruction, or 64 bytes made: a template of a public model
/// takes a few hundred.
const FUEL: u64 = 200_000;
/// Fuel for each message.
const FUEL_PER_MESSAGE: u64 = 5_000;
/// Bytes of the conversation that add one unit of fuel. Each byte may then be copied sixteen times.
const BYTES_PER_FUEL: u64 = 4;
/// Fuel is given in powers of two of [`FUEL`], so that few environments are kept.
const FUEL_CLASSES: usize = 16;
/// Frames at once: nested loops cost one each, a macro its own depth and four.
const RECURSION_LIMIT: usize = 100;
/// The stack that parsing, compiling and watched rendering get. The bounds need a fraction of it.
const STACK_BYTES: usize = 16 << 20;
/// The longest that one rendering may take.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// How often a watched rendering asks whether its caller still waits.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// Characters of a template's own error that are passed on.
const DETAIL: usize = 1000;

/// What a template is given to work on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Messages of the conversation.
    pub messages: usize,
    /// Bytes of their texts.
    pub bytes: usize,
}

impl Load {
    /// The power of two of [`FUEL`] that suffices for it.
    fn class(self) -> usize {
        let wanted = (self.messages as u64)
            .saturating_mul(FUEL_PER_MESSAGE)
            .saturating_add(self.bytes as u64 / BYTES_PER_FUEL)
            .saturating_add(FUEL);
        let class = wanted.div_ceil(FUEL).next_power_of_two().trailing_zeros() as usize;
        class.min(FUEL_CLASSES - 1)
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The environment with the fuel of each class.
    fueled: [OnceLock<Environment<'static>>; FUEL_CLASSES],
    marks_generation: bool,
    clock: Clock,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("marks_generation", &self.marks_generation).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// # Errors
    /// `Validation` when it is larger or nests deeper than any template needs, uses what cannot be bounded, or is no
    /// Jinja.
    pub fn compile(source: &str) -> Result<Self> {
        let size = source.len();
        if size > bounds::MAX_BYTES {
            return Err(refused(format!("it takes {size} bytes; at most {} are read", bounds::MAX_BYTES)));
        }
        let (source, marks_generation) = mark_generation(source);
        // The parser and the compiler recurse: what `bounds` lets through fits this stack many times over.
        let environment = on_own_stack(|| environment(&source))??;
        Ok(Self { environment, fueled: Default::default(), marks_generation, clock: Clock::system() })
    }

    /// Compiles `source` and renders one short question with it, as is done before a model with this template is
    /// accepted.
    ///
    /// # Errors
    /// As [`ChatTemplate::compile`], and when the template cannot render the question within its bounds. A template
    /// that refuses the question by `raise_exception` passes: it may want other conversations.
    pub fn try_out(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let template = Self::compile(source)?;
        let token = |token: Option<&str>| token.map_or(Value::UNDEFINED, Value::from);
        let question = [
            ("messages", Value::from(vec![context! { role => "user", content => "a" }])),
            ("add_generation_prompt", Value::from(true)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("bos_token", token(bos)),
            ("eos_token", token(eos)),
        ];
        match template.run(question, Load { messages: 1, bytes: 1 }, Arc::default()) {
            Err(Failure::Template(cause)) if !hooks::is_raised(&cause) => {
                Err(refused(format!("it cannot render a short question: {}", detail(&cause))).because(cause))
            }
            _ => Ok(template),
        }
    }

    /// Whether it marks the assistant's words: its text then holds [`GENERATION_OPEN`] and [`GENERATION_CLOSE`].
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Gives the template a value under a name of its own.
    pub fn set_global(&mut self, name: &'static str, value: String) {
        self.environment.add_global(name, value);
        self.fueled = Default::default();
    }

    /// The text for `given`.
    ///
    /// # Errors
    /// `Validation` when the template refuses what it is given, or takes more work than a conversation of that size
    /// may.
    pub fn render<const N: usize>(&self, given: [(&'static str, Value); N], load: Load) -> Result<String> {
        self.run(given, load, Arc::default()).map_err(Failure::into_error)
    }

    /// The same on a thread of its own, while `goes_on` is asked whether the text is still wanted.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; else what `goes_on` says.
    pub fn render_while<const N: usize>(
        &self,
        given: [(&'static str, Value); N],
        load: Load,
        goes_on: &dyn Fn() -> Result<()>,
    ) -> Result<String> {
        goes_on()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            let stopped = Arc::clone(&stop);
            let work = move || sender.send(self.run(given, load, stopped));
            std::thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, work)
                .map_err(Error::unavailable)?;
            loop {
                match receiver.recv_timeout(WATCH_INTERVAL) {
                    Ok(text) => return text.map_err(Failure::into_error),
                    Err(mpsc::RecvTimeoutError::Timeout) => goes_on().inspect_err(|_| {
                        stop.store(true, Ordering::Relaxed);
                    })?,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Failure::Panicked.into_error()),
                }
            }
        })
    }

    fn run<const N: usize>(
        &self,
        given: [(&'static str, Value); N],
        load: Load,
        stop: Arc<AtomicBool>,
    ) -> std::result::Result<String, Failure> {
        let class = load.class();
        let environment = self.fueled[class].get_or_init(|| {
            let mut environment = self.environment.clone();
            environment.set_fuel(Some(FUEL << class));
            environment
        });
        let watch = Watch::new(stop, self.clock.clone(), TIME_LIMIT);
        let mut context: BTreeMap<&str, Value> = given.into_iter().collect();
        context.insert(hooks::WATCH, Value::from_object(watch));
        let work = || environment.get_template(NAME)?.render(Value::from(context));
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(text) => text.map_err(Failure::Template),
            Err(_) => Err(Failure::Panicked),
        }
    }
}

/// Why there is no text.
enum Failure {
    Template(minijinja::Error),
    Panicked,
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::Template(cause) => Error::validation(format!(
                "The base model's chat template refuses this conversation: {}",
                detail(&cause)
            ))
            .because(cause),
            Self::Panicked => {
                Error::validation("The base model's chat template cannot be run on this conversation: it fails inside")
            }
        }
    }
}

/// What the template says of itself, in a sentence.
fn detail(cause: &minijinja::Error) -> String {
    let text = match cause.kind() {
        ErrorKind::OutOfFuel => {
            "it takes more work than a conversation of this size may; look for a loop or a text that grows without \
             bound"
                .to_owned()
        }
        _ => cause.detail().map_or_else(|| cause.to_string(), str::to_owned),
    };
    text.chars().take(DETAIL).collect()
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::validation(format!("The model's chat template cannot be compiled: {why}"))
}

/// Puts marks that stay in the text where `{% generation %}` stands.
fn mark_generation(source: &str) -> (String, bool) {
    static GENERATION: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());
    let mut marked = false;
    // Still a block tag to the trimming rules, as `{% generation %}` is.
    let source = match &*GENERATION {
        Some(tag) => tag.replace_all(source, |found: &regex::Captures<'_>| {
            marked = true;
            let mark = if found.get(2).is_some() { GENERATION_CLOSE } else { GENERATION_OPEN };
            format!("{{%{} if true %}}{mark}{{% endif {}%}}", &found[1], &found[3])
        }),
        None => source.into(),
    };
    (source.into_owned(), marked)
}

/// An environment that holds the template `source`, bounded.
fn environment(source: &str) -> Result<Environment<'static>> {
    let wrong = |cause: minijinja::Error| refused(format!("{cause:#}").chars().take(DETAIL).collect::<String>());
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(wrong)?;
    let source = bounds::instrument(source, &syntax)?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_recursion_limit(RECURSION_LIMIT);
    hooks::install(&mut environment);
    environment.add_template_owned(NAME, source).map_err(wrong)?;
    Ok(environment)
}

/// Runs `work` with a stack that does not depend on the caller's.
fn on_own_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let thread = thread.map_err(Error::unavailable)?;
        thread.join().map_err(|_| refused("it fails inside the parser"))
    })
}

#[cfg(test)]
mod tests;
