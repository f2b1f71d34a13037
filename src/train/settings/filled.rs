//! The hyperparameters as names and values again, defaults filled in: what the manifest records.

use std::collections::BTreeMap;

use super::super::Reinforcement;
use super::super::objective::{DpoConfig, GrpoConfig, PpoConfig, TrainingObjective};
use super::super::planner::Decision;
use super::super::reinforcement::Algorithm;
use super::{EarlyStopping, Schedule, Settings};
use crate::models::{Form, Precision, Projection};
use crate::tune::{LoraConfig, PrefixConfig, PromptConfig, TuningMethod, VirtualTokens};

/// What the defaults that depend on data or model came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) steps: u64,
    pub(crate) warmup_steps: u64,
    pub(crate) evaluation_interval: u64,
    pub(crate) max_sequence_length: usize,
    pub(crate) seed: u64,
    /// Into how many parts a batch is cut, so that cores can work on it side by side.
    pub(crate) parts: usize,
    /// The most tokens of a micro-batch, as planned.
    pub(crate) token_budget: usize,
    /// Whether the graphs of all layers are kept from the forward to the backward pass.
    pub(crate) keeps_graphs: bool,
    /// How many micro-batches run side by side, where there are parts.
    pub(crate) lanes: usize,
    /// Whether the optimizer's moments live in the machine's memory and visit the device.
    pub(crate) pages_optimizer: bool,
    /// How the base lies in memory.
    pub(crate) form: Form,
}

impl Resolved {
    /// As the planner decided.
    pub(crate) fn take(&mut self, decision: &Decision) {
        self.token_budget = decision.token_budget;
        self.keeps_graphs = decision.keeps_graphs;
        self.lanes = decision.lanes;
        self.pages_optimizer = decision.pages_optimizer;
    }
}

