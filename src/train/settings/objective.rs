//! The hyperparameters of what is learned: the objective with its options, and of reinforcement fine-tuning what both
//! algorithms share and what each has; and what such a job cannot be asked for.

use super::super::objective::{
    AdvantageScale, Aggregation, DpoConfig, DpoLoss, GrpoConfig, PpoConfig, TrainingObjective,
};
use super::super::reinforcement::Algorithm;
use super::super::{Effort, Reinforcement};
use super::{Settings, Values};
use crate::error::{Error, Result};
use crate::tune::{TuningMethod, VirtualTokens};

impl Settings {
    /// Whether reinforcement fine-tuning, where that is the objective, can do what is asked for with `method`; `begins`
    /// says that what is trained is new and not an adapter that is tuned further.
    ///
    /// # Errors
    /// `Validation` that says why it cannot.
    pub(crate) fn check_reinforcement(&self, method: &TuningMethod, begins: bool) -> Result<()> {
        let TrainingObjective::Reinforcement(options) = self.objective else { return Ok(()) };
        if let (Some(option), TuningMethod::Full) = (options.algorithm.held_by(), method) {
            return Err(Error::validation(format!(
                "{option} holds the policy to the base with the adapter switched off; with tuningMethod full there is no \
                 base left: set {option} 0, or tune an adapter"
            )));
        }
        if self.save_optimizer_state || self.continue_optimizer_state {
            return Err(Error::validation(
                "saveOptimizerState and continueOptimizerState are not for reinforcement fine-tuning: leave them out",
            ));
        }
        if begins && matches!(method.begin(), Some(VirtualTokens::Text(_))) {
            return Err(Error::validation(format!(
                "tuningMethod {} begins as a text, which prompts do not give: set virtualTokensInit vocabulary or random",
                method.name()
            )));
        }
        Ok(())
    }
}

impl Values<'_> {
    pub(super) fn objective(&self, method: &TuningMethod) -> Result<TrainingObjective> {
        match self.word("trainingObjective")?.as_deref() {
            Some("dpo") => {
                let named = self.word("dpoLoss")?;
                let loss = DpoLoss::ALL.into_iter().find(|one| Some(one.name()) == named.as_deref());
                let loss = loss.unwrap_or(DpoLoss::Sigmoid);
                let smoothing = self.number("labelSmoothing")?;
                match (loss, smoothing) {
                    (DpoLoss::Hinge | DpoLoss::Ipo, Some(share)) if share > 0.0 => {
                        return Err(Error::validation(format!(
                            "labelSmoothing has no effect with dpoLoss {}: it belongs to sigmoid and robust",
                            loss.name()
                        )));
                    }
                    (DpoLoss::Robust, None) => {
                        return Err(Error::validation(
                            "dpoLoss robust needs labelSmoothing: the share of the pairs that is taken to be labelled \
                             the wrong way round",
                        ));
                    }
                    _ => {}
                }
                let beta = self.number("dpoBeta")?.unwrap_or(0.1);
                Ok(TrainingObjective::Dpo(DpoConfig { loss, beta, label_smoothing: smoothing.unwrap_or(0.0) }))
            }
            Some("grpo") => Ok(TrainingObjective::Reinforcement(self.reinforcement(false)?)),
            Some("ppo") => Ok(TrainingObjective::Reinforcement(self.reinforcement(true)?)),
            Some("reward") => match method {
                TuningMethod::Lora(_) | TuningMethod::Qlora(_) => Ok(TrainingObjective::Reward),
                other => Err(Error::validation(format!(
                    "trainingObjective reward trains a low-rank adapter with a head for one number: tuningMethod must be \
                     lora or qlora, not {}",
                    other.name()
                ))),
            },
            _ => Ok(TrainingObjective::Sft),
        }
    }

    /// With PPO, or with GRPO.
    fn reinforcement(&self, is_ppo: bool) -> Result<Reinforcement> {
        let (algorithm, samples, updates) =
            if is_ppo { (Algorithm::Ppo(self.ppo()?), 1, 4) } else { (Algorithm::Grpo(self.grpo()?), 8, 1) };
        let samples_per_prompt = self.size("trainingSamplePerPrompt")?.unwrap_or(samples);
        if samples_per_prompt < 2 && !is_ppo {
            return Err(Error::validation(
                "trainingSamplePerPrompt 1 leaves GRPO nothing to compare an answer with: give 2 or more, or set \
                 rlAlgorithm ppo",
            ));
        }
        let effort = self.word("reasoningEffort")?;
        Ok(Reinforcement {
            algorithm,
            samples_per_prompt,
            max_prompt_tokens: self.size("maxPromptLength")?,
            max_answer_tokens: self.size("inferenceMaxTokens")?,
            top_p: self.number("samplingTopP")?.unwrap_or(1.0) as f32,
            top_k: self.size("samplingTopK")?,
            updates_per_batch: self.size("updatesPerBatch")?.unwrap_or(updates),
            failure_limit: self.number("graderFailureLimit")?.unwrap_or(0.1),
            effort: Effort::ALL.into_iter().find(|one| Some(one.name()) == effort.as_deref()),
        })
    }

    fn grpo(&self) -> Result<GrpoConfig> {
        let (aggregation, scale) = (self.word("lossAggregation")?, self.word("advantageScaling")?);
        let usual = GrpoConfig::default();
        let clip_low = self.number("clipEpsilon")?.unwrap_or(usual.clip_low);
        Ok(GrpoConfig {
            clip_low,
            clip_high: self.number("clipEpsilonHigh")?.unwrap_or(clip_low),
            kl_beta: self.number("klBeta")?.unwrap_or(usual.kl_beta),
            aggregation: Aggregation::ALL
                .into_iter()
                .find(|one| Some(one.name()) == aggregation.as_deref())
                .unwrap_or(usual.aggregation),
            scale: AdvantageScale::ALL
                .into_iter()
                .find(|one| Some(one.name()) == scale.as_deref())
                .unwrap_or(usual.scale),
            temperature: self.number("samplingTemperature")?.unwrap_or(usual.temperature),
        })
    }

    fn ppo(&self) -> Result<PpoConfig> {
        let usual = PpoConfig::default();
        let number = |name: &str, usual: f64| Ok::<_, Error>(self.number(name)?.unwrap_or(usual));
        Ok(PpoConfig {
            clip: number("clipEpsilon", usual.clip)?,
            value_clip: number("valueClipEpsilon", usual.value_clip)?,
            value_coef: number("valueLossCoef", usual.value_coef)?,
            kl_coef: number("klCoef", usual.kl_coef)?,
            gamma: number("gaeGamma", usual.gamma)?,
            lambda: number("gaeLambda", usual.lambda)?,
            temperature: number("samplingTemperature", usual.temperature)?,
        })
    }
}
