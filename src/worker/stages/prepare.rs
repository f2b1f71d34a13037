//! Brings what the trainer needs into the attempt's folder: the base model's place, the data sets, and
//! the newest whole checkpoint of an earlier attempt.

use std::path::PathBuf;

use super::super::Worker;
use super::super::checkpoints::Checkpoints;
use super::super::retry::retry_unavailable;
use super::super::run::Attempt;
use super::distill;
use crate::app::artifact::{self, Artifact, Files, For};
use crate::error::{Error, Kind, Result};
use crate::objects::Uri;
use crate::store::CustomizationType;
use crate::store::custom_models::{self, CustomModel};
use crate::train::{Base, Memory, OPTIMIZER_STATE, Objective, Plan, Settings, reinforcement_hyper_parameters};

/// Bytes of a file's name that every file system takes.
const LONGEST_NAME: usize = 255;

/// The plan of this attempt; the same for every attempt of the job, apart from its folder.
pub(crate) async fn plan(worker: &Worker, attempt: &Attempt) -> Result<Plan> {
    let spec = &attempt.claim.job.spec;
    let objective = match spec.customization_type {
        CustomizationType::FineTuning
        | CustomizationType::Distillation
        | CustomizationType::ReinforcementFineTuning => Objective::FineTuning,
        CustomizationType::ContinuedPreTraining => Objective::ContinuedPreTraining,
        other => return Err(Error::validation(format!("This version cannot run jobs of type {other}."))),
    };
    let Some(base) = worker.app.registry.get(&spec.base_model_id) else {
        return Err(Error::validation(format!(
            "The worker that took this job does not have the base model {}. Put its directory into the folder that \
             TUNESMITH_MODELS names on every worker, then create a new job.",
            spec.base_model_id
        )));
    };
    let settings = if spec.customization_type == CustomizationType::ReinforcementFineTuning {
        let rft = spec.customization_config.as_ref().and_then(|config| config.get("rftConfig"));
        let given = reinforcement_hyper_parameters(&spec.hyper_parameters, rft)?;
        Settings::parse(&given, &base.hyper_parameters)?
    } else {
        Settings::parse(&spec.hyper_parameters, &base.hyper_parameters)?
    };
    let (mut dir, mut start, mut optimizer_state) = (base.dir.clone(), None, None);
    if spec.base_model_arn != spec.foundation_model_arn {
        let parent = parent(worker, attempt).await?;
        let fetch = async || artifact::fetch(&worker.app, &Files::from(&parent), For::Job).await;
        let (artifact, hold) = retry_unavailable(&attempt.halt, "fetching the custom model", fetch).await?;
        attempt.keep(hold);
        match artifact {
            Artifact::Whole(folder) => dir = folder,
            Artifact::Adapter(adapter) => start = Some(adapter.dir),
        }
        if settings.continue_optimizer_state {
            optimizer_state = Some(moments(attempt, &parent).await?);
        }
    }

    let data = attempt.work_dir.join("data");
    std::fs::create_dir_all(&data)?;
    let mut teacher = None;
    let training = match spec.customization_type {
        CustomizationType::Distillation => {
            let distilled = distill::data_set(worker, attempt).await?;
            teacher = Some(distilled.teacher);
            distilled.path
        }
        _ => {
            let uri = spec.training_uri().ok_or_else(|| Error::validation("trainingDataConfig.s3Uri is missing"))?;
            let training = data.join(file_name(uri, "training.jsonl"));
            fetch(attempt, uri, &training).await?;
            training
        }
    };
    let mut validation = Vec::new();
    for (n, uri) in spec.validation_uris().into_iter().enumerate() {
        // A folder each: validators may have files of the same name, which stand in messages as they are.
        let folder = data.join(format!("validator-{n}"));
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(file_name(uri, "validation.jsonl"));
        fetch(attempt, uri, &path).await?;
        validation.push(path);
    }

    let plan = Plan {
        base: Base::Directory(dir),
        start,
        optimizer_state,
        quantized: Some(worker.app.config.quantized()),
        base_id: base.id.clone(),
        training,
        validation,
        teacher,
        objective,
        settings,
        seed: u64::try_from(spec.seed).unwrap_or_default(),
        devices: vec![attempt.device],
        work_dir: attempt.work_dir.clone(),
        memory: Memory::host(worker.app.job_memory.unwrap_or_default()),
        clock: worker.app.clock.clone(),
    };
    checkpoints(attempt).download_newest(&plan.checkpoints()).await?;
    Ok(plan)
}

/// The custom model that is tuned further.
async fn parent(worker: &Worker, attempt: &Attempt) -> Result<CustomModel> {
    let spec = &attempt.claim.job.spec;
    let find = async || custom_models::find(&worker.app.db, &spec.account_id, &spec.base_model_arn).await;
    let found = retry_unavailable(&attempt.halt, "looking for the custom model", find).await?;
    found.ok_or_else(|| {
        Error::validation(format!(
            "The custom model {} was deleted before the job could begin. Create a new job with another base model.",
            spec.base_model_arn
        ))
    })
}

/// Brings the optimizer's moments, which lie beside the folder of the artifact.
async fn moments(attempt: &Attempt, parent: &CustomModel) -> Result<PathBuf> {
    let folder = parent.artifact_uri.rsplit_once('/').map_or("", |(folder, _)| folder);
    let uri = format!("{folder}/{OPTIMIZER_STATE}");
    let path = attempt.work_dir.join(OPTIMIZER_STATE);
    match fetch(attempt, &uri, &path).await {
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::AccessDenied) => Err(Error::validation(format!(
            "continueOptimizerState: there is no {uri}. The job that made the custom model keeps its state when it has \
             saveOptimizerState true."
        ))),
        fetched => fetched.map(|()| path),
    }
}

/// Where this attempt keeps its checkpoints.
pub(crate) fn checkpoints(attempt: &Attempt) -> Checkpoints {
    Checkpoints {
        objects: attempt.objects.clone(),
        layout: attempt.layout.clone(),
        attempt: attempt.claim.attempt(),
        halt: attempt.halt.clone(),
    }
}

/// The object's own name, because messages about bad lines name the file; unless no file can have it.
fn file_name<'a>(uri: &'a str, otherwise: &'a str) -> &'a str {
    let fits = |name: &&str| !matches!(*name, "" | "." | "..") && name.len() <= LONGEST_NAME;
    uri.rsplit('/').next().filter(fits).unwrap_or(otherwise)
}

async fn fetch(attempt: &Attempt, uri: &str, path: &std::path::Path) -> Result<()> {
    let uri = Uri::parse(uri)?;
    retry_unavailable(&attempt.halt, "downloading a data set", async || attempt.objects.get_to_file(&uri, path).await)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_set_keeps_its_name_unless_it_has_none() {
        assert_eq!(file_name("s3://b/folder/tickets.jsonl", "x"), "tickets.jsonl");
        assert_eq!(file_name("s3://b/folder/", "x"), "x");
        assert_eq!(file_name("s3://b/..", "x"), "x");
        let longest = "n".repeat(255);
        assert_eq!(file_name(&format!("s3://b/{longest}"), "x"), longest);
        assert_eq!(file_name(&format!("s3://b/{longest}n"), "x"), "x", "an object's name may be longer than a file's");
    }
}
