//! The log: its level, its form, and the rule that one event is one line. Values come from strangers, so the text
//! form escapes every control character of every field; JSON does so by itself.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;

use clap::ValueEnum;
use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// The settings of the log, which every command has.
#[derive(clap::Args)]
pub(super) struct Logging {
    /// What to log: a level, or levels by module such as `info,tunesmith::http=debug`; `info` when absent,
    /// and `warn` for commands that show their own progress
    #[arg(long, env = "TUNESMITH_LOG", global = true)]
    log: Option<String>,

    /// Lines for people, or JSON objects for machines
    #[arg(long, env = "TUNESMITH_LOG_FORMAT", value_enum, default_value = "text", global = true)]
    log_format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Logging {
    /// Starts logging to standard error; standard output belongs to what a command prints.
    /// `usual` is the level where none was asked for.
    pub(super) fn start(&self, usual: &str) {
        let wanted = self.log.as_deref().unwrap_or(usual);
        let filter = EnvFilter::try_new(wanted).unwrap_or_else(|cause| {
            eprintln!("tunesmith: --log {wanted:?} cannot be read ({cause}); logging at {usual}");
            EnvFilter::new(usual)
        });
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).fmt_fields(EscapedFields).init(),
            Format::Json => lines.json().init(),
        }
    }
}

/// Text fields without control characters: `message name=value`.
struct EscapedFields;

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = EscapedLine { writer, begun: false, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct EscapedLine<'writer> {
    writer: Writer<'writer>,
    begun: bool,
    result: fmt::Result,
}

impl EscapedLine<'_> {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // The bridge from the crate `log` repeats what the event's own metadata say.
        if self.result.is_err() || field.name().starts_with("log.") {
            return;
        }
        self.result = self.write(field, value);
    }

    fn write(&mut self, field: &Field, value: fmt::Arguments<'_>) -> fmt::Result {
        if std::mem::replace(&mut self.begun, true) {
            self.writer.write_char(' ')?;
        }
        if field.name() != "message" {
            let name = field.name();
            write!(self.writer, "{}=", name.strip_prefix("r#").unwrap_or(name))?;
        }
        Escaping(&mut self.writer).write_fmt(value)
    }
}

impl Visit for EscapedLine<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.add(field, format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}

/// Writes control characters, and Unicode's two line separators, as Rust spells them.
struct Escaping<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
                write!(self.0, "{}", c.escape_default())?;
            } else {
                self.0.write_char(c)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_stranger_sends_stays_on_the_line_it_is_logged_on() {
        const FORGED: &str = "x\nINFO fake: \r\u{1b}[2J\u{7f}\u{85}\u{2028}\0end";
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
        tracing::subscriber::with_default(log.fmt_fields(EscapedFields).finish(), || {
            let _span = tracing::info_span!("request", path = FORGED, shown = %FORGED).entered();
            tracing::info!(name = FORGED, shown = %FORGED, debug = ?FORGED, count = 3, "said: {FORGED}");
            tracing::warn!("{FORGED}");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with('\n') && !text.trim_end().contains(|c: char| c != '\n' && c.is_control()), "{text:?}");
        assert!(!text.contains('\u{2028}'), "{text:?}");
        assert!(text.contains("said: x\\nINFO fake: \\r\\u{1b}[2J") && text.contains("count=3"), "{text}");
    }
}
