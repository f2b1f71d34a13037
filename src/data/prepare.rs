//! Whole files to a corpus, in one pass: lines are read in chunks, each chunk is parsed and tokenised
//! on all cores, and written in the order of the file. Memory holds one chunk. The whole data set is
//! checked before anything is trained: one bad line refuses it, and all bad lines are reported.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::corpus::{Corpus, SourceFacts, Writer, sha256_of};
use super::encode::{Encoded, Encoder};
use super::jsonl::{Class, Content, Fault, Line, Lines};
use super::records::{Format, Objective, Record};
use super::report::{Collector, DataReport};
use crate::error::{Error, Kind, Result};

/// A chunk ends at this many lines or bytes, whichever comes first.
const CHUNK_LINES: usize = 1024;
const CHUNK_BYTES: usize = 4 << 20;

/// Changes when the same data would give another corpus.
const VERSION: &str = "1";

/// One data file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where it lies on this machine.
    pub path: PathBuf,
    /// What its owner calls it (`s3://…`), for messages.
    pub name: String,
}

/// How to read the data.
#[derive(Debug, Clone)]
pub struct Options {
    /// What it is for.
    pub objective: Objective,
    /// The longest sequence the model takes, in tokens; at least 2.
    pub max_tokens: usize,
    /// The least number of records a data set must have.
    pub min_records: u64,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read, of all files.
    pub bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
    /// Lines with a good record so far.
    pub records: u64,
}

/// What came of it.
#[derive(Debug)]
pub enum Prepared {
    /// The data is good.
    Ready(Corpus),
    /// The data is refused; the report names every bad line.
    Refused(DataReport),
}

