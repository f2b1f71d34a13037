//! Loss and gradients of a micro-batch, one layer at a time. Where memory has room for them, the graphs of
//! all layers stay from the forward to the backward pass. Otherwise layer-wise recomputation:
//! the forward pass keeps only each layer's input, and the backward pass runs one layer again at a
//! time with its graph. Then memory is one layer's activations, however deep the model is. Which it is,
//! `planner` decides; both ways give the same bits.

use std::borrow::Cow;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, Var};

use super::losses::LossSum;
use super::objective::{Criterion, Sft, Top};
use super::step_parts::{Laps, StepParts};
pub use crate::data::MicroBatch;
use crate::error::Result;
use crate::models::{Decoder, Tuning};
use crate::tune::{Place, Trainable};

/// Gradients of a sum of token losses, one for each trainable in the method's order. Micro-batches
/// add up; dividing once by the number of labelled tokens gives the gradient of the mean.
#[derive(Debug, Clone)]
pub struct Gradients {
    sums: Vec<Option<Tensor>>,
}

impl From<Vec<Option<Tensor>>> for Gradients {
    fn from(sums: Vec<Option<Tensor>>) -> Self {
        Self { sums }
    }
}

impl Gradients {
    /// Nothing yet, for a method's trainables.
    pub fn new(trainables: &[Trainable]) -> Self {
        Self { sums: vec![None; trainables.len()] }
    }

    /// The gradient of each trainable, in order; `None` where no loss reached it.
    pub fn sums(&self) -> &[Option<Tensor>] {
        &self.sums
    }

    /// The same, taken out.
    pub(super) fn into_sums(self) -> Vec<Option<Tensor>> {
        self.sums
    }