impl Settings {
    /// Every hyperparameter that has an effect, by its name.
    pub(crate) fn filled(&self, resolved: &Resolved) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        let mut put = |name: &str, value: &dyn ToString| drop(map.insert(name.to_string(), value.to_string()));
        match self.step_count {
            Some(_) => put("stepCount", &resolved.steps),
            None => put("epochCount", &self.epoch_count),
        }
        put("learningRateWarmupSteps", &resolved.warmup_steps);
        self.options(&mut put);
        match resolved.form {
            Form::Frozen => put("computePrecision", &"float32"),
            Form::Bf16 => put("computePrecision", &"bfloat16"),
            Form::Trainable | Form::Nf4 | Form::Served => {}
        }
        if self.merged_weights {
            put("mergedWeights", &true);
        }
        if self.save_optimizer_state {
            put("saveOptimizerState", &true);
        }
        put("maxSequenceLength", &resolved.max_sequence_length);
        put("microBatchTokens", &resolved.token_budget);
        put("evaluationInterval", &resolved.evaluation_interval);
        put("seed", &resolved.seed);
        map
    }

    /// Every hyperparameter that changes what a run comes to, by its name, as it was asked for: what depends on the
    /// data or the machine and was not asked for is left out.
    pub(crate) fn identity(&self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        let mut put = |name: &str, value: &dyn ToString| drop(map.insert(name.to_string(), value.to_string()));
        // Named one by one, so that a new setting is either put here or said to change nothing.
        let Self {
            epoch_count,
            step_count,
            warmup_steps,
            max_sequence_length,
            micro_batch_tokens,
            evaluation_interval,
            compute_precision,
            // Put below.
            batch_size: _,
            learning_rate: _,
            schedule: _,
            early_stopping: _,
            eval_percentage: _,
            objective: _,
            grader: _,
            method: _,
            weight_decay: _,
            max_gradient_norm: _,
            adam_beta1: _,
            adam_beta2: _,
            adam_epsilon: _,
            weight_precision: _,
            continue_optimizer_state: _,
            // The plan's, which a caller's goes before.
            seed: _,
            // What is written beside the result, and when, changes nothing of what is learned.
            checkpoint_interval: _,
            merged_weights: _,
            save_optimizer_state: _,
            method_given: _,
        } = self;
        match step_count {
            Some(steps) => put("stepCount", steps),
            None => put("epochCount", epoch_count),
        }
        for (name, value) in [("learningRateWarmupSteps", warmup_steps), ("evaluationInterval", evaluation_interval)] {
            if let Some(value) = value {
                put(name, value);
            }
        }
        for (name, value) in [("maxSequenceLength", max_sequence_length), ("microBatchTokens", micro_batch_tokens)] {
            if let Some(value) = value {
                put(name, value);
            }
        }
        if let Some(precision) = compute_precision {
            put("computePrecision", &named(*precision));
        }
        self.options(&mut put);
        map
    }

    /// The part of both that depends on nothing else.
    fn options(&self, put: &mut dyn FnMut(&str, &dyn ToString)) {
        put("batchSize", &self.batch_size);
        put("learningRate", &self.learning_rate);
        put(
            "learningRateSchedule",
            &match self.schedule {
                Schedule::Linear => "linear",
                Schedule::Cosine => "cosine",
                Schedule::Constant => "constant",
            },
        );
        if let Some(EarlyStopping { threshold, patience }) = self.early_stopping {
            put("earlyStoppingThreshold", &threshold);
            put("earlyStoppingPatience", &patience);
        }
        if let Some(percentage) = self.eval_percentage {
            put("evalPercentage", &percentage);
        }
        put("weightDecay", &self.weight_decay);
        put("maxGradientNorm", &self.max_gradient_norm.unwrap_or(0.0));
        put("adamBeta1", &self.adam_beta1);
        put("adamBeta2", &self.adam_beta2);
        put("adamEpsilon", &self.adam_epsilon);
        if self.continue_optimizer_state {
            put("continueOptimizerState", &true);
        }
        match self.objective {
            TrainingObjective::Sft => {}
            TrainingObjective::Dpo(DpoConfig { loss, beta, label_smoothing }) => {
                put("trainingObjective", &self.objective.name());
                put("dpoLoss", &loss.name());
                put("dpoBeta", &beta);
                put("labelSmoothing", &label_smoothing);
            }
            TrainingObjective::Reward => put("trainingObjective", &self.objective.name()),
            TrainingObjective::Reinforcement(options) => {
                put("trainingObjective", &self.objective.name());
                put("rlAlgorithm", &options.algorithm.name());
                let Reinforcement { algorithm, samples_per_prompt, top_p, updates_per_batch, failure_limit, .. } =
                    options;
                match algorithm {
                    Algorithm::Grpo(GrpoConfig { clip_low, clip_high, kl_beta, aggregation, scale, .. }) => {
                        put("clipEpsilon", &clip_low);
                        put("clipEpsilonHigh", &clip_high);
                        put("klBeta", &kl_beta);
                        put("lossAggregation", &aggregation.name());
                        put("advantageScaling", &scale.name());
                    }
                    Algorithm::Ppo(PpoConfig { clip, value_clip, value_coef, kl_coef, gamma, lambda, .. }) => {
                        put("clipEpsilon", &clip);
                        put("valueClipEpsilon", &value_clip);
                        put("valueLossCoef", &value_coef);
                        put("klCoef", &kl_coef);
                        put("gaeGamma", &gamma);
                        put("gaeLambda", &lambda);
                    }
                }
                put("trainingSamplePerPrompt", &samples_per_prompt);
                put("samplingTemperature", &algorithm.temperature());
                put("samplingTopP", &top_p);
                put("updatesPerBatch", &updates_per_batch);
                put("graderFailureLimit", &failure_limit);
                let sizes = [
                    ("inferenceMaxTokens", options.max_answer_tokens),
                    ("maxPromptLength", options.max_prompt_tokens),
                    ("samplingTopK", options.top_k),
                ];
                for (name, size) in sizes.into_iter().filter_map(|(name, size)| Some((name, size?))) {
                    put(name, &size);
                }
                if let Some(effort) = options.effort {
                    put("reasoningEffort", &effort.name());
                }
                if let Some(grader) = &self.grader {
                    put("grader", grader);
                }
            }
        }
        put("tuningMethod", &self.method.name());
        match &self.method {
            TuningMethod::Lora(LoraConfig { rank, alpha, dropout, rank_stabilized, magnitudes, targets })
            | TuningMethod::Qlora(LoraConfig { rank, alpha, dropout, rank_stabilized, magnitudes, targets }) => {
                put("loraRank", rank);
                put("loraAlpha", alpha);
                put("loraDropout", dropout);
                put("rsLora", rank_stabilized);
                put("dora", magnitudes);
                let names: Vec<&str> = targets.iter().copied().map(Projection::name).collect();
                let all = *targets == Projection::ALL;
                put("loraTargetModules", &if all { "all-linear".into() } else { names.join(",") });
            }
            TuningMethod::Adapter(config) => {
                put("adapterArchitecture", &config.arrangement.name());
                put("adapterReductionFactor", &config.reduction_factor);
                put("adapterNonLinearity", &config.activation.name());
            }
            TuningMethod::Prefix(PrefixConfig { tokens, projection: Some(inner), .. }) => {
                put("virtualTokens", tokens);
                put("prefixProjection", &true);
                if *inner > 0 {
                    put("prefixHiddenSize", inner);
                }
            }
            TuningMethod::Prefix(PrefixConfig { tokens, begin, .. })
            | TuningMethod::Prompt(PromptConfig { tokens, begin }) => {
                put("virtualTokens", tokens);
                put("virtualTokensInit", &begin.name());
                if let VirtualTokens::Text(Some(text)) = begin {
                    put("virtualTokensText", text);
                }
            }
            TuningMethod::LlamaAdapter(config) => {
                put("adapterLength", &config.length);
                if let Some(layers) = config.layers {
                    put("adapterLayers", &layers);
                }
            }
            TuningMethod::Head => {}
            TuningMethod::Full => {
                put("weightPrecision", &named(self.weight_precision));
            }
        }
    }
}

