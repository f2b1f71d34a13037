//! What was wrong with the data: every bad line goes to a report file, the first twenty into the
//! message that the job shows.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::jsonl::{Class, Fault};
use crate::durable;
use crate::error::Result;

/// The report's name beside the outputs.
pub const REPORT_FILE: &str = "data_report.jsonl";

/// How many faults the failure message lists.
const LISTED: usize = 20;

/// The longest `failureMessage` of the service's contract, in characters.
const MAX_MESSAGE: usize = 2048;

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadLine {
    /// The data file, as the caller named it.
    pub file: String,
    /// From 1; 0 when the file as a whole is meant.
    pub line: u64,
    /// In characters from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// What is wrong and what to do.
    pub reason: String,
}

/// The data was refused.
#[derive(Debug)]
pub struct DataReport {
    /// The report with every bad line.
    pub path: PathBuf,
    /// How many bad lines there are.
    pub bad: u64,
    /// The text for `failureMessage`, at most 2048 characters.
    pub message: String,
}

/// Collects bad lines; the list on disk is whole, what stays in memory is bounded.
pub(crate) struct Collector {
    path: PathBuf,
    out: Option<durable::Writer>,
    first: Vec<BadLine>,
    /// The first line of the message: the first fault's, unless a later one says that a file is no JSONL.
    heading: Option<(Class, String)>,
    bad: u64,
}

impl Collector {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { path: folder.join(REPORT_FILE), out: None, first: Vec::new(), heading: None, bad: 0 }
    }

    /// Notes a fault of `file`; `beginning` is how the record begins.
    pub(crate) fn add(&mut self, file: &str, line: u64, fault: Fault, beginning: &str) -> Result<()> {
        let first_of_syntax =
            fault.class == Class::Syntax && self.heading.as_ref().is_some_and(|(class, _)| *class != Class::Syntax);
        if self.heading.is_none() || first_of_syntax {
            let heading = match fault.class {
                Class::Syntax => {
                    format!("Unable to parse Amazon S3 file: {file}. Data files must conform to JSONL format.")
                }
                Class::Format => format!("Invalid records in Amazon S3 file: {file}."),
                Class::Length => format!("Input size exceeded in file {file} for record starting with {beginning}"),
            };
            self.heading = Some((fault.class, heading));
        }
        let bad = BadLine { file: file.to_owned(), line, column: fault.column, reason: fault.reason };
        let out = match &mut self.out {
            Some(out) => out,
            None => self.out.insert(durable::Writer::create(&self.path)?),
        };
        serde_json::to_writer(&mut *out, &bad)?;
        out.write_all(b"\n")?;
        if self.first.len() < LISTED {
            self.first.push(bad);
        }
        self.bad += 1;
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bad == 0
    }

    /// Ends the report.
    pub(crate) fn finish(mut self) -> Result<DataReport> {
        if let Some(out) = self.out.take() {
            out.finish()?;
        }
        let heading = self.heading.take().map(|(_, heading)| heading).unwrap_or_default();
        let message = message(&heading, &self.first, self.bad);
        Ok(DataReport { path: self.path, bad: self.bad, message })
    }
}

/// Heading, the first faults, and how many more there are, within [`MAX_MESSAGE`].
fn message(heading: &str, first: &[BadLine], bad: u64) -> String {
    let mut text: String = heading.chars().take(MAX_MESSAGE / 2).collect();
    let closing = |left: u64| match left {
        0 => String::new(),
        left => format!("\n... and {left} more; every bad line is listed in {REPORT_FILE} beside the job's outputs."),
    };
    for (listed, line) in (0_u64..).zip(first) {
        let name = line.file.rsplit('/').next().unwrap_or(&line.file);
        let place = match (line.line, line.column) {
            (0, _) => name.to_owned(),
            (number, None) => format!("{name}:{number}"),
            (number, Some(column)) => format!("{name}:{number}:{column}"),
        };
        let mut entry = format!("\n{place}: {}", line.reason);
        if entry.chars().count() > 400 {
            entry = entry.chars().take(397).collect::<String>() + "...";
        }
        let length = |text: &str| text.chars().count();
        if length(&text) + length(&entry) + length(&closing(bad)) > MAX_MESSAGE {
            return text + &closing(bad - listed);
        }
        text += &entry;
    }
    text + &closing(bad - first.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_the_first_twenty_and_the_report_names_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut collector = Collector::new(folder.path());
        for line in 1..=25 {
            let fault = if line == 1 { Fault::format(3, "odd") } else { Fault::syntax(line as usize, "worse") };
            collector.add("s3://b/k/train.jsonl", line, fault, "{").unwrap();
        }
        let report = collector.finish().unwrap();
        let lines: Vec<_> = report.message.lines().collect();
        assert_eq!(
            lines[0],
            "Unable to parse Amazon S3 file: s3://b/k/train.jsonl. Data files must conform to JSONL format."
        );
        assert_eq!((lines[1], lines[2]), ("train.jsonl:1:3: odd", "train.jsonl:2:2: worse"));
        assert_eq!(lines.len(), 22);
        assert!(lines[21].starts_with("... and 5 more;"), "{}", lines[21]);
        let listed = std::fs::read_to_string(&report.path).unwrap();
        assert_eq!(listed.lines().count(), 25);
        assert_eq!(
            listed.lines().next(),
            Some(r#"{"file":"s3://b/k/train.jsonl","line":1,"column":3,"reason":"odd"}"#)
        );
    }

    #[test]
    fn however_long_the_reasons_the_message_fits() {
        let folder = tempfile::tempdir().unwrap();
        let mut collector = Collector::new(folder.path());
        for line in 1..=30 {
            collector.add(&"n".repeat(3000), line, Fault::format(None, "é".repeat(900)), "").unwrap();
        }
        let report = collector.finish().unwrap();
        assert!(report.message.chars().count() <= MAX_MESSAGE);
        assert!(report.message.ends_with("beside the job's outputs."));
    }
}