    /// Adds those of another micro-batch.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn merge(&mut self, other: Self) -> Result<()> {
        for (index, gradient) in other.sums.into_iter().enumerate() {
            if let Some(gradient) = gradient {
                self.add(index, gradient)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, index: usize, gradient: Tensor) -> Result<()> {
        let gradient = gradient.detach();
        let sum = match self.sums[index].take() {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.sums[index] = Some(sum);
        Ok(())
    }
}

/// Adds the gradients of the summed token losses of `batch` to `into`: [`pass`] with cross entropy.
///
/// # Errors
/// When a token lies outside the vocabulary, or the device fails.
pub fn loss_and_gradients(
    decoder: &Decoder,
    trainables: &[Trainable],
    tuning: &dyn Tuning,
    batch: &MicroBatch,
    into: &mut Gradients,
    keeps: bool,
) -> Result<LossSum> {
    pass(decoder, trainables, tuning, &Sft, batch, into, keeps)
}

/// The first of so many layers that gradients go through on their way down to `lowest`.
fn first_layer(lowest: Place, layers: usize) -> usize {
    match lowest {
        Place::Embedding => 0,
        Place::Layer(layer) => layer,
        Place::Top => layers,
    }
}

/// Makes what the first backward pass would make beside the frozen weights.
pub(super) fn prepare(decoder: &Decoder, trainables: &[Trainable]) {
    // What trains at the top has no frozen weight between itself and the loss.
    if let Some(lowest) = trainables.iter().map(|one| one.place).min().filter(|lowest| *lowest < Place::Top) {
        decoder.prepare_to_pull_back(first_layer(lowest, decoder.config().layers));
    }
}

/// Adds the gradients of what `batch` loses by `criterion` to `into`, with the graphs of all layers in memory
/// or with every layer run again.
///
/// # Errors
/// When a token lies outside the vocabulary, the batch is not what the objective learns from, or the device fails.
pub fn pass(
    decoder: &Decoder,
    trainables: &[Trainable],
    tuning: &dyn Tuning,
    criterion: &dyn Criterion,
    batch: &MicroBatch,
    into: &mut Gradients,
    keeps: bool,
) -> Result<LossSum> {
    let Some(lowest) = trainables.iter().map(|one| one.place).min() else {
        return evaluate(decoder, &[], tuning, criterion, batch);
    };
    let layers = decoder.config().layers;
    let labels = labels_of(batch, tuning.soft_tokens());
    let first = first_layer(lowest, layers);

    // Forward. Below the lowest trained layer nothing has to be kept.
    let mut laps = Laps::begin();
    let packing = decoder.packing(&batch.lengths, tuning)?;
    let mut kept = Vec::with_capacity(layers - first);
    let mut x = decoder.embed(&batch.tokens, &packing, tuning)?.detach();
    for index in 0..layers {
        if index < first {
            x = decoder.layer(index, &x, &packing, tuning)?.detach();
            continue;
        }
        let input = Input::new(x, keeps && lowest < Place::Layer(index))?;
        let y = decoder.layer(index, &input, &packing, tuning)?;
        x = y.detach();
        kept.push((input, keeps.then_some(y)));
    }

    let forward = laps.lap();

    // The top: the objective gives the gradient of the normalised states together with the loss.
    let top = Input::new(x, lowest < Place::Top)?;
    let hidden = decoder.finish(&top)?;
    let result = criterion.loss(&Top {
        hidden: &hidden,
        head: decoder.head(tuning),
        softcap: decoder.config().final_softcap,
        labels: &labels,
        lengths: packing.lengths(),
        records: &batch.records,
        trainables,
        learns: true,
    })?;
    for (index, gradient) in result.grad_weights {
        into.add(index, gradient)?;
    }
    let mut gradient = match &result.grad_hidden {
        Some(upstream) => pull_back(&hidden, upstream, trainables, &top, into)?,
        None => None,
    };

    let head_seconds = laps.lap();

    // The layers, run again from their kept inputs where their graphs were not kept.
    for index in (first..layers).rev() {
        let (Some(upstream), Some((input, graph))) = (gradient.take(), kept.pop()) else { break };
        let (x, y) = match graph {
            Some(y) => (input, y),
            None => {
                let x = Input::new(input.tensor, lowest < Place::Layer(index))?;
                let y = decoder.layer(index, &x, &packing, tuning)?;
                (x, y)
            }
        };
        gradient = pull_back(&y, &upstream, trainables, &x, into)?;
    }

    if let (Place::Embedding, Some(upstream)) = (lowest, gradient) {
        let x = decoder.embed(&batch.tokens, &packing, tuning)?;
        let none = Input::new(upstream.clone(), false)?;
        pull_back(&x, &upstream, trainables, &none, into)?;
    }
    let parts = StepParts { forward, head: head_seconds, backward: laps.lap(), optimizer: 0.0 };
    Ok(LossSum { parts, ..result.loss })
}

/// The summed token losses alone, for evaluation.
///
/// # Errors
/// When a token lies outside the vocabulary, or the device fails.
pub fn loss(decoder: &Decoder, tuning: &dyn Tuning, batch: &MicroBatch) -> Result<LossSum> {
    evaluate(decoder, &[], tuning, &Sft, batch)
}

/// What `batch` loses by `criterion`, without gradients. `trainables` are there for an objective with a weight of
/// its own.
///
/// # Errors
/// When a token lies outside the vocabulary, the batch is not what the objective learns from, or the device fails.
pub fn evaluate(
    decoder: &Decoder,
    trainables: &[Trainable],
    tuning: &dyn Tuning,
    criterion: &dyn Criterion,
    batch: &MicroBatch,
) -> Result<LossSum> {
    let packing = decoder.packing(&batch.lengths, tuning)?;
    let labels = labels_of(batch, tuning.soft_tokens());
    let mut x = decoder.embed(&batch.tokens, &packing, tuning)?.detach();
    for index in 0..decoder.config().layers {
        x = decoder.layer(index, &x, &packing, tuning)?.detach();
    }
    let hidden = decoder.finish(&x)?.detach();
    let top = Top {
        hidden: &hidden,
        head: decoder.head(tuning),
        softcap: decoder.config().final_softcap,
        labels: &labels,
        lengths: packing.lengths(),
        records: &batch.records,
        trainables,
        learns: false,
    };
    Ok(criterion.loss(&top)?.loss)
}

/// The labels of every row: those of a soft prompt have none, its last one included, because a record's
/// first token is never learned.
fn labels_of(batch: &MicroBatch, soft: usize) -> Cow<'_, [Option<u32>]> {
    if soft == 0 {
        return Cow::Borrowed(&batch.labels);
    }
    let mut labels = Vec::with_capacity(batch.labels.len() + soft * batch.lengths.len());
    let mut rest = &batch.labels[..];
    for length in &batch.lengths {
        let (own, later) = rest.split_at(*length);
        labels.extend(std::iter::repeat_n(None, soft).chain(own.iter().copied()));
        rest = later;
    }
    Cow::Owned(labels)
}

/// What a part of the decoder is run on: a variable when something below it trains, so that its
/// gradient comes out, and a plain tensor otherwise, which costs nothing.
struct Input {
    tensor: Tensor,
    tracked: bool,
}

impl Input {
    fn new(tensor: Tensor, tracked: bool) -> Result<Self> {
        let tensor = if tracked { Var::from_tensor(&tensor)?.into_inner() } else { tensor };
        Ok(Self { tensor, tracked })
    }
}

impl std::ops::Deref for Input {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

/// Given d loss / d `output`, adds the gradients of the trainables that this part of the decoder uses and
/// gives back d loss / d `input`, if that is asked for.
fn pull_back(
    output: &Tensor,
    upstream: &Tensor,
    trainables: &[Trainable],
    input: &Input,
    into: &mut Gradients,
) -> Result<Option<Tensor>> {
    if !output.track_op() {
        return Ok(None);
    }
    let mut store = output.apply_op1(Upstream(upstream.clone()))?.backward()?;
    // A weight may be used by several parts: a tied embedding, what all layers of a prefix share.
    for (index, one) in trainables.iter().enumerate() {
        if let Some(gradient) = store.remove(&one.var) {
            into.add(index, gradient)?;
        }
    }
    Ok(if input.tracked { store.remove(input).map(|gradient| gradient.detach()) } else { None })
}

/// Where the backward pass through a part of the decoder begins: a scalar whose gradient with respect to
/// the part's output is the one that came from above.
struct Upstream(Tensor);

impl CustomOp1 for Upstream {
    fn name(&self) -> &'static str {
        "upstream"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), ().into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::{BackendDevice, BackendStorage};
        Ok((x.device().zeros_impl(&().into(), candle_core::DType::F32)?, ().into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::json;

    use super::*;
    use crate::models::{DecoderConfig, Form, Projection};
    use crate::rng::Rng;
    use crate::train::gradcheck::{assert_slopes, shake};
    use crate::tune::{Full, Lora, LoraConfig, Method};

    /// A tied model with head norms: every kind of weight, and one that is used twice.
    fn config() -> DecoderConfig {
        let file = json!({"model_type": "qwen3", "vocab_size": 20, "hidden_size": 12, "intermediate_size": 16,
            "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
            "tie_word_embeddings": true});
        DecoderConfig::parse(&file.to_string()).unwrap()
    }

    fn full() -> (Decoder, Full) {
        let decoder = Decoder::random(config(), 1, &Device::Cpu, Form::Trainable).unwrap();
        let full = Full::new(&decoder).unwrap();
        shake(full.trainables());
        (decoder, full)
    }

    fn lora() -> (Decoder, Lora) {
        let (shaken, _) = full();
        let dir = tempfile::tempdir().unwrap();
        shaken.save(dir.path(), crate::models::Precision::F32).unwrap();
        let decoder = Decoder::load(dir.path(), &Device::Cpu, Form::Frozen).unwrap();
        let lora = LoraConfig { rank: 2, targets: vec![Projection::Query, Projection::Down], ..Default::default() };
        let lora = Lora::new(&decoder, lora, 1).unwrap();
        shake(lora.trainables());
        (decoder, lora)
    }

    fn batch(records: &[usize]) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for record in records {
            let mut rng = Rng::new(9, "record", *record as u64);
            let length = 4 + record * 3;
            let tokens: Vec<u32> = (0..length).map(|_| rng.below(20) as u32).collect();
            batch.labels.extend((1..length).map(|i| (i > 1).then_some(tokens[i])).chain([None]));
            batch.tokens.extend(tokens);
            batch.lengths.push(length);
            batch.records.push(*record);
        }
        batch
    }

    fn run(decoder: &Decoder, method: &dyn Method, batches: &[MicroBatch]) -> (f64, Vec<Vec<f32>>) {
        let mut gradients = Gradients::new(method.trainables());
        let mut loss_sum = 0.0;
        for batch in batches {
            loss_sum +=
                loss_and_gradients(decoder, method.trainables(), method, batch, &mut gradients, true).unwrap().loss_sum;
        }
        let values = |sum: &Option<Tensor>| sum.as_ref().unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (loss_sum, gradients.sums().iter().map(values).collect())
    }

    #[track_caller]
    fn assert_same(a: &(f64, Vec<Vec<f32>>), b: &(f64, Vec<Vec<f32>>)) {
        assert!((a.0 - b.0).abs() < 1e-5 * a.0.abs(), "loss {} and {}", a.0, b.0);
        for (index, (a, b)) in a.1.iter().zip(&b.1).enumerate() {
            let size = a.iter().fold(0f32, |size, value| size.max(value.abs()));
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * size), "gradient {index}: {a:?} and {b:?}");
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        let (decoder, full) = full();
        assert_slopes(&decoder, &full, &Sft, &batch(&[0, 1]), 0.005);
        let (decoder, lora) = lora();
        assert_slopes(&decoder, &lora, &Sft, &batch(&[0, 1]), 0.005);
    }

