//! A device that has no memory left: the run goes on with smaller micro-batches, and remembers it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;

use super::steps::{golden_tokens, with_method};
use super::*;
use crate::kernels::Weight;
use crate::models::{Site, Tuning};
use crate::train::checkpoint;
use crate::train::identity::RunIdentity;
use crate::train::learner::Steps;
use crate::train::run::Run;
use crate::tune::{Method, Trainable};

/// A method on a device that holds only so many rows.
pub(in crate::train) struct Short {
    pub(in crate::train) inner: Box<dyn Method>,
    pub(in crate::train) rows: Arc<AtomicUsize>,
}

impl Tuning for Short {
    fn linear(&self, site: Site, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> candle_core::Result<Tensor> {
        if x.dim(0)? > self.rows.load(Ordering::Relaxed) {
            return Err(candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into()));
        }
        self.inner.linear(site, x, weight, bias)
    }
}

impl Method for Short {
    fn trainables(&self) -> &[Trainable] {
        self.inner.trainables()
    }
}

const GIVEN: [(&str, &str); 2] = [("batchSize", "3"), ("learningRate", "0.01")];

/// The golden run on a device that holds `rows` rows, which the test may change.
fn on_a_short_device(rows: usize, test: impl FnOnce(&mut Run<'_>, &AtomicUsize)) {
    let rows = Arc::new(AtomicUsize::new(rows));
    let device = rows.clone();
    let wrap = |inner: Box<dyn Method>| -> Box<dyn Method> { Box::new(Short { inner, rows }) };
    with_method(&GIVEN, wrap, |run| test(run, &device));
}

fn values(run: &Run<'_>) -> Vec<Vec<f32>> {
    run.learner.weights().iter().map(|(_, tensor)| tensor.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

#[test]
fn a_run_that_meets_too_little_memory_ends_as_one_that_was_cut_smaller_from_that_step_on() {
    let mut listener = Listener::default();
    let (mut weights, mut budget) = (Vec::new(), 0);
    on_a_short_device(usize::MAX, |run, rows| {
        let first = run.step(&mut listener, &StopFlag::default()).unwrap().unwrap();
        // One row less than a step has.
        rows.store(first.tokens as usize - 1, Ordering::Relaxed);
        for _ in 1..4 {
            run.step(&mut listener, &StopFlag::default()).unwrap().unwrap();
        }
        (weights, budget) = (values(run), run.learner.state.token_budget);
        run.save(&mut ()).unwrap();
        let kept = checkpoint::newest(&run.learner.plan.checkpoints(), &RunIdentity::named("run"), &mut |_| {})
            .unwrap()
            .unwrap();
        assert_eq!(kept.state.token_budget, first.tokens as usize / 2, "a run that goes on is cut the same way");
    });
    assert_eq!(listener.warnings.len(), 1);
    assert!(listener.warnings[0].starts_with("step 1: the device has no memory for"), "{:?}", listener.warnings);
    on_a_short_device(usize::MAX, |run, _| {
        run.step(&mut (), &StopFlag::default()).unwrap().unwrap();
        run.cut_to(budget);
        for _ in 1..4 {
            run.step(&mut (), &StopFlag::default()).unwrap().unwrap();
        }
        assert_eq!(values(run), weights);
    });
}

#[test]
fn a_tight_run_finds_out_before_its_first_step() {
    on_a_short_device(usize::MAX, |run, rows| {
        let whole = run.learner.resolved.token_budget;
        run.try_largest(0, &mut (), &StopFlag::default()).unwrap();
        assert_eq!((run.learner.state.step, run.learner.state.token_budget), (0, whole), "what fits changes nothing");
        let largest = golden_tokens();
        rows.store(largest - 1, Ordering::Relaxed);
        let mut listener = Listener::default();
        run.try_largest(0, &mut listener, &StopFlag::default()).unwrap();
        assert_eq!((run.learner.state.step, run.learner.state.token_budget), (0, largest / 2));
        assert_eq!(listener.warnings.len(), 1);
    });
}

#[test]
fn a_record_that_fits_no_device_ends_the_run_with_what_to_change() {
    on_a_short_device(1, |run, _| {
        let error = run.step(&mut (), &StopFlag::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Validation);
        assert!(error.message().contains("no memory left for a single record"), "{error}");
        assert!(error.is_out_of_memory(), "the log keeps the device's own words");
    });
}

#[test]
fn other_errors_are_not_taken_for_a_lack_of_memory() {
    let of = |text: &str| crate::error::Error::from(candle_core::Error::Msg(text.into()));
    assert!(of("CublasError(CUBLAS_STATUS_ALLOC_FAILED)").is_out_of_memory());
    assert!(!of("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")").is_out_of_memory());
    assert!(!crate::error::Error::validation("CUDA_ERROR_OUT_OF_MEMORY").is_out_of_memory());
}
