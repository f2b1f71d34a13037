//! The hyperparameters of reinforcement fine-tuning: what both algorithms share, and the options of each.

use super::super::objective::{AdvantageScale, Aggregation, GrpoConfig, PpoConfig};
use super::super::reinforcement::Algorithm;
use super::super::{Effort, Reinforcement};
use super::Values;
use crate::error::{Error, Result};

impl Values<'_> {
    /// With PPO, or with GRPO.
    pub(super) fn reinforcement(&self, is_ppo: bool) -> Result<Reinforcement> {
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
