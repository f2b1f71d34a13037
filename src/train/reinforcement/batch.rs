//! The graded answers of one step, and what an algorithm makes of them before the updates.

use super::super::objective::{Criterion, deviation, mean};
use super::rollout::Trajectory;
use crate::data::{MicroBatch, PromptRecord, share_out};
use crate::infer::StopReason;

/// What is measured of a step's answers, in the order of the columns.
pub(super) const METRICS: [&str; 5] =
    ["reward", "reward_std", "completions/mean_length", "completions/clipped_ratio", "grader/failed"];

/// The graded answers of one step.
pub(super) struct Batch<'a> {
    /// What was asked.
    pub(super) prompts: Vec<&'a PromptRecord>,
    /// What was answered: prompt by prompt, as many answers to each.
    pub(super) answers: Vec<Trajectory>,
    /// What each answer is worth, where it was graded.
    pub(super) rewards: Vec<Option<f64>>,
    /// How many answers each prompt has.
    pub(super) group: usize,
}

/// What an algorithm makes of a batch.
pub(super) struct Taught {
    /// The loss of its answers, by their places.
    pub(super) criterion: Box<dyn Criterion>,
    /// What the algorithm measured of the batch, in the order of its columns.
    pub(super) measured: Vec<(&'static str, f64)>,
}

/// What a batch teaches, and by which of its answers.
pub(super) struct Lesson {
    /// The loss of its answers, by their places.
    pub(super) criterion: Box<dyn Criterion>,
    /// The places of those that move something.
    pub(super) counting: Vec<usize>,
    /// These, cut into micro-batches.
    pub(super) micros: Vec<MicroBatch>,
    /// What the algorithm measured of the batch, in the order of its columns.
    pub(super) measured: Vec<(&'static str, f64)>,
}

impl<'a> Batch<'a> {
    /// `group` answers to each of `prompts`.
    pub(super) fn new(prompts: Vec<&'a PromptRecord>, answers: Vec<Trajectory>, group: usize) -> Self {
        let rewards = answers.iter().map(Trajectory::reward).collect();
        Self { prompts, answers, rewards, group: group.max(1) }
    }

    /// How many answers were not graded.
    pub(super) fn failed(&self) -> usize {
        self.rewards.iter().filter(|reward| reward.is_none()).count()
    }

    /// Tokens drawn, answer by answer.
    pub(super) fn lengths(&self) -> Vec<usize> {
        self.answers.iter().map(|one| one.completion.tokens.len()).collect()
    }

    /// Tokens of this answer and its prompt.
    fn tokens(&self, at: usize) -> usize {
        let one = &self.answers[at];
        self.prompts[one.prompt].tokens.len() + one.completion.tokens.len()
    }

    /// Tokens of all answers, each with its prompt.
    pub(super) fn all_tokens(&self) -> usize {
        (0..self.answers.len()).map(|at| self.tokens(at)).sum()
    }

    /// These answers behind their prompts, cut into `parts` or into more where a micro-batch would have more than
    /// `most` tokens. A record's number is the answer's place.
    pub(super) fn micro_batches(&self, counting: &[usize], parts: usize, most: usize) -> Vec<MicroBatch> {
        let shares = share_out(counting.to_vec(), parts, most, |at| self.tokens(at));
        shares.into_iter().map(|places| self.micro_batch(places)).collect()
    }

    fn micro_batch(&self, places: Vec<usize>) -> MicroBatch {
        let mut micro = MicroBatch { records: places, ..MicroBatch::default() };
        for at in &micro.records {
            let prompt = &self.prompts[self.answers[*at].prompt].tokens;
            let tokens = [&prompt[..], &self.answers[*at].completion.tokens].concat();
            let labels = (1..tokens.len()).map(|next| (next >= prompt.len()).then_some(tokens[next]));
            micro.labels.extend(labels.chain([None]));
            micro.lengths.push(tokens.len());
            micro.tokens.extend(tokens);
        }
        micro
    }

    /// The deviation of the rewards of each group.
    pub(super) fn deviations(&self) -> Vec<f64> {
        self.rewards.chunks(self.group).map(deviation).collect()
    }

    /// The means that stand in the metrics file, in the order of [`METRICS`].
    pub(super) fn measures(&self) -> Vec<(&'static str, f64)> {
        let answers = self.answers.len().max(1) as f64;
        // Answers that have no company are compared with all.
        let deviations = if self.group > 1 { self.deviations() } else { vec![deviation(&self.rewards)] };
        let cut = self.answers.iter().filter(|one| one.completion.stop_reason != StopReason::EndTurn).count() as f64;
        let values = [
            mean(&self.rewards),
            deviations.iter().sum::<f64>() / deviations.len().max(1) as f64,
            mean_length(&self.answers),
            cut / answers,
            self.failed() as f64,
        ];
        METRICS.into_iter().zip(values).collect()
    }
}

/// The mean number of tokens of an answer.
pub(super) fn mean_length(played: &[Trajectory]) -> f64 {
    let tokens: usize = played.iter().map(|one| one.completion.tokens.len()).sum();
    tokens as f64 / played.len().max(1) as f64
}
