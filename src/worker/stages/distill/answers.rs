//! The teacher's answers as they are kept in the output bucket: an attempt writes them under its own folder,
//! and a later one finds those of all attempts before it, so nothing is asked twice.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::info;

use super::super::super::retry::retry_unavailable;
use super::super::super::run::Attempt;
use crate::data::Question;
use crate::error::{Kind, Result};

/// More than the answers to one chunk of prompts take.
const OBJECT_CAP: u64 = 256 << 20;

/// What the teacher said to a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    pub(super) text: String,
    /// It ended by itself, and says something.
    pub(super) ended: bool,
}

/// A line of the objects.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    /// SHA-256 over the teacher, the longest answer and the question.
    key: String,
    #[serde(flatten)]
    answer: Answer,
}

/// The answers so far.
pub(super) struct Answers<'a> {
    attempt: &'a Attempt,
    /// What every key begins with.
    asked: Sha256,
    answers: HashMap<String, Answer>,
    objects: u64,
}

impl<'a> Answers<'a> {
    /// With what earlier attempts kept.
    pub(super) async fn open(attempt: &'a Attempt, teacher: &str, limit: usize) -> Result<Self> {
        let asked = Sha256::new().chain_update(format!("{teacher}\n{limit}\n"));
        let mut answers = HashMap::new();
        let (objects, halt) = (&attempt.objects, &attempt.halt);
        let mut listed = Vec::new();
        for prefix in attempt.layout.attempts() {
            listed
                .extend(retry_unavailable(halt, "listing answers", async || objects.list(&prefix).all().await).await?);
        }
        for object in listed.iter().filter(|object| object.uri.key().contains("/responses/")) {
            let read =
                retry_unavailable(halt, "reading answers", async || objects.get_bytes(&object.uri, OBJECT_CAP).await);
            let bytes = match read.await {
                Ok(bytes) => bytes,
                // Swept away meanwhile, or not ours: it is asked again.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Validation) => continue,
                Err(error) => return Err(error),
            };
            let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
            answers.extend(lines.map(|line| (line.key, line.answer)));
        }
        if !answers.is_empty() {
            info!(job.id = attempt.claim.job.spec.id, answers = answers.len(), "going on with kept answers");
        }
        Ok(Self { attempt, asked, answers, objects: 0 })
    }

    /// The answer to a question, if there is one.
    pub(super) fn get(&self, question: &Question) -> Option<&Answer> {
        self.answers.get(&self.key(question))
    }

    /// Adds answers, which are safe when this returns.
    pub(super) async fn keep(&mut self, given: Vec<(&Question, Answer)>) -> Result<()> {
        let mut bytes = Vec::new();
        let lines = given.into_iter().map(|(question, answer)| Line { key: self.key(question), answer });
        for line in lines.collect::<Vec<_>>() {
            serde_json::to_writer(&mut bytes, &line)?;
            bytes.push(b'\n');
            self.answers.insert(line.key, line.answer);
        }
        let layout = &self.attempt.layout;
        let uri = layout.response(self.attempt.claim.attempt(), self.objects);
        self.objects += 1;
        retry_unavailable(&self.attempt.halt, "keeping answers", async || {
            self.attempt.objects.put_bytes(&uri, bytes.clone(), &layout.put()).await
        })
        .await
    }

    fn key(&self, question: &Question) -> String {
        // A question is two strings at most: it always serialises.
        let text = serde_json::to_string(question).unwrap_or_default();
        hex::encode(self.asked.clone().chain_update(text).finalize())
    }
}
