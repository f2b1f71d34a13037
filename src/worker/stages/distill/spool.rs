//! The prompts of a distillation on disk: those that have their answer already as records to learn, the others as
//! questions, and what is of no use with its place and the reason. Memory holds one line at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use super::records::Records;
use crate::data::jsonl::{Class, Content, Fault, Lines, MAX_TREE_LINE_BYTES};
use crate::data::{Asked, BadLine, Question};
use crate::durable;
use crate::error::{Error, Result};
use crate::train::StopFlag;

/// The most prompts of a job, answered or not. AWS takes 15,000.
pub(super) const MAX_PROMPTS: u64 = 1_000_000;
/// The questions that the teacher is to answer, one a line.
const QUESTIONS: &str = "questions.jsonl";

/// Prompts as they were read.
pub(super) struct Spool {
    path: PathBuf,
    questions: durable::Writer,
    /// How many questions have no answer yet.
    pub(super) unanswered: u64,
    /// Prompts whose answer is learned as it is.
    pub(super) answered: Records,
    /// A question of the kind that all are of.
    first: Option<Question>,
    report: durable::Writer,
    /// Lines that were left out.
    pub(super) left_out: u64,
}

impl Spool {
    /// Empty; `report` gets a line for everything that is left out, `answered` the records.
    pub(super) fn create(folder: &Path, report: &str, answered: &str) -> Result<Self> {
        let path = folder.join(QUESTIONS);
        Ok(Self {
            questions: durable::Writer::create(&path)?,
            path,
            unanswered: 0,
            answered: Records::create(&folder.join(answered))?,
            first: None,
            report: durable::Writer::create(&folder.join(report))?,
            left_out: 0,
        })
    }

    /// Takes what `take` finds in each line of a file; a line without a fault and without a prompt is passed over.
    ///
    /// # Errors
    /// `Validation` when the file cannot be read or there are too many prompts, `Unavailable` when it is told to stop.
    pub(super) fn read(
        &mut self,
        name: &str,
        file: impl Read,
        take: impl Fn(&str) -> std::result::Result<Option<Asked>, Fault>,
        stop: &StopFlag,
    ) -> Result<()> {
        let unreadable = |cause: std::io::Error| {
            Error::validation(format!("Unable to read {name}: {cause}. Give JSON Lines, or gzip of them."))
        };
        let mut lines = Lines::with_cap(file, MAX_TREE_LINE_BYTES).map_err(unreadable)?;
        while let Some(line) = lines.next_line().map_err(unreadable)? {
            if stop.is_raised() {
                return Err(Error::unavailable(anyhow::anyhow!("reading the prompts: told to end")));
            }
            let taken = match line.content {
                Content::Blank => continue,
                Content::Bad(fault) | Content::Unreadable(fault) => Err(fault),
                Content::Text(text) => take(&text),
            };
            let fault = match taken {
                Ok(None) => continue,
                Ok(Some(asked)) => match &self.first {
                    Some(first) if !first.is_like(&asked.question) => Fault {
                        column: None,
                        reason: format!("the prompt is {}, the first one is not", kind(&asked.question)),
                        class: Class::Format,
                    },
                    _ => {
                        self.push(asked)?;
                        continue;
                    }
                },
                Err(fault) => fault,
            };
            self.left_out += 1;
            let bad = BadLine { file: name.into(), line: line.number, column: fault.column, reason: fault.reason };
            serde_json::to_writer(&mut self.report, &bad)?;
            writeln!(self.report)?;
        }
        Ok(())
    }

    fn push(&mut self, asked: Asked) -> Result<()> {
        if self.prompts() >= MAX_PROMPTS {
            return Err(Error::validation(format!(
                "There are more than {MAX_PROMPTS} prompts to distill from. Give fewer, or narrow requestMetadataFilters."
            )));
        }
        match &asked.answer {
            Some(answer) => self.answered.push(&asked.question, answer)?,
            None => {
                serde_json::to_writer(&mut self.questions, &asked.question)?;
                writeln!(self.questions)?;
                self.unanswered += 1;
            }
        }
        // Of its kind one word is kept.
        self.first.get_or_insert(match asked.question {
            Question::Text(_) => Question::Text(String::new()),
            Question::Turn { .. } => Question::Turn { system: None, user: String::new() },
        });
        Ok(())
    }

