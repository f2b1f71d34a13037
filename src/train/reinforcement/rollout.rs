//! Answers sampled from the policy as it is now, and their grades.

use serde_json::{Value, json};

use super::super::{Graded, Grader, Sample, StopFlag};
use crate::data::PromptRecord;
use crate::error::Result;
use crate::infer::{Batch, Completion, Request, Sampling, StopReason, complete};
use crate::models::{Decoder, Tokenizer, Tuning};

/// One sampled answer with its grade.
#[derive(Debug, Clone)]
pub(super) struct Trajectory {
    /// Which of the prompts it answers, by its place among those that were asked.
    pub(super) prompt: usize,
    /// The tokens drawn.
    pub(super) completion: Completion,
    /// What they say.
    pub(super) text: String,
    /// How good that is.
    pub(super) graded: Graded,
}

impl Trajectory {
    /// Its reward, if it was graded.
    pub(super) fn reward(&self) -> Option<f64> {
        self.graded.as_ref().ok().map(|grade| grade.reward)
    }
}

/// The policy, and who judges it.
#[derive(Clone, Copy)]
pub(super) struct Stage<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) tuning: &'a dyn Tuning,
    pub(super) tokenizer: &'a Tokenizer,
    /// The longest text, prompt and answer together, in tokens.
    pub(super) context_length: usize,
    /// The most sequences at a time.
    pub(super) at_once: usize,
    pub(super) grader: &'a dyn Grader,
}

impl Stage<'_> {
    /// Answers every prompt in each of the ways that `ways` gives for its place, and has all answers graded; prompt
    /// by prompt, way by way. `name` begins the ids of the samples. `None` when the run was asked to stop.
    pub(super) fn play(
        &self,
        name: &str,
        prompts: &[&PromptRecord],
        ways: impl Fn(usize) -> Vec<Sampling>,
        stop: &StopFlag,
    ) -> Result<Option<Vec<Trajectory>>> {
        let requests: Vec<Request<'_>> = prompts
            .iter()
            .enumerate()
            .map(|(place, prompt)| Request { prompt: &prompt.tokens, ways: ways(place) })
            .collect();
        let mut batch = Batch::new(self.decoder, self.tuning, self.tokenizer.ends(), self.context_length);
        let goes_on = || !stop.is_raised();
        let Some(answers) = complete(&mut batch, &requests, self.at_once, &goes_on)? else { return Ok(None) };
        let mut trajectories = Vec::new();
        for (prompt, answers) in answers.into_iter().enumerate() {
            for completion in answers {
                let spoken = match completion.stop_reason {
                    StopReason::EndTurn => completion.tokens.len().saturating_sub(1),
                    _ => completion.tokens.len(),
                };
                let text = self.tokenizer.decode(&completion.tokens[..spoken], false)?;
                trajectories.push(Trajectory { prompt, completion, text, graded: Err(String::new()) });
            }
        }
        self.grade(name, prompts, &mut trajectories, stop).map(|graded| graded.then_some(trajectories))
    }

    /// Grades all of them; `false` when the run was asked to stop.
    fn grade(
        &self,
        name: &str,
        prompts: &[&PromptRecord],
        trajectories: &mut [Trajectory],
        stop: &StopFlag,
    ) -> Result<bool> {
        let ids: Vec<String> = (0..trajectories.len()).map(|place| format!("{name}-{place}")).collect();
        let messages: Vec<Vec<Value>> = trajectories
            .iter()
            .map(|trajectory| {
                let answer = json!({"role": "assistant", "content": trajectory.text});
                prompts[trajectory.prompt].messages.iter().cloned().chain([answer]).collect()
            })
            .collect();
        let samples: Vec<Sample<'_>> = trajectories
            .iter()
            .enumerate()
            .map(|(place, trajectory)| Sample {
                id: &ids[place],
                messages: &messages[place],
                output: &trajectory.text,
                item: &prompts[trajectory.prompt].item,
            })
            .collect();
        let graded = match self.grader.grade(&samples, stop) {
            Err(_) if stop.is_raised() => return Ok(false),
            graded => graded?,
        };
        let missing = || Err("the grader said nothing of it".to_string());
        let mut graded = graded.into_iter();
        for trajectory in trajectories {
            trajectory.graded = match graded.next().unwrap_or_else(missing) {
                Ok(grade) if !grade.reward.is_finite() => Err(format!("the reward is {}", grade.reward)),
                other => other,
            };
        }
        Ok(true)
    }
}