    #[test]
    fn packed_records_and_micro_batches_give_what_the_records_give_alone() {
        let (decoder, full) = full();
        let together = run(&decoder, &full, &[batch(&[0, 1, 2])]);
        assert_same(&together, &run(&decoder, &full, &[batch(&[0]), batch(&[1]), batch(&[2])]));
        assert_same(&together, &run(&decoder, &full, &[batch(&[2, 0]), batch(&[1])]));
    }

    #[test]
    fn a_layer_that_is_run_again_gives_the_bits_of_a_kept_graph() {
        let (decoder, full) = full();
        let (_, lora) = lora();
        for method in [&full as &dyn Method, &lora] {
            let of = |keeps| {
                let mut gradients = Gradients::new(method.trainables());
                let pass = method.pass(3);
                let hooks: &dyn Tuning = match &pass {
                    Some(pass) => &**pass,
                    None => method,
                };
                let batch = batch(&[0, 2]);
                let sum =
                    loss_and_gradients(&decoder, method.trainables(), hooks, &batch, &mut gradients, keeps).unwrap();
                let bits = |sum: &Option<Tensor>| -> Option<Vec<u32>> {
                    let values: Vec<f32> = sum.as_ref()?.flatten_all().unwrap().to_vec1().unwrap();
                    Some(values.into_iter().map(f32::to_bits).collect())
                };
                (sum, gradients.sums().iter().map(bits).collect::<Vec<_>>())
            };
            let (kept, again) = (of(true), of(false));
            assert!(kept.1.iter().all(Option::is_some));
            assert_eq!(kept, again);
        }
    }

