//! How checkpoints of format 1 know their run: one digest over a text that release 0.1.0 printed of its settings. It
//! is printed here as it was then, whatever the settings have become, so that those runs are finished.

use std::fmt;

use sha2::{Digest, Sha256};

use super::super::{Plan, Settings, TrainingObjective};
use crate::data::Objective;

/// What stood in the text as the program's version.
const VERSION: &str = "0.1.0";

/// The digest of the run.
pub(super) fn digest(plan: &Plan, base: &str, start: &str, training: &str, validation: &[String]) -> String {
    let facts = facts(plan);
    let mut digest = Sha256::new();
    let mut update = |part: &str| {
        digest.update(part);
        digest.update("\n");
    };
    for part in [base, &facts, start] {
        update(part);
    }
    let validation = validation.iter().map(String::as_str);
    match plan.settings.objective {
        TrainingObjective::Reinforcement(_) => validation.chain([training]).for_each(&mut update),
        _ => std::iter::once(training).chain(validation).for_each(&mut update),
    }
    hex::encode(digest.finalize())
}

fn facts(plan: &Plan) -> String {
    let (settings, seed) = (Printed(&plan.settings), plan.seed());
    let objective = match (plan.settings.objective, plan.objective) {
        (TrainingObjective::Reinforcement(_), _) => "reinforcement",
        (_, Objective::FineTuning) => "0",
        (_, Objective::Preferences) => "1",
        (_, Objective::ContinuedPreTraining) => "2",
    };
    format!("{objective} {seed} {settings:?} {VERSION}")
}

/// Settings as `derive(Debug)` printed them.
struct Printed<'a>(&'a Settings);

impl fmt::Debug for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(settings) = self;
        f.debug_struct("Settings")
            .field("epoch_count", &settings.epoch_count)
            .field("step_count", &settings.step_count)
            .field("batch_size", &settings.batch_size)
            .field("learning_rate", &settings.learning_rate)
            .field("warmup_steps", &settings.warmup_steps)
            .field("schedule", &settings.schedule)
            .field("early_stopping", &settings.early_stopping)
            .field("eval_percentage", &settings.eval_percentage)
            .field("objective", &settings.objective)
            .field("grader", &settings.grader)
            .field("method", &settings.method)
            .field("method_given", &settings.method_given)
            .field("weight_decay", &settings.weight_decay)
            .field("max_gradient_norm", &settings.max_gradient_norm)
            .field("adam_beta1", &settings.adam_beta1)
            .field("adam_beta2", &settings.adam_beta2)
            .field("adam_epsilon", &settings.adam_epsilon)
            .field("max_sequence_length", &settings.max_sequence_length)
            .field("micro_batch_tokens", &settings.micro_batch_tokens)
            .field("evaluation_interval", &settings.evaluation_interval)
            .field("checkpoint_interval", &None::<u64>)
            .field("compute_precision", &settings.compute_precision)
            .field("weight_precision", &settings.weight_precision)
            .field("seed", &settings.seed)
            .field("merged_weights", &settings.merged_weights)
            .field("save_optimizer_state", &settings.save_optimizer_state)
            .field("continue_optimizer_state", &settings.continue_optimizer_state)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::plan;
    use super::*;

    /// The digest is over the texts that release 0.1.0 printed of settings of every method and every objective. When
    /// this fails, a type that stands in the text has changed its name or its
    /// members: print the old ones here.
    #[test]
    fn settings_are_printed_as_release_0_1_0_did() {
        let dir = tempfile::tempdir().unwrap();
        let of = |given: &[(&str, &str)]| facts(&plan(dir.path(), given));
        assert_eq!(
            of(&[("stepCount", "7"), ("loraTargetModules", "q_proj"), ("checkpointInterval", "3")]),
            "0 11 Settings { epoch_count: 3, step_count: Some(7), batch_size: 8, learning_rate: 0.0002, warmup_steps: \
             None, schedule: Linear, early_stopping: None, eval_percentage: None, objective: Sft, grader: None, method: \
             Lora(LoraConfig { rank: 16, alpha: 32.0, dropout: 0.0, rank_stabilized: false, magnitudes: false, targets: \
             [Query] }), method_given: true, weight_decay: 0.0, max_gradient_norm: Some(1.0), adam_beta1: 0.9, adam_beta2: \
             0.999, adam_epsilon: 1e-8, max_sequence_length: None, micro_batch_tokens: None, evaluation_interval: None, \
             checkpoint_interval: None, compute_precision: None, weight_precision: F32, seed: None, merged_weights: \
             false, save_optimizer_state: false, continue_optimizer_state: false } 0.1.0"
        );
        let all: [&[(&str, &str)]; 12] = [
            &[("tuningMethod", "qlora"), ("dora", "true"), ("loraDropout", "0.25"), ("rsLora", "true")],
            &[("tuningMethod", "adapter"), ("adapterArchitecture", "houlsby"), ("adapterNonLinearity", "tanh")],
            &[("tuningMethod", "prefix"), ("prefixProjection", "true"), ("prefixHiddenSize", "9")],
            &[("tuningMethod", "prefix"), ("virtualTokensText", "Dear Sir, \"")],
            &[("tuningMethod", "prompt"), ("virtualTokensInit", "random"), ("maxGradientNorm", "0")],
            &[("tuningMethod", "llama_adapter"), ("adapterLayers", "2"), ("learningRateSchedule", "cosine")],
            &[("tuningMethod", "head"), ("computePrecision", "bfloat16"), ("earlyStoppingPatience", "3")],
            &[("tuningMethod", "full"), ("weightPrecision", "bfloat16"), ("evalPercentage", "12.5")],
            &[("trainingObjective", "dpo"), ("dpoLoss", "ipo"), ("seed", "5"), ("mergedWeights", "true")],
            &[("trainingObjective", "reward"), ("maxSequenceLength", "32"), ("microBatchTokens", "64")],
            &[("trainingObjective", "grpo"), ("lossAggregation", "dr_grpo"), ("reasoningEffort", "low")],
            &[("trainingObjective", "ppo"), ("clipEpsilon", "0.1"), ("samplingTopK", "5"), ("grader", "s3://b/g")],
        ];
        let texts: String = all.iter().map(|given| of(given) + "\n").collect();
        assert_eq!(
            hex::encode(Sha256::digest(&texts)),
            "fb66ec6b308af01e4e0ffb67eab7428b386e8416cc5bb12abf05f05c565b93fb",
            "{texts}"
        );
    }
}
