//! A reward model as a grader: a custom model that was trained with `trainingObjective: reward`.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::built_in::finite;
use crate::data::{Conversation, Message, Record, Role, join_blocks};
use crate::error::{Error, Kind, Result};
use crate::infer::{Adapter, Engine, Target};
use crate::train::{Grade, Graded, Grader, Sample, StopFlag};

/// Conversations scored at a time: between them a stop is looked for.
const TOGETHER: usize = 16;

/// One reward model, in memory as long as the engine keeps it.
pub struct RewardModel {
    engine: Arc<Engine>,
    target: Target,
}

impl RewardModel {
    /// The model that `adapter`, which has a head for one number, makes of the base in `base_dir`.
    pub fn new(engine: Arc<Engine>, base_dir: PathBuf, adapter: Adapter) -> Self {
        Self { engine, target: Target { base_dir, context_length: None, adapter: Some(adapter) } }
    }
}

impl Grader for RewardModel {
    fn grade(&self, samples: &[Sample<'_>], stop: &StopFlag) -> Result<Vec<Graded>> {
        let mut grades = Vec::with_capacity(samples.len());
        for samples in samples.chunks(TOGETHER) {
            let goes_on = || if stop.is_raised() { Err(stopped()) } else { Ok(()) };
            goes_on()?;
            let records: Vec<Record> =
                samples.iter().map(|sample| Record::Conversation(conversation(sample.messages))).collect();
            let scores = loop {
                match self.engine.score(&self.target, &records, &goes_on) {
                    // Answers that others wait for hold all memory for models: until they are given.
                    Err(error) if error.kind() == Kind::ModelNotReady => goes_on()?,
                    scores => break scores?,
                }
            };
            let grade = |score: f32| finite(f64::from(score)).map(|reward| Grade { reward, parts: Vec::new() });
            grades.extend(scores.into_iter().map(grade));
        }
        Ok(grades)
    }
}

fn stopped() -> Error {
    Error::unavailable(anyhow::anyhow!("the run was asked to stop"))
}

/// The messages of a sample as the chat template takes them.
fn conversation(messages: &[Value]) -> Conversation {
    let mut conversation = Conversation::default();
    for message in messages {
        let text = match message.get("content") {
            Some(Value::Array(blocks)) => {
                let texts: Vec<&str> = blocks.iter().filter_map(|block| block.get("text")?.as_str()).collect();
                join_blocks(&texts)
            }
            content => content.and_then(Value::as_str).unwrap_or_default().to_string(),
        };
        match message.get("role").and_then(Value::as_str) {
            Some("assistant") => conversation.messages.push(Message { role: Role::Assistant, text }),
            Some("user") => conversation.messages.push(Message { role: Role::User, text }),
            _ => conversation.system = Some(text),
        }
    }
    conversation
}
