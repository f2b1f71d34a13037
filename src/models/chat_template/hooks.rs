//! What a template may call, beside what the engine brings: the filters that [`super::bounds`] adds to its source,
//! `raise_exception`, `strftime_now`, Python's `json.dumps`, and Python's string methods with what they make paid
//! before it is made.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, escape_formatter};

use super::plain::{Walk, plain};
use crate::clock::Clock;

/// The variable that holds the [`Watch`] of a rendering.
pub(super) const WATCH: &str = "__watch";
/// The filter that looks at the [`Watch`].
pub(super) const TICK: &str = "__tick";
/// The filter that makes a value a tree.
pub(super) const PLAIN: &str = "__plain";
/// The names that a template may not use.
pub(super) const NAMES: [&str; 3] = [WATCH, TICK, PLAIN];

/// Spaces that JSON may be indented by.
const MAX_INDENT: usize = 16;
/// Digits of a width in a format.
const MAX_WIDTH_DIGITS: usize = 3;

/// The date that `strftime_now` gives: fixed, because an answer learned under one date and asked for
/// under another would be asked with a prompt it never saw. It is what Llama's template falls back to.
const DATE: jiff::civil::Date = jiff::civil::date(2024, 7, 26);

/// Whether a rendering may go on.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    clock: Clock,
    until: Instant,
    limit: Duration,
}

impl Object for Watch {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

impl Watch {
    /// Until `stop` is set, for at most `limit`.
    pub(super) fn new(stop: Arc<AtomicBool>, clock: Clock, limit: Duration) -> Self {
        let until = clock.monotonic() + limit;
        Self { stop, clock, until, limit }
    }

    fn look(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(wrong("the text is no longer wanted"));
        }
        if self.clock.monotonic() > self.until {
            return Err(wrong(format!("it takes longer than {} s", self.limit.as_secs())));
        }
        Ok(())
    }
}

/// What `raise_exception` was given, told from the engine's own errors.
#[derive(Debug)]
struct Raised;

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("raise_exception")
    }
}

impl std::error::Error for Raised {}

/// Whether the template itself raised the error.
pub(super) fn is_raised(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = cause {
        if one.is::<Raised>() {
            return true;
        }
        cause = one.source();
    }
    false
}

/// Gives an environment everything that a chat template may call.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| {
        tick(state)?;
        escape_formatter(out, state, value)
    });
    environment.add_filter(TICK, |state: &State<'_, '_>, _: Value| tick(state).map(|()| false));
    environment.add_filter(PLAIN, |state: &State<'_, '_>, value: Value, shared: bool| {
        tick(state)?;
        plain(state, &value, if shared { Walk::Shared } else { Walk::Named })
    });
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(wrong(message).with_source(Raised))
    });
    environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
        let mut text = String::new();
        match write!(text, "{}", DATE.strftime(&format)) {
            Ok(()) => Ok(text),
            Err(_) => Err(wrong("strftime_now: the format asks for what a date does not have")),
        }
    });
    let builtin = Value::from_function(minijinja::functions::namespace);
    environment.add_function("namespace", move |state: &mut State<'_, '_>, given: Rest<ValueOrKwargs>| {
        let given = given.into_values();
        let given = given.iter().map(|value| plain(state, value, Walk::Shared)).collect::<Result<Vec<_>, Error>>()?;
        builtin.call(state, &given)
    });
    // It prints everything that there is.
    environment.remove_global("debug");
}

fn tick(state: &State<'_, '_>) -> Result<(), Error> {
    let watch = state.lookup(WATCH);
    match watch.as_ref().and_then(|watch| watch.downcast_object_ref::<Watch>()) {
        Some(watch) => watch.look(),
        None => Err(wrong("the rendering is not watched")),
    }
}

fn wrong(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// Pays for `bytes` that are read or made.
fn pay(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64)
}

/// Python's methods, as the engine's own library has them. What it does not charge for is paid here: the items of a
/// list that are joined, the pieces of a split, and what a format repeats.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    tick(state)?;
    let first = args.first();
    let text_of = |value: Option<&Value>| value.and_then(Value::as_str).map_or(0, str::len);
    match (value.kind(), value.as_str(), name) {
        (_, Some(_), "join") => {
            if let Some(items) = first {
                for item in items.try_iter()?.checked() {
                    plain(state, &item?, Walk::Written)?;
                }
            }
        }
        (_, Some(text), "split") => {
            let pieces = match first.and_then(Value::as_str) {
                Some(separator) => text.matches(separator).count(),
                None => text.matches(char::is_whitespace).count(),
            };
            state.consume_fuel(1 + pieces as u64)?;
        }
        (_, Some(text), "splitlines") => state.consume_fuel(1 + text.matches('\n').count() as u64)?,
        (_, Some(text), "strip" | "lstrip" | "rstrip") => {
            pay(state, text.len().saturating_mul(text_of(first)) / 4)?;
        }
        (_, Some(_), "startswith" | "endswith") => state.consume_fuel(first.and_then(Value::len).unwrap_or(0) as u64)?,
        (_, Some(text), "count" | "find" | "rfind" | "replace") => pay(state, text.len() + text_of(first))?,
        (_, Some(text), "format") => {
            let is_simple = |value: &Value| value.as_object().is_none();
            if !args.iter().all(is_simple) {
                return Err(wrong("str.format takes texts and numbers"));
            }
            let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
            if digits > MAX_WIDTH_DIGITS {
                return Err(wrong("str.format: a number in the format is too large"));
            }
            let longest = args.iter().map(|value| text_of(Some(value))).max().unwrap_or(0) + 1000;
            pay(state, text.matches('{').count().saturating_mul(longest))?;
        }
        (ValueKind::Seq, _, "count") => {
            let each = 1 + first.map_or(0, |what| what.len().unwrap_or(0)) as u64;
            state.consume_fuel(each.saturating_mul(value.len().unwrap_or(0) as u64))?;
        }
        (ValueKind::Map, _, "get") => pay(state, text_of(first))?,
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// `tojson` as `transformers` defines it: Python's `json.dumps`, nothing escaped for HTML.
fn tojson(state: &State<'_, '_>, value: &Value, indent: Option<Value>, arguments: Kwargs) -> Result<Value, Error> {
    // Python's other arguments do not change what templates print in practice; non-ASCII stays as it is.
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    let indent: Option<Value> = match indent {
        Some(indent) => Some(indent),
        None => arguments.get("indent")?,
    };
    if let Some(width) = indent.as_ref().and_then(|indent| usize::try_from(indent.clone()).ok())
        && width > MAX_INDENT
    {
        return Err(wrong(format!("tojson: an indent of {width} is too large; at most {MAX_INDENT}")));
    }
    let value = plain(state, value, Walk::Written)?;
    let escaped = minijinja::filters::tojson(&value, indent, arguments)?.to_string();
    let mut text = String::with_capacity(escaped.len());
    let mut rest = escaped.as_str();
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let plain = [("\\u003c", '<'), ("\\u003e", '>'), ("\\u0026", '&'), ("\\u0027", '\'')];
        match plain.iter().find(|(escape, _)| rest[at..].starts_with(escape)) {
            Some((escape, c)) => {
                text.push(*c);
                rest = &rest[at + escape.len()..];
            }
            // An escape is a backslash and one ASCII character more: "\\\\" must not be read as the start of another.
            None => {
                text.push_str(&rest[at..at + 2]);
                rest = &rest[at + 2..];
            }
        }
    }
    text.push_str(rest);
    Ok(Value::from(text))
}
