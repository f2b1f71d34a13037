//! Distillation's own part of a job, between the prompts and the training: the prompts are read, the teacher
//! answers those that have no answer yet, and what comes out is an ordinary data set, from which the student
//! learns. The data set and what was left out lie among the outputs, under `distillation/`.

mod answers;
mod gunzip;
mod prompts;
mod records;
mod spool;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use serde::Deserialize;
use tracing::info;

use self::answers::{Answer, Answers};
use self::prompts::Prompts;
use self::records::Records;
use self::spool::{Questions, Spool};
use super::super::Worker;
use super::super::halt::Reason;
use super::super::retry::retry_unavailable;
use super::super::run::Attempt;
use crate::app::artifact::For;
use crate::app::models::{self, Served};
use crate::data::{MetadataFilters, Question};
use crate::durable;
use crate::error::{Error, Result};
use crate::infer::{Capacity, Engine, Prompt, StopReason, Target};
use crate::jobs::Held;
use crate::jobs::job::Stage;
use crate::objects::Uri;
use crate::store::jobs::Progress;

/// Tokens of an answer, where the request gives no maxResponseLengthForInference (AWS's default).
const MAX_RESPONSE_TOKENS: usize = 1000;
/// Prompts between two uploads of answers: what a killed attempt has to ask again.
const CHUNK: usize = 32;
/// The folder among the outputs.
const FOLDER: &str = "distillation";
/// Prompts with the answers that were learned, one record a line.
const TRAINING_DATA: &str = "training_data.jsonl";
/// What was left out and why, one line each.
const LEFT_OUT: &str = "left_out.jsonl";

