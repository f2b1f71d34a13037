//! For the tests of training: what other libraries computed (`tests/golden/*.py`), as it is committed or, with
//! `TUNESMITH_GOLDEN` set, of a fresh draw; and the policy that trl's trainers of reinforcement begin with.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;

use crate::models::{Decoder, Form, Weights};
use crate::train::backprop::{Gradients, MicroBatch};
use crate::tune::{Method, Trainable, read_adapter};

/// The folder of a fresh draw.
#[expect(clippy::disallowed_methods, reason = "a setting of the test run, not of the service")]
pub(in crate::train) fn fresh() -> Option<PathBuf> {
    std::env::var_os("TUNESMITH_GOLDEN").map(PathBuf::from)
}

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures")
}

/// Where the scripts wrote what is compared with: a folder for each.
pub(in crate::train) fn root() -> PathBuf {
    fresh().unwrap_or_else(committed)
}

/// What `expected.json` in a folder of [`root`] says.
pub(in crate::train) fn read_expected<T: DeserializeOwned>(folder: &str) -> T {
    let text = std::fs::read_to_string(root().join(folder).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The tiny Llama with its trained adapter, which goes on training. A fresh draw has other answers and the same policy.
pub(super) fn policy() -> (Decoder, Box<dyn Method>) {
    let models = committed().join("models");
    let decoder = Decoder::load(&models.join("llama"), &Device::Cpu, Form::Frozen).unwrap();
    let adapter = read_adapter(&models.join("lora/after"), decoder.config(), &Device::Cpu, true).unwrap();
    (decoder, adapter.tuning)
}

/// All answers behind their prompts, as one micro-batch.
pub(super) fn micro_batch(prompts: &[Vec<u32>], answers: &[Vec<u32>]) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for (record, (prompt, answer)) in prompts.iter().zip(answers).enumerate() {
        let tokens = [&prompt[..], answer].concat();
        batch.labels.extend((1..tokens.len()).map(|at| (at >= prompt.len()).then_some(tokens[at])).chain([None]));
        batch.lengths.push(tokens.len());
        batch.records.push(record);
        batch.tokens.extend(tokens);
    }
    batch
}

/// Holds the gradient of everything that trains to the one in `CASE.safetensors` of a folder of [`root`], up to 1e-4 of
/// the largest value of each.
#[track_caller]
pub(super) fn assert_gradients(folder: &str, case: &str, trainables: &[Trainable], gradients: &Gradients) {
    let expected = Weights::open_file(&root().join(folder).join(format!("{case}.safetensors"))).unwrap();
    assert_eq!(expected.names().count(), trainables.len(), "{case}");
    for (one, gradient) in trainables.iter().zip(gradients.sums()) {
        let want = expected.get(&one.name, one.var.dims(), &Device::Cpu).unwrap();
        let worst = worst(gradient.as_ref().unwrap(), &want, 0.0);
        assert!(worst < 1e-4, "{case}: the gradient of {} is off by {worst:e}", one.name);
    }
}

/// All values of a tensor, flat.
pub(in crate::train) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest expected value or to `least`.
#[track_caller]
pub(in crate::train) fn worst(got: &Tensor, want: &Tensor, least: f32) -> f32 {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (values(got), values(want));
    let size = want.iter().fold(least, |size, value| size.max(value.abs()));
    got.iter().zip(&want).fold(0f32, |worst, (got, want)| {
        let difference = (got - want).abs() / size;
        if difference > worst || difference.is_nan() { difference } else { worst }
    })
}