    /// Prompts so far.
    pub(super) fn prompts(&self) -> u64 {
        self.unanswered + self.answered.count()
    }

    /// Ends reading: the questions in their order, and what they belong to.
    pub(super) fn questions(&mut self) -> Result<Questions> {
        self.questions.sync()?;
        self.report.sync()?;
        Ok(Questions { lines: BufReader::new(File::open(&self.path)?) })
    }
}

/// Questions, read back.
pub(super) struct Questions {
    lines: BufReader<File>,
}

impl Questions {
    /// The next questions, at most `count`; none at the end.
    pub(super) fn next(&mut self, count: usize) -> Result<Vec<Question>> {
        let mut questions = Vec::with_capacity(count);
        let mut line = String::new();
        while questions.len() < count && self.lines.read_line(&mut line)? > 0 {
            questions.push(serde_json::from_str(&line)?);
            line.clear();
        }
        Ok(questions)
    }
}

fn kind(question: &Question) -> &'static str {
    match question {
        Question::Text(_) => "a plain text",
        Question::Turn { .. } => "a turn of a conversation",
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::gunzip::Gunzip;
    use super::*;

    fn spool(folder: &Path) -> Spool {
        Spool::create(folder, "left_out.jsonl", "answered.jsonl").unwrap()
    }

    fn take(line: &str) -> std::result::Result<Option<Asked>, Fault> {
        Asked::parse(line).map(Some)
    }

    #[test]
    fn questions_come_back_in_their_order_and_answered_prompts_are_records() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = spool(folder.path());
        let lines = "{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\", \"completion\": \"B\"}\n{}\n{\"prompt\": \"c\"}\n\
                     {\"messages\": [{\"role\": \"user\", \"content\": \"d\"}]}\n";
        spool.read("f.jsonl", lines.as_bytes(), take, &StopFlag::default()).unwrap();
        assert_eq!((spool.unanswered, spool.answered.count(), spool.left_out, spool.prompts()), (2, 1, 2, 3));
        let mut questions = spool.questions().unwrap();
        let texts = |questions: Vec<Question>| questions.iter().map(|one| one.text().to_string()).collect::<Vec<_>>();
        assert_eq!(texts(questions.next(1).unwrap()), ["a"]);
        assert_eq!(texts(questions.next(5).unwrap()), ["c"]);
        assert!(questions.next(5).unwrap().is_empty());
        let left_out = std::fs::read_to_string(folder.path().join("left_out.jsonl")).unwrap();
        assert!(left_out.contains("a turn of a conversation"), "{left_out}");
    }

    #[test]
    fn reading_ends_when_it_is_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let stop = StopFlag::default();
        stop.raise();
        let endless = std::io::repeat(b'\n');
        let error = spool(folder.path()).read("f.jsonl", endless, take, &stop).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Unavailable);
    }

    #[test]
    fn a_packed_file_that_unpacks_without_end_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let line = [b'\n'; 1 << 20];
        for _ in 0..200 {
            packed.write_all(&line).unwrap();
        }
        let packed = packed.finish().unwrap();
        assert!(packed.len() < 1 << 20, "{}", packed.len());
        let file = Gunzip::new(packed.as_slice(), packed.len() as u64);
        let error = spool(folder.path()).read("s3://b/logs/a.json.gz", file, take, &StopFlag::default()).unwrap_err();
        assert!(error.message().contains("s3://b/logs/a.json.gz: it unpacks to more than"), "{error}");
    }

    #[test]
    fn prompts_are_on_disk_as_they_are_read_and_not_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let questions = folder.path().join(QUESTIONS);
        let line = format!("{{\"prompt\": \"{}\"}}\n", "x".repeat(1000));
        let read = Cell::new(0);
        let take = |prompt: &str| {
            let on_disk = std::fs::metadata(&questions).unwrap().len();
            // A buffer of the writer is all that memory holds.
            assert!(on_disk + (1 << 18) >= read.get(), "{on_disk} of {} bytes", read.get());
            read.set(read.get() + 1000);
            Asked::parse(prompt).map(Some)
        };
        let mut spool = spool(folder.path());
        spool.read("f.jsonl", line.repeat(2000).as_bytes(), take, &StopFlag::default()).unwrap();
        assert_eq!((spool.unanswered, read.get()), (2000, 2_000_000));
        let mut questions = spool.questions().unwrap();
        assert_eq!(questions.next(3000).unwrap().len(), 2000);
    }
}