/// `customizationConfig`, as far as a teacher is concerned.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CustomizationConfig {
    distillation_config: DistillationConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DistillationConfig {
    teacher_model_config: TeacherModelConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TeacherModelConfig {
    teacher_model_identifier: String,
    max_response_length_for_inference: Option<usize>,
}

/// `trainingDataConfig`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TrainingDataConfig {
    s3_uri: Option<String>,
    invocation_logs_config: Option<InvocationLogsConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InvocationLogsConfig {
    #[serde(default)]
    use_prompt_response: bool,
    invocation_log_source: InvocationLogSource,
    #[serde(default)]
    request_metadata_filters: MetadataFilters,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InvocationLogSource {
    s3_uri: String,
}

/// What a teacher's answers come to.
pub(crate) struct Distilled {
    /// The data set to train on.
    pub(crate) path: PathBuf,
    /// Who taught, as the request named it.
    pub(crate) teacher: String,
}

/// Brings the prompts, and has them answered.
pub(crate) async fn data_set(worker: &Worker, attempt: &Attempt) -> Result<Distilled> {
    let spec = &attempt.claim.job.spec;
    let config = spec.customization_config.as_ref().map_or_else(Default::default, |config| config.0.clone());
    let CustomizationConfig { distillation_config } = serde_json::from_value(config)?;
    let teacher = distillation_config.teacher_model_config;
    let source: TrainingDataConfig = serde_json::from_value(spec.training_data.0.clone())?;

    reach(attempt, Stage::Validation).await?;
    let folder = attempt.work_dir.join("data").join(FOLDER);
    std::fs::create_dir_all(&folder)?;
    let mut prompts = Prompts::new(&folder, LEFT_OUT, TRAINING_DATA, attempt.halt.flag().clone())?;
    match (&source.s3_uri, &source.invocation_logs_config) {
        (_, Some(logs)) => {
            let asked = logs.use_prompt_response.then_some(teacher.teacher_model_identifier.as_str());
            let from = Uri::parse(&logs.invocation_log_source.s3_uri)?;
            prompts.logs(attempt, &from, &logs.request_metadata_filters, asked).await?;
        }
        (Some(uri), None) => prompts.records(attempt, uri).await?,
        (None, None) => return Err(Error::validation("trainingDataConfig.s3Uri is missing")),
    }
    let mut spool = prompts.finish()?;
    let mut questions = spool.questions()?;
    let Spool { unanswered, answered: mut records, left_out, .. } = spool;
    if unanswered == 0 && records.count() == 0 {
        return Err(Error::validation(format!(
            "There is no prompt to distill from: {left_out} were left out{}. A prompt is one user's turn.",
            first_of(&folder.join(LEFT_OUT))
        )));
    }

    reach(attempt, Stage::DataProcessing).await?;
    let limit = teacher.max_response_length_for_inference.unwrap_or(MAX_RESPONSE_TOKENS);
    let mut cut = 0;
    if unanswered > 0 {
        let teacher = &teacher.teacher_model_identifier;
        let found = retry_unavailable(&attempt.halt, "looking for the teacher", async || {
            models::teacher(&worker.app, &spec.account_id, teacher).await
        });
        let found = found.await?.ok_or_else(|| {
            Error::validation(format!("The teacher {teacher} was removed before the job could ask it."))
        })?;
        let served = retry_unavailable(&attempt.halt, "fetching the teacher", async || {
            models::target(&worker.app, &found, For::Job).await
        });
        // What was fetched stays here until the last answer.
        let Served { target, in_use: _in_use } = served.await?;
        let mut answers = Answers::open(attempt, &folder, teacher, limit).await?;
        // An engine of its own: the teacher leaves memory before the student's training begins.
        let engine = Engine::new(Device::Cpu, Capacity::default(), Some(worker.app.config.quantized()));
        let asking = Asking { attempt, engine: Arc::new(engine), target, limit };
        cut = asking.all(&mut questions, unanswered, &mut answers, &mut records).await?;
    }
    let learned = records.finish()?;
    info!(job.id = spec.id, learned, cut, left_out, "the teacher has answered");
    if learned == 0 {
        return Err(Error::validation(format!(
            "None of the teacher's {cut} answers ended within {limit} tokens: set a larger \
             maxResponseLengthForInference."
        )));
    }
    Ok(Distilled { path: folder.join(TRAINING_DATA), teacher: teacher.teacher_model_identifier })
}

/// Puts the data set that was learned among the outputs.
pub(crate) fn keep(attempt: &Attempt) -> Result<()> {
    let from = attempt.work_dir.join("data").join(FOLDER);
    let to = attempt.work_dir.join("output").join(FOLDER);
    std::fs::create_dir_all(&to)?;
    for name in [TRAINING_DATA, LEFT_OUT] {
        durable::copy(&from.join(name), &to.join(name))?;
    }
    Ok(())
}

/// The job's owner sees the stage at once: asking may take hours.
async fn reach(attempt: &Attempt, stage: Stage) -> Result<()> {
    attempt.claim.reach(stage);
    let held =
        retry_unavailable(&attempt.halt, "recording a stage", async || attempt.claim.record_tasks().await).await?;
    still_ours(attempt, held)
}

/// A write that found no row of ours: the job is stopped or another attempt's, which the lease tells soon.
fn still_ours(attempt: &Attempt, held: Held) -> Result<()> {
    match held {
        Held::Yes => Ok(()),
        Held::No => {
            attempt.halt.raise(Reason::Lost);
            Err(Error::unavailable(anyhow::anyhow!("the job is no longer this attempt's")))
        }
    }
}

/// `, the first because …` from the file of what was left out.
fn first_of(left_out: &Path) -> String {
    let mut line = String::new();
    let read = std::fs::File::open(left_out).and_then(|file| BufReader::new(file).read_line(&mut line));
    let first = read.ok().and_then(|_| serde_json::from_str::<serde_json::Value>(&line).ok());
    let reason = first.and_then(|line| Some(line.get("reason")?.as_str()?.to_string()));
    reason.map_or_else(String::new, |reason| format!(", the first because {reason}"))
}

/// A teacher at work.
struct Asking<'a> {
    attempt: &'a Attempt,
    engine: Arc<Engine>,
    target: Target,
    limit: usize,
}

impl Asking<'_> {
    /// Has every question answered, in order; gives how many answers did not end by themselves, which nothing is
    /// to be learned from.
    async fn all(
        &self,
        questions: &mut Questions,
        total: u64,
        answers: &mut Answers<'_>,
        records: &mut Records,
    ) -> Result<u64> {
        let (mut cut, mut done) = (0, 0);
        let mut kept = false;
        loop {
            let chunk = questions.next(CHUNK)?;
            if chunk.is_empty() {
                return Ok(cut);
            }
            let progress = Progress {
                phase: format!("the teacher answers prompt {done} of {total}"),
                step: done,
                total_steps: total,
                ..Progress::default()
            };
            let held = retry_unavailable(&self.attempt.halt, "recording progress", async || {
                // Kept answers are as good as a checkpoint: an attempt that got so far was no failure.
                self.attempt.claim.progress(&progress, kept).await
            })
            .await?;
            still_ours(self.attempt, held)?;
            let missing: Vec<&Question> = chunk.iter().filter(|question| !answers.has(question)).collect();
            kept = !missing.is_empty();
            if kept {
                let given = self.some(&missing).await?;
                answers.keep(missing.into_iter().zip(given).collect()).await?;
            }
            for question in &chunk {
                match answers.get(question)? {
                    Some(Answer { text, ended: true }) => records.push(question, &text)?,
                    _ => cut += 1,
                }
            }
            done += chunk.len() as u64;
        }
    }

    /// The likeliest answers to a few questions, so that every attempt gets the same.
    async fn some(&self, questions: &[&Question]) -> Result<Vec<Answer>> {
        let prompt = |question: &&Question| match question.conversation() {
            Some(conversation) => Prompt::Chat(conversation),
            None => Prompt::Text(question.text().to_string()),
        };
        let prompts: Vec<Prompt> = questions.iter().map(prompt).collect();
        let (engine, target, limit) = (Arc::clone(&self.engine), self.target.clone(), self.limit);
        let flag = self.attempt.halt.flag().clone();
        let work = move || engine.answers(&target, &prompts, limit, &|| !flag.is_raised());
        let answers = tokio::task::spawn_blocking(work).await.map_err(Error::internal)??;
        let answers = answers.ok_or_else(|| Error::unavailable(anyhow::anyhow!("asking the teacher: told to end")))?;
        let kept = |answer: crate::infer::Answer| {
            let ended = answer.stop_reason == StopReason::EndTurn && !answer.text.trim().is_empty();
            Answer { text: answer.text, ended }
        };
        Ok(answers.into_iter().map(kept).collect())
    }
}
