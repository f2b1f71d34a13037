//! Where the prompts come from: a file of records, or a folder of invocation logs. What is of no use is written
//! down with its place and the reason, and does not fail the job (AWS keeps the valid prompts of a set, too).

use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::super::super::retry::patiently;
use super::super::super::run::Attempt;
use crate::data::jsonl::{Content, Fault, Lines};
use crate::data::{Asked, BadLine, Logged, MetadataFilters, Question};
use crate::error::{Error, Result};
use crate::objects::Uri;

/// Prompts as they are read.
pub(super) struct Prompts {
    asked: Vec<Asked>,
    left_out: u64,
    report: BufWriter<std::fs::File>,
}

impl Prompts {
    /// None yet; `report` gets a line for everything that is left out.
    pub(super) fn new(report: &Path) -> Result<Self> {
        Ok(Self { asked: Vec::new(), left_out: 0, report: BufWriter::new(std::fs::File::create(report)?) })
    }

    /// The prompts, and how many lines were left out.
    pub(super) fn finish(mut self) -> Result<(Vec<Asked>, u64)> {
        self.report.flush()?;
        Ok((self.asked, self.left_out))
    }

    /// Takes the records of a file. An answer beside a prompt is not learned: the teacher's is.
    pub(super) async fn records(&mut self, attempt: &Attempt, uri: &str) -> Result<()> {
        let path = attempt.work_dir.join("data").join("prompts");
        let from = Uri::parse(uri)?;
        patiently(&attempt.halt, "downloading the prompts", async || attempt.objects.get_to_file(&from, &path).await)
            .await?;
        let file = std::fs::File::open(&path)?;
        self.read(uri, file, |line| Asked::parse(line).map(|asked| Some(Asked { answer: None, ..asked })))
    }

    /// Takes the requests of all log files under `folder` that the filters take; of those to `teacher`, if one is
    /// given, their answers.
    pub(super) async fn logs(
        &mut self,
        attempt: &Attempt,
        folder: &Uri,
        filters: &MetadataFilters,
        teacher: Option<&str>,
    ) -> Result<()> {
        let (objects, halt) = (&attempt.objects, &attempt.halt);
        let mut pages = objects.list(folder);
        let path = attempt.work_dir.join("data").join("log");
        // Pages come in the order of keys: every attempt reads the same prompts in the same order.
        while let Some(page) = patiently(halt, "listing the logs", async || pages.next().await).await? {
            for log in page.into_iter().filter(|log| is_log(log.uri.key())) {
                patiently(halt, "downloading a log", async || objects.get_to_file(&log.uri, &path).await).await?;
                let file = BufReader::new(std::fs::File::open(&path)?);
                let take = |line: &str| of_log(line, filters, teacher);
                let name = log.uri.to_string();
                match name.ends_with(".gz") {
                    true => self.read(&name, MultiGzDecoder::new(file), take)?,
                    false => self.read(&name, file, take)?,
                }
            }
        }
        Ok(())
    }

    /// Takes what `take` finds in each line; a line without a fault and without a prompt is passed over.
    fn read(
        &mut self,
        name: &str,
        file: impl Read,
        take: impl Fn(&str) -> std::result::Result<Option<Asked>, Fault>,
    ) -> Result<()> {
        let unreadable = |cause: std::io::Error| {
            Error::validation(format!("Unable to read {name}: {cause}. Give JSON Lines, or gzip of them."))
        };
        let mut lines = Lines::new(file).map_err(unreadable)?;
        while let Some(line) = lines.next_line().map_err(unreadable)? {
            let taken = match line.content {
                Content::Blank => continue,
                Content::Bad(fault) | Content::Unreadable(fault) => Err(fault),
                Content::Text(text) => take(&text),
            };
            let fault = match taken {
                Ok(None) => continue,
                Ok(Some(asked)) => match self.asked.first() {
                    Some(first) if !first.question.is_like(&asked.question) => Fault {
                        column: None,
                        reason: format!("the prompt is {}, the first one is not", kind(&asked.question)),
                        class: crate::data::jsonl::Class::Format,
                    },
                    _ => {
                        self.asked.push(asked);
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
}

fn kind(question: &Question) -> &'static str {
    match question {
        Question::Text(_) => "a plain text",
        Question::Turn { .. } => "a turn of a conversation",
    }
}

/// Bedrock writes logs as `….json.gz`, large bodies beside them under `data/`.
fn is_log(key: &str) -> bool {
    let ends = [".json.gz", ".jsonl.gz", ".json", ".jsonl"];
    ends.iter().any(|end| key.ends_with(end)) && !key.contains("/data/")
}

fn of_log(line: &str, filters: &MetadataFilters, teacher: Option<&str>) -> std::result::Result<Option<Asked>, Fault> {
    let logged = Logged::parse(line)?;
    if !filters.take(&logged.metadata) {
        return Ok(None);
    }
    let Some(teacher) = teacher else { return Ok(Some(Asked { answer: None, ..logged.asked })) };
    let unusable = |reason: String| Fault { column: None, reason, class: crate::data::jsonl::Class::Format };
    if name_of(&logged.model) != name_of(teacher) {
        return Err(unusable(format!("the logged answer is {}'s, not the teacher's", logged.model)));
    }
    match logged.asked.answer {
        Some(_) => Ok(Some(logged.asked)),
        None => Err(unusable("the logged answer was cut, or is not text alone".into())),
    }
}

/// The last part of an ARN, or an id.
fn name_of(model: &str) -> &str {
    model.rsplit('/').next().unwrap_or(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_told_from_what_lies_beside_them() {
        assert!(is_log("p/AWSLogs/0/BedrockModelInvocationLogs/us-east-1/2026/01/01/00/20260101T000000_a.json.gz"));
        assert!(!is_log("p/AWSLogs/0/BedrockModelInvocationLogs/us-east-1/2026/01/01/00/data/a_input.json.gz"));
        assert!(!is_log("p/amazon-bedrock-logs-permission-check"));
    }

    #[test]
    fn logged_answers_are_taken_of_the_teacher_alone() {
        let line = r#"{"schemaType": "ModelInvocationLog", "modelId": "arn:aws:bedrock:us-east-1::foundation-model/a.b",
            "input": {"inputBodyJson": {"prompt": "Q"}}, "output": {"outputBodyJson": {"generation": "A"}}}"#;
        let filters = MetadataFilters::default();
        let of = |teacher| of_log(line, &filters, teacher);
        assert_eq!(of(Some("a.b")).unwrap().unwrap().answer.as_deref(), Some("A"));
        assert_eq!(of(None).unwrap().unwrap().answer, None);
        assert!(of(Some("c.d")).unwrap_err().reason.contains("not the teacher's"));
    }
}