/// Checks and tokenises `sources` into a corpus in `folder`. A whole corpus of the same data, tokenizer and
/// options that already lies there is taken as it is. `progress` is called after each chunk; its error ends
/// the work and is returned.
pub fn prepare(
    sources: &[Source],
    encoder: &Encoder,
    options: &Options,
    folder: &Path,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Prepared> {
    if let Ok(corpus) = Corpus::open(folder) {
        let digests: Vec<String> = sources.iter().map(|source| sha256_of(&source.path)).collect::<Result<_>>()?;
        if corpus.manifest().key == key(sources, &digests, encoder, options) {
            return Ok(Prepared::Ready(corpus));
        }
    }
    let mut writer = Writer::create(folder)?;
    let mut bad = Collector::new(folder);
    let mut facts = Vec::with_capacity(sources.len());
    let mut first: Option<(Format, String)> = None;
    let mut now = Progress { bytes: 0, total_bytes: 0, records: 0 };
    for source in sources {
        now.total_bytes += std::fs::metadata(&source.path)?.len();
    }

    for (file, source) in (0_u32..).zip(sources) {
        let before = now.bytes;
        let mut lines = Lines::new(Hashing { inner: File::open(&source.path)?, digest: Sha256::new(), bytes: 0 })?;
        let mut fact = SourceFacts { name: source.name.clone(), sha256: String::new(), records: 0, blank_lines: 0 };
        let mut seen_fault = false;
        loop {
            let chunk = next_chunk(&mut lines)?;
            if chunk.is_empty() {
                break;
            }
            let read: Vec<Read1> =
                chunk.into_par_iter().map(|line| read_one(line, encoder, options)).collect::<Result<_>>()?;
            for Read1 { line, outcome } in read {
                let fault = match outcome {
                    Outcome::Blank => {
                        fact.blank_lines += 1;
                        continue;
                    }
                    Outcome::Bad(fault, beginning) => Some((fault, beginning)),
                    Outcome::Good(format, sequences) => {
                        let (expected, place) =
                            first.get_or_insert_with(|| (format, format!("{}:{line}", base(&source.name))));
                        if *expected == format {
                            for encoded in &sequences {
                                for (tokens, learn) in windows(encoded, options) {
                                    writer.push(tokens, &learn, file, line)?;
                                }
                            }
                            fact.records += 1;
                            now.records += 1;
                            None
                        } else {
                            let reason = format!(
                                "the record is {}, but {place} is {}; a data set holds one kind of record",
                                format.example(),
                                expected.example()
                            );
                            Some((Fault::format(1, reason), String::new()))
                        }
                    }
                };
                if let Some((fault, beginning)) = fault {
                    bad.add(&source.name, line, fault, &beginning)?;
                    seen_fault = true;
                }
            }
            now.bytes = before + lines.get_ref().bytes;
            progress(now)?;
        }
        if fact.records == 0 && !seen_fault {
            let what = if now.bytes == before { "the file is empty" } else { "the file has only blank lines" };
            let example = match options.objective {
                Objective::FineTuning => Format::Completion.example(),
                Objective::Preferences => Format::Preference.example(),
                Objective::ContinuedPreTraining => Format::Text.example(),
            };
            bad.add(
                &source.name,
                0,
                Fault::syntax(None, format!("{what}; give one record per line, such as {example}")),
                "",
            )?;
        }
        fact.sha256 = hex::encode(lines.into_inner().digest.finalize());
        facts.push(fact);
    }

    if bad.is_empty() && now.records < options.min_records {
        let reason =
            format!("the data set has {} records; this job needs at least {}", now.records, options.min_records);
        if let Some(source) = sources.first() {
            bad.add(&source.name, 0, Fault::format(None, reason), "")?;
        }
    }
    match first {
        Some((format, _)) if bad.is_empty() => {
            let digests: Vec<String> = facts.iter().map(|fact| fact.sha256.clone()).collect();
            let key = key(sources, &digests, encoder, options);
            Ok(Prepared::Ready(writer.finish(key, options.objective, format, facts)?))
        }
        _ if bad.is_empty() => Err(Error::validation("The job names no data file")),
        _ => Ok(Prepared::Refused(bad.finish()?)),
    }
}

/// What one line came to.
struct Read1 {
    line: u64,
    outcome: Outcome,
}

enum Outcome {
    Good(Format, Vec<Encoded>),
    Blank,
    /// The fault, and how the record begins.
    Bad(Fault, String),
}

fn read_one(line: Line, encoder: &Encoder, options: &Options) -> Result<Read1> {
    let outcome = match line.content {
        Content::Blank => Outcome::Blank,
        Content::Bad(fault) | Content::Unreadable(fault) => Outcome::Bad(fault, String::new()),
        Content::Text(text) => match Record::parse(&text, options.objective) {
            Err(fault) => Outcome::Bad(fault, String::new()),
            Ok((format, record)) => match encoded(&record, encoder, options)? {
                Ok(encoded) => Outcome::Good(format, encoded),
                Err(fault) => Outcome::Bad(fault, text.chars().take(60).collect()),
            },
        },
    };
    Ok(Read1 { line: line.number, outcome })
}

/// The record's token sequences, or what is wrong with it; the outer error is ours.
fn encoded(record: &Record, encoder: &Encoder, options: &Options) -> Result<Result<Vec<Encoded>, Fault>> {
    let sequences = match encoder.sequences(record) {
        Ok(sequences) => sequences,
        Err(error) if error.kind() == Kind::Validation => return Ok(Err(Fault::format(None, error.message()))),
        Err(error) => return Err(error),
    };
    for encoded in &sequences {
        let length = encoded.tokens.len();
        if !encoded.learn.contains(&true) {
            return Ok(Err(Fault::format(None, "the record has no token to learn")));
        }
        if options.objective != Objective::ContinuedPreTraining && length > options.max_tokens {
            return Ok(Err(Fault {
                column: None,
                reason: format!("Maximum input token count {length} exceeds limit of {}", options.max_tokens),
                class: Class::Length,
            }));
        }
    }
    Ok(Ok(sequences))
}

/// A document longer than the model's length gives several sequences. Each begins with the last token of
/// the one before, as context: so every token but the document's first is learned exactly once.
fn windows<'a>(encoded: &'a Encoded, options: &Options) -> impl Iterator<Item = (&'a [u32], Vec<bool>)> {
    let max = options.max_tokens.max(2);
    let length = encoded.tokens.len();
    let starts = (0..length).step_by(max - 1).take_while(move |start| *start == 0 || start + 1 < length);
    starts.map(move |start| {
        let end = (start + max).min(length);
        let mut learn = encoded.learn[start..end].to_vec();
        learn[0] = false;
        (&encoded.tokens[start..end], learn)
    })
}

fn next_chunk<R: Read>(lines: &mut Lines<R>) -> Result<Vec<Line>> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    while chunk.len() < CHUNK_LINES && bytes < CHUNK_BYTES {
        let Some(line) = lines.next_line()? else { break };
        if let Content::Text(text) = &line.content {
            bytes += text.len();
        }
        chunk.push(line);
    }
    Ok(chunk)
}

fn key(sources: &[Source], digests: &[String], encoder: &Encoder, options: &Options) -> String {
    let mut digest = Sha256::new();
    // Part of what checkpoints know their run by: these words stay as they are.
    let objective = match options.objective {
        Objective::FineTuning => "FineTuning",
        Objective::Preferences => "Preferences",
        Objective::ContinuedPreTraining => "ContinuedPreTraining",
    };
    let facts = format!("{VERSION} {objective} {} {}", options.max_tokens, options.min_records);
    for part in [facts.as_str(), encoder.digest()] {
        digest.update(part);
        digest.update("\n");
    }
    for (source, sha256) in sources.iter().zip(digests) {
        digest.update(sha256);
        digest.update(&source.name);
        digest.update("\n");
    }
    hex::encode(digest.finalize())
}

/// The last segment of a file's name.
fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Counts and digests what is read through it.
struct Hashing<R> {
    inner: R,
    digest: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.digest.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}
