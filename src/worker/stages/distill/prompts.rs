//! Where the prompts come from: a file of records, or a folder of invocation logs. What is of no use is written
//! down with its place and the reason, and does not fail the job (AWS keeps the valid prompts of a set, too).

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::super::retry::retry_unavailable;
use super::super::super::run::Attempt;
use super::gunzip::Gunzip;
use super::spool::Spool;
use crate::data::jsonl::Fault;
use crate::data::{Asked, Logged, MetadataFilters};
use crate::error::{Error, Result};
use crate::objects::Uri;
use crate::train::StopFlag;

/// Prompts as they are read, on threads that may block: a file may take minutes.
pub(super) struct Prompts {
    spool: Arc<Mutex<Spool>>,
    /// What a file is told to end by.
    stop: StopFlag,
}

impl Prompts {
    /// None yet; the prompts go into `folder`.
    pub(super) fn new(folder: &Path, report: &str, answered: &str, stop: StopFlag) -> Result<Self> {
        Ok(Self { spool: Arc::new(Mutex::new(Spool::create(folder, report, answered)?)), stop })
    }

    /// What was read.
    pub(super) fn finish(self) -> Result<Spool> {
        let spool = Arc::into_inner(self.spool).and_then(|spool| spool.into_inner().ok());
        spool.ok_or_else(|| Error::internal(anyhow::anyhow!("prompts are still read")))
    }

    /// Takes the records of a file. An answer beside a prompt is not learned: the teacher's is.
    pub(super) async fn records(&mut self, attempt: &Attempt, uri: &str) -> Result<()> {
        let path = attempt.work_dir.join("data").join("prompts");
        let from = Uri::parse(uri)?;
        retry_unavailable(&attempt.halt, "downloading the prompts", async || {
            attempt.objects.get_to_file(&from, &path).await
        })
        .await?;
        let take = |line: &str| Asked::parse(line).map(|asked| Some(Asked { answer: None, ..asked }));
        self.read(uri.to_string(), path, take).await
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
        while let Some(page) = retry_unavailable(halt, "listing the logs", async || pages.next().await).await? {
            for log in page.into_iter().filter(|log| is_log(log.uri.key())) {
                retry_unavailable(halt, "downloading a log", async || objects.get_to_file(&log.uri, &path).await)
                    .await?;
                let (filters, teacher) = (filters.clone(), teacher.map(str::to_owned));
                let take = move |line: &str| of_log(line, &filters, teacher.as_deref());
                self.read(log.uri.to_string(), path.clone(), take).await?;
            }
        }
        Ok(())
    }

    /// Takes what `take` finds in each line of a file, which is unpacked when its name says that it is packed.
    async fn read(
        &self,
        name: String,
        path: PathBuf,
        take: impl Fn(&str) -> std::result::Result<Option<Asked>, Fault> + Send + 'static,
    ) -> Result<()> {
        let (spool, stop) = (Arc::clone(&self.spool), self.stop.clone());
        let work = move || {
            let file = std::fs::File::open(&path)?;
            let packed = file.metadata()?.len();
            let file = BufReader::new(file);
            let content: Box<dyn Read> =
                if name.ends_with(".gz") { Box::new(Gunzip::new(file, packed)) } else { Box::new(file) };
            let mut spool = spool.lock().map_err(|_| Error::internal(anyhow::anyhow!("reading prompts panicked")))?;
            spool.read(&name, content, take, &stop)
        };
        tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
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