    #[test]
    fn losses_are_told_apart_by_record() {
        let (decoder, lora) = lora();
        let both = loss(&decoder, &lora, &batch(&[0, 2])).unwrap();
        assert_eq!(both.records.iter().map(|record| record.labelled).collect::<Vec<_>>(), [2, 8]);
        assert_eq!(both.labelled, 10);
        for (record, alone) in both.records.iter().zip([0, 2]) {
            let alone = loss(&decoder, &lora, &batch(&[alone])).unwrap();
            assert!((record.loss_sum - alone.loss_sum).abs() < 1e-5 * alone.loss_sum);
        }
    }

    /// Some of the weights of a trainable decoder.
    struct Part(Vec<Trainable>);

    impl Tuning for Part {}

    impl Method for Part {
        fn trainables(&self) -> &[Trainable] {
            &self.0
        }
    }

    #[test]
    fn going_no_deeper_than_needed_changes_no_gradient() {
        let (decoder, full) = full();
        let (_, all) = run(&decoder, &full, &[batch(&[1, 2])]);
        for lowest in [Place::Layer(0), Place::Layer(2), Place::Top] {
            let (kept, expected): (Vec<_>, Vec<_>) =
                full.trainables().iter().cloned().zip(all.clone()).filter(|(one, _)| one.place >= lowest).unzip();
            assert!(!kept.is_empty());
            assert_eq!(run(&decoder, &Part(kept), &[batch(&[1, 2])]).1, expected);
        }
    }

    #[test]
    fn with_nothing_to_train_there_is_a_loss_and_no_gradient() {
        let (decoder, full) = full();
        let (loss_sum, gradients) = run(&decoder, &Part(Vec::new()), &[batch(&[1])]);
        assert!(gradients.is_empty());
        assert!((loss_sum - loss(&decoder, &full, &batch(&[1])).unwrap().loss_sum).abs() < 1e-9);
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_refused() {
        let (decoder, full) = full();
        let mut batch = batch(&[0]);
        batch.tokens[1] = 20;
        let error = loss(&decoder, &full, &batch).unwrap_err();
        assert!(error.message().contains("token id 20 lies outside"), "{error}");
    }
}
