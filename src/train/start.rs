//! Where a run begins: with a new adapter by its settings, or with one that an earlier run left, and then
//! perhaps with that run's moments of the optimizer.

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::sources::Sources;
use super::{Base, Plan, TrainingObjective};
use crate::data::corpus::sha256_of;
use crate::error::{Error, Result};
use crate::models::{Decoder, DecoderConfig};
use crate::tune::{LoraConfig, Method, TuningMethod, WEIGHT_FILES, new_score, read_adapter};

/// The file among a run's outputs that holds the optimizer's moments.
pub const OPTIMIZER_STATE: &str = "optimizer_state.safetensors";

impl Plan {
    /// The moments to go on with, if that is asked for.
    pub(super) fn moments(&self) -> Option<&Path> {
        self.optimizer_state.as_deref().filter(|_| self.settings.continue_optimizer_state)
    }
}

/// What is trained on this base.
///
/// # Errors
/// When the run goes on from an adapter that it cannot go on from, or that is not what the settings say, or is to be
/// merged and cannot be.
pub(super) fn method_of(plan: &Plan, base: &DecoderConfig) -> Result<TuningMethod> {
    let method = begun(plan, base)?;
    plan.settings.check_merging(&method)?;
    // Said now, and not when the training is done.
    plan.settings.check_merging_into(base)?;
    if plan.settings.merged_weights && !matches!(plan.base, Base::Directory(_)) {
        return Err(Error::validation("mergedWeights true needs a base that lies in a folder, not one that is drawn"));
    }
    Ok(method)
}

fn begun(plan: &Plan, base: &DecoderConfig) -> Result<TuningMethod> {
    let Some(dir) = &plan.start else {
        if plan.settings.continue_optimizer_state && plan.settings.method != TuningMethod::Full {
            return Err(Error::validation(
                "continueOptimizerState true needs a custom model as the base: there is no earlier state to go on with",
            ));
        }
        return plan.settings.method.on(base);
    };
    let found = read_adapter(dir, base, &Device::Cpu, false)?;
    if let Some(why) = found.fixed {
        return Err(Error::validation(format!("The custom model cannot be tuned further: {why}")));
    }
    if found.tuning.score().is_some() && plan.settings.objective != TrainingObjective::Reward {
        return Err(Error::validation(
            "The custom model is a reward model, which is tuned further with trainingObjective reward only",
        ));
    }
    let wanted = &plan.settings.method.on(base)?;
    let dropout = match wanted {
        TuningMethod::Lora(config) | TuningMethod::Qlora(config) => config.dropout,
        _ => 0.0,
    };
    // Dropout belongs to a run, not to the adapter.
    let method = match found.method {
        TuningMethod::Lora(config) => TuningMethod::Lora(LoraConfig { dropout, ..config }),
        TuningMethod::Qlora(config) => TuningMethod::Qlora(LoraConfig { dropout, ..config }),
        other => other,
    };
    if plan.settings.method_given && !same(wanted, &method) {
        return Err(Error::validation(format!(
            "The custom model was tuned by {method:?}, and is tuned further so: leave tuningMethod and its options \
             out, or give the same"
        )));
    }
    Ok(method)
}

/// Whether the settings describe the adapter; what virtual tokens began as is not written in one.
fn same(wanted: &TuningMethod, found: &TuningMethod) -> bool {
    match (wanted, found) {
        (TuningMethod::Prefix(_), TuningMethod::Prefix(_)) | (TuningMethod::Prompt(_), TuningMethod::Prompt(_)) => {
            wanted.virtual_tokens() == found.virtual_tokens()
        }
        (TuningMethod::LlamaAdapter(wanted), TuningMethod::LlamaAdapter(found)) => {
            wanted.length == found.length && (wanted.layers.is_none() || wanted.layers == found.layers)
        }
        _ => wanted == found,
    }
}

/// The method on its base, with the parameters that it begins with.
pub(super) fn method(plan: &Plan, sources: &Sources, decoder: &Decoder) -> Result<Box<dyn Method>> {
    method_on(plan, (&sources.method, sources.text.as_deref()), decoder)
}

/// The same of a method and the tokens that its virtual tokens begin as.
pub(super) fn method_on(
    plan: &Plan,
    (wanted, text): (&TuningMethod, Option<&[u32]>),
    decoder: &Decoder,
) -> Result<Box<dyn Method>> {
    let mut method = match &plan.start {
        Some(dir) => {
            let mut adapter = read_adapter(dir, decoder.config(), decoder.device(), true)?;
            adapter.tuning.set_dropout(wanted);
            adapter.tuning
        }
        None => wanted.build(decoder, text, plan.seed())?,
    };
    if plan.settings.objective == TrainingObjective::Reward && method.score().is_none() {
        method.take_score(&new_score(decoder.config().hidden_size, plan.seed(), decoder.device())?)?;
    }
    Ok(method)
}

/// A digest of what the run begins with; empty for a new adapter.
pub(super) fn digest(plan: &Plan) -> Result<String> {
    let Some(dir) = &plan.start else { return Ok(String::new()) };
    let mut files: Vec<PathBuf> = WEIGHT_FILES.iter().map(|name| dir.join(name)).collect();
    files.push(dir.join("adapter_config.json"));
    files.extend(plan.moments().map(Path::to_path_buf));
    let present = files.iter().filter(|file| file.exists());
    Ok(present.map(|file| sha256_of(file)).collect::<Result<Vec<_>>>()?.join(" "))
}