fn named(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::models::DecoderConfig;

    #[test]
    fn what_the_manifest_records_gives_the_same_run_again() {
        let resolved = |form| Resolved {
            steps: 9,
            warmup_steps: 2,
            evaluation_interval: 3,
            max_sequence_length: 64,
            seed: 5,
            parts: 1,
            token_budget: 512,
            keeps_graphs: true,
            lanes: 1,
            pages_optimizer: false,
            form,
        };
        let base = DecoderConfig::read(Path::new("assets/starter")).unwrap();
        for given in [
            vec![("stepCount", "9"), ("earlyStoppingPatience", "3"), ("learningRateMultiplier", "2")],
            vec![
                ("epochCount", "4"),
                ("tuningMethod", "full"),
                ("weightPrecision", "bfloat16"),
                ("maxGradientNorm", "0"),
            ],
            vec![("tuningMethod", "qlora"), ("dora", "true"), ("loraRank", "3"), ("saveOptimizerState", "true")],
            vec![("dora", "true"), ("mergedWeights", "true")],
            vec![("tuningMethod", "adapter"), ("adapterArchitecture", "houlsby"), ("adapterNonLinearity", "tanh")],
            vec![("tuningMethod", "prefix"), ("virtualTokens", "7"), ("virtualTokensText", "Dear Sir, ")],
            vec![("tuningMethod", "prefix"), ("prefixProjection", "true"), ("prefixHiddenSize", "9")],
            vec![("tuningMethod", "prompt"), ("virtualTokensInit", "vocabulary")],
            vec![("tuningMethod", "llama_adapter"), ("adapterLength", "3"), ("adapterLayers", "2")],
            vec![("tuningMethod", "head"), ("computePrecision", "bfloat16")],
            vec![
                ("trainingObjective", "grpo"),
                ("trainingSamplePerPrompt", "4"),
                ("inferenceMaxTokens", "32"),
                ("clipEpsilonHigh", "0.28"),
                ("lossAggregation", "dr_grpo"),
                ("advantageScaling", "none"),
                ("samplingTopK", "5"),
                ("reasoningEffort", "low"),
                ("grader", "s3://bucket/grader.json"),
            ],
            vec![
                ("trainingObjective", "ppo"),
                ("rlAlgorithm", "ppo"),
                ("clipEpsilon", "0.1"),
                ("valueClipEpsilon", "0.5"),
                ("valueLossCoef", "0.25"),
                ("klCoef", "0"),
                ("gaeGamma", "0.99"),
                ("gaeLambda", "0.9"),
                ("updatesPerBatch", "2"),
            ],
            vec![("trainingObjective", "dpo"), ("dpoLoss", "ipo"), ("dpoBeta", "0.25")],
            vec![("trainingObjective", "dpo"), ("labelSmoothing", "0.125"), ("tuningMethod", "prefix")],
            vec![("trainingObjective", "reward"), ("loraRank", "3")],
            vec![("loraDropout", "0.1"), ("loraTargetModules", "q_proj,v_proj"), ("evalPercentage", "12.5")],
        ] {
            let given = given.into_iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            let settings = Settings::parse(&given, &BTreeMap::new()).unwrap();
            let resolved = resolved(settings.form(&settings.method, &base));
            let filled = settings.filled(&resolved);
            let again = Settings::parse(&filled, &BTreeMap::new()).unwrap();
            assert_eq!(again.filled(&resolved), filled);
            assert_eq!(again.form(&again.method, &base), resolved.form);
            assert_eq!((again.warmup_steps, again.seed), (Some(2), Some(5)));
        }
    }
}
