//! LoRA (Hu et al. 2021, arXiv 2106.09685) as `peft` computes it: y = Wx + b + s·B·A·dropout(x) with
//! the base frozen, A drawn uniformly, B zero, so that training starts from the base model exactly. Its
//! form DoRA (Liu et al. 2024, arXiv 2402.09353) trains the length of every row of the tuned weight by
//! itself: y = m/‖W + s·B·A‖ · (W + s·B·A)x + b. Over a base in NF4 either is QLoRA.

mod merge;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use candle_core::Tensor;

use super::parameters::{Parameters, zeros};
use super::{Method, Place, Trainable, TuningMethod, score};
use crate::error::{Error, Result};
use crate::kernels::{self, Dropout, Weight};
use crate::models::{Decoder, DecoderConfig, LowRank, Projection, Site, Tuning};
use crate::rng;

/// What `peft` puts before the module's name in an adapter.
pub(super) const PREFIX: &str = "base_model.model.";

/// What a LoRA is made with; the defaults are today's norm for small adapters: rank 16 on every
/// linear map but the output head, s = 1.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank `r` of the update.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Chance that an input element is dropped in training.
    pub dropout: f32,
    /// s = alpha / √r instead of alpha / r (Kalajdzievski 2023, arXiv 2312.03732).
    pub rank_stabilized: bool,
    /// The length of every row of the tuned weights trains by itself (DoRA).
    pub magnitudes: bool,
    /// Which maps of every layer are tuned; [`Projection::ALL`] of them means all that the base has.
    pub targets: Vec<Projection>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 16.0,
            dropout: 0.0,
            rank_stabilized: false,
            magnitudes: false,
            targets: Projection::ALL.to_vec(),
        }
    }
}

impl LoraConfig {
    /// The factor `s` before the update of a map with this rank.
    pub fn scale(&self, rank: usize) -> f64 {
        let rank = rank as f64;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }

    /// The same with the targets that it comes to on this base, in the order they run.
    ///
    /// # Errors
    /// When it names a target that the base does not have; the message lists those it has.
    pub fn on(&self, base: &DecoderConfig) -> Result<Self> {
        let has = base.projections();
        let missing = self.targets.iter().find(|target| !has.contains(target));
        if let Some(missing) = missing.filter(|_| self.targets != Projection::ALL) {
            let names: Vec<_> = has.iter().copied().map(Projection::name).collect();
            return Err(Error::validation(format!(
                "the base model has no target module {}; it has {}",
                missing.name(),
                names.join(", ")
            )));
        }
        let targets = has.iter().copied().filter(|projection| self.targets.contains(projection)).collect();
        Ok(Self { targets, ..self.clone() })
    }
}

/// The update of one linear map.
struct Update {
    /// `[r, in]`.
    a: Tensor,
    /// `[out, r]`.
    b: Tensor,
    scale: f64,
    magnitude: Option<Magnitude>,
}

/// What DoRA adds to an update.
struct Magnitude {
    /// m, `[out]`.
    lengths: Tensor,
    /// The squared rows of the base's weight, which do not change.
    squares: OnceLock<Vec<f64>>,
    /// m/‖W + s·B·A‖ of one that does not train.
    stretch: OnceLock<Tensor>,
}

/// Low-rank updates of a decoder's linear maps.
pub struct Lora {
    config: LoraConfig,
    updates: BTreeMap<Site, Update>,
    trainables: Vec<Trainable>,
    /// Of a reward model.
    score: Option<Tensor>,
}

impl Lora {
    /// A new LoRA for training: A from U(-1/√in, 1/√in), which is `peft`'s kaiming-uniform with
    /// a = √5; B zero; the lengths of DoRA those of the base's rows. The same seed gives the same A.
    ///
    /// # Errors
    /// When the rank is 0, nothing is targeted or something that the base does not have, or the dropout is
    /// outside `[0, 1)`.
    pub fn new(decoder: &Decoder, config: LoraConfig, seed: u64) -> Result<Self> {
        let config = config.on(decoder.config())?;
        let parameters = Parameters::new(seed, decoder.device());
        let (rank, scale) = (config.rank, config.scale(config.rank));
        let ranks = sites(decoder.config().layers, &config.targets).map(|site| (site, (rank, scale))).collect();
        let lengths = |site| match decoder.weight(site) {
            Some(weight) => Ok(kernels::row_squares(weight)?.into_iter().map(|square| square.sqrt() as f32).collect()),
            None => Err(Error::internal(anyhow::anyhow!("the decoder has no {}", site.name()))),
        };
        Self::build(decoder.config(), config, &ranks, parameters, lengths)
    }

    /// With the rank and scale of every tuned map.
    pub(super) fn build(
        base: &DecoderConfig,
        config: LoraConfig,
        ranks: &BTreeMap<Site, (usize, f64)>,
        parameters: Parameters<'_>,
        lengths: impl Fn(Site) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        if config.rank == 0 || config.targets.is_empty() {
            return Err(Error::validation("a LoRA needs a rank of at least 1 and at least one target module"));
        }
        if !(0.0..1.0).contains(&config.dropout) {
            return Err(Error::validation(format!("the LoRA dropout is {}; it must be in [0, 1)", config.dropout)));
        }
        let mut updates = BTreeMap::new();
        for (site, (rank, scale)) in ranks {
            let (outputs, inputs) = base.sizes(site.projection);
            let (a_name, b_name) = names(*site);
            let place = Place::Layer(site.layer);
            let bound = 1.0 / (inputs as f32).sqrt();
            let a =
                parameters.take(&a_name, &[*rank, inputs], place, |rng| rng.uniforms(rank * inputs, -bound, bound))?;
            let b = parameters.take(&b_name, &[outputs, *rank], place, zeros(outputs * rank))?;
            let magnitude = if config.magnitudes {
                let begin = if parameters.are_new() { lengths(*site)? } else { Vec::new() };
                let lengths = parameters.take(&magnitude_name(*site), &[outputs], place, |_| begin)?;
                Some(Magnitude { lengths, squares: OnceLock::new(), stretch: OnceLock::new() })
            } else {
                None
            };
            updates.insert(*site, Update { a, b, scale: *scale, magnitude });
        }
        Ok(Self { config, updates, trainables: parameters.into_trainables(), score: None })
    }

    /// What it was made with.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }
}

/// Every targeted map, layer by layer, in the order of the targets.
pub(super) fn sites(layers: usize, targets: &[Projection]) -> impl Iterator<Item = Site> {
    (0..layers).flat_map(move |layer| targets.iter().map(move |projection| Site { layer, projection: *projection }))
}

/// The names of A and B in the artifact.
pub(super) fn names(site: Site) -> (String, String) {
    let module = site.name();
    (format!("{PREFIX}{module}.lora_A.weight"), format!("{PREFIX}{module}.lora_B.weight"))
}

/// The name of DoRA's lengths in the artifact.
pub(super) fn magnitude_name(site: Site) -> String {
    format!("{PREFIX}{}.lora_magnitude_vector", site.name())
}

impl Update {
    /// m/‖W + s·B·A‖, `[out]`; only m is tracked.
    fn stretch(&self, magnitude: &Magnitude, weight: &Weight) -> candle_core::Result<Tensor> {
        let trains = [&self.a, &self.b, &magnitude.lengths].iter().any(|part| part.track_op());
        if let Some(stretch) = magnitude.stretch.get().filter(|_| !trains) {
            return Ok(stretch.clone());
        }
        let squares = match magnitude.squares.get() {
            Some(squares) => squares,
            None => {
                let squares = kernels::row_squares(weight)?;
                magnitude.squares.get_or_init(|| squares)
            }
        };
        let stretch = (&magnitude.lengths / kernels::row_norms(weight, squares, &self.a, &self.b, self.scale)?)?;
        if !trains {
            let _ = magnitude.stretch.set(stretch.clone());
        }
        Ok(stretch)
    }

    fn apply(
        &self,
        x: &Tensor,
        weight: &Weight,
        bias: Option<&Tensor>,
        dropout: Option<&Dropout>,
    ) -> candle_core::Result<Tensor> {
        let Some(magnitude) = &self.magnitude else {
            return kernels::lora_linear(x, weight, bias, &self.a, &self.b, self.scale, dropout);
        };
        let stretch = self.stretch(magnitude, weight)?;
        let tuned = |x: &Tensor| kernels::lora_linear(x, weight, None, &self.a, &self.b, self.scale, None);
        let y = match dropout {
            None => tuned(x)?.broadcast_mul(&stretch)?,
            // peft drops the input of all that is added to the base: Wx + (c - 1)·W·drop(x) + c·s·B·A·drop(x).
            Some(dropout) => {
                let dropped = dropout.apply(x)?;
                let added = (tuned(&dropped)?.broadcast_mul(&stretch)? - weight.apply(&dropped, None)?)?;
                (weight.apply(x, None)? + added)?
            }
        };
        match bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

impl Lora {
    fn tuned(
        &self,
        dropout_key: Option<u64>,
        site: Site,
        x: &Tensor,
        weight: &Weight,
        bias: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        let Some(update) = self.updates.get(&site) else {
            return weight.apply(x, bias);
        };
        let dropout = dropout_key.filter(|_| self.config.dropout > 0.0).map(|key| {
            let place = (site.layer * Projection::ALL.len() + site.projection as usize) as u64;
            Dropout { probability: self.config.dropout, key: rng::key(key, "lora dropout", place) }
        });
        update.apply(x, weight, bias, dropout.as_ref())
    }
}

impl Tuning for Lora {
    fn linear(&self, site: Site, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> candle_core::Result<Tensor> {
        self.tuned(None, site, x, weight, bias)
    }

    fn low_rank(&self, site: Site, weight: &Weight) -> candle_core::Result<Option<LowRank>> {
        let Some(update) = self.updates.get(&site) else { return Ok(None) };
        let stretch = update.magnitude.as_ref().map(|magnitude| update.stretch(magnitude, weight)).transpose()?;
        Ok(Some(LowRank { a: update.a.clone(), b: update.b.clone(), scale: update.scale, stretch }))
    }
}

/// One training pass: a LoRA with the masks that fall on it.
struct Pass<'a> {
    lora: &'a Lora,
    dropout_key: u64,
}

impl Tuning for Pass<'_> {
    fn linear(&self, site: Site, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> candle_core::Result<Tensor> {
        self.lora.tuned(Some(self.dropout_key), site, x, weight, bias)
    }
}

impl Method for Lora {
    fn trainables(&self) -> &[Trainable] {
        &self.trainables
    }

    fn set_dropout(&mut self, method: &TuningMethod) {
        if let TuningMethod::Lora(config) | TuningMethod::Qlora(config) = method {
            self.config.dropout = config.dropout;
        }
    }

    fn pass(&self, dropout_key: u64) -> Option<Box<dyn Tuning + '_>> {
        Some(Box::new(Pass { lora: self, dropout_key }))
    }

    fn settle(&mut self) -> Result<()> {
        self.trainables.clear();
        for Update { a, b, magnitude, .. } in self.updates.values_mut() {
            (*a, *b) = (a.detach(), b.detach());
            if let Some(magnitude) = magnitude {
                magnitude.lengths = magnitude.lengths.detach();
            }
            if b.device().is_cpu() {
                // A step of decoding adds up the columns of B.
                *b = b.t()?.contiguous()?.t()?;
            }
        }
        Ok(())
    }

    fn merged_weights(&self) -> Result<Vec<String>> {
        self.updated_weights()
    }

    fn merge_rows(&self, weight: &str, first: usize, values: &mut [f32]) -> Result<()> {
        self.update_rows(weight, first, values)
    }

    fn score(&self) -> Option<&Tensor> {
        self.score.as_ref()
    }

    fn take_score(&mut self, weight: &Tensor) -> Result<()> {
        let trainable = score::trainable(weight)?;
        self.score = Some(trainable.var.as_tensor().clone());
        self.trainables.retain(|one| one.name != trainable.name);
        self.trainables.push(trainable);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::json;

    use super::*;
    use crate::models::{Form, Frozen};
    use crate::rng::Rng;

    fn base() -> DecoderConfig {
        let file = json!({"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1});
        DecoderConfig::parse(&file.to_string()).unwrap()
    }

    fn decoder() -> Decoder {
        Decoder::random(base(), 1, &Device::Cpu, Form::Frozen).unwrap()
    }

    fn logits(decoder: &Decoder, tuning: &dyn Tuning) -> Vec<f32> {
        decoder.logits(&[1, 2, 3], &[3], tuning).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_new_lora_leaves_the_base_as_it_is_and_names_its_weights_as_peft_does() {
        let decoder = decoder();
        let config = LoraConfig { rank: 2, targets: vec![Projection::Value, Projection::Query], ..Default::default() };
        let lora = Lora::new(&decoder, config, 7).unwrap();
        let names: Vec<_> = lora.trainables().iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), 8);
        assert_eq!(names[0], "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
        assert_eq!(names[7], "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight");
        assert_eq!(lora.trainables()[0].var.dims(), [2, 8]);
        assert_eq!(lora.trainables()[3].var.dims(), [4, 2]);
        assert_eq!(logits(&decoder, &lora), logits(&decoder, &Frozen));
    }

    #[test]
    fn a_stays_within_its_bounds_and_follows_the_seed() {
        let make = |seed| Lora::new(&decoder(), LoraConfig::default(), seed).unwrap();
        let values =
            |lora: &Lora, i: usize| -> Vec<f32> { lora.trainables[i].var.flatten_all().unwrap().to_vec1().unwrap() };
        let lora = make(3);
        let bound = 1.0 / 8f32.sqrt();
        let a = values(&lora, 0);
        assert!(a.iter().all(|v| v.abs() <= bound) && a.iter().any(|v| v.abs() > 0.9 * bound));
        assert!(values(&lora, 1).iter().all(|v| *v == 0.0));
        assert_eq!(a, values(&make(3), 0));
        assert_ne!(a, values(&make(4), 0));
        assert_ne!(a, values(&lora, 2), "two maps of one layer start differently");
    }

    #[test]
    fn setting_a_weight_changes_the_answer_and_dropout_only_acts_in_a_training_pass() {
        let decoder = decoder();
        let config = LoraConfig { rank: 2, dropout: 0.5, ..Default::default() };
        let lora = Lora::new(&decoder, config, 7).unwrap();
        let b = &lora.trainables()[1].var;
        b.set(&b.ones_like().unwrap()).unwrap();
        let without = logits(&decoder, &lora);
        assert_ne!(without, logits(&decoder, &Frozen));
        let first = logits(&decoder, &*lora.pass(1).unwrap());
        assert_ne!(first, without);
        assert_eq!(first, logits(&decoder, &*lora.pass(1).unwrap()));
        assert_ne!(first, logits(&decoder, &*lora.pass(2).unwrap()));
        assert_eq!(without, logits(&decoder, &lora));
    }

    #[test]
    fn a_settled_lora_answers_the_same() {
        let decoder = decoder();
        for (magnitudes, rank) in [(false, 3), (true, 3), (false, 8), (true, 16)] {
            let config = LoraConfig { rank, magnitudes, ..Default::default() };
            let mut lora = Lora::new(&decoder, config, 7).unwrap();
            for one in &lora.trainables {
                let noise = Rng::new(7, &one.name, 0).normals(one.var.elem_count(), 0.1);
                one.var.set(&Tensor::from_vec(noise, one.var.dims(), &Device::Cpu).unwrap()).unwrap();
            }
            let before = logits(&decoder, &lora);
            assert_ne!(before, logits(&decoder, &Frozen));
            lora.settle().unwrap();
            let after = logits(&decoder, &lora);
            assert!(after.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-5), "{after:?} {before:?}");
            assert!(lora.updates.values().all(|update| !update.b.is_contiguous() && !update.b.track_op()));
        }
    }

    #[test]
    fn a_new_dora_leaves_the_base_as_it_is_with_and_without_dropout() {
        let decoder = decoder();
        let config = LoraConfig { rank: 2, magnitudes: true, dropout: 0.3, ..Default::default() };
        let lora = Lora::new(&decoder, config, 7).unwrap();
        assert_eq!(lora.trainables()[2].name, "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector");
        let base = logits(&decoder, &Frozen);
        for tuned in [logits(&decoder, &lora), logits(&decoder, &*lora.pass(3).unwrap())] {
            assert!(tuned.iter().zip(&base).all(|(a, b)| (a - b).abs() < 1e-5), "{tuned:?} {base:?}");
        }
    }

    #[test]
    fn the_scale_follows_the_rank_and_its_stabilized_form_the_root() {
        let mut config = LoraConfig { rank: 4, alpha: 8.0, ..Default::default() };
        assert_eq!(config.scale(4), 2.0);
        config.rank_stabilized = true;
        assert_eq!(config.scale(4), 4.0);
    }

    #[test]
    fn settings_that_make_no_lora_are_refused() {
        for config in [
            LoraConfig { rank: 0, ..Default::default() },
            LoraConfig { targets: vec![], ..Default::default() },
            LoraConfig { dropout: 1.0, ..Default::default() },
        ] {
            assert!(Lora::new(&decoder(), config, 0).is_err());
        }
    }

    #[test]
    fn all_targets_are_those_of_the_base_and_others_are_refused_with_what_it_has() {
        let file = json!({"model_type": "phi3", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2});
        let phi3 = DecoderConfig::parse(&file.to_string()).unwrap();
        let phi3 = Decoder::random(phi3, 1, &Device::Cpu, Form::Frozen).unwrap();
        let lora = Lora::new(&phi3, LoraConfig::default(), 0).unwrap();
        let names: Vec<_> = lora.trainables().iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names[0], "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight");
        assert_eq!(names[5], "base_model.model.model.layers.0.mlp.gate_up_proj.lora_B.weight");
        assert_eq!((lora.config().targets.as_slice(), names.len()), (phi3.config().projections(), 8));
        assert_eq!((lora.trainables()[1].var.dims(), lora.trainables()[5].var.dims()), (&[24, 16][..], &[24, 16][..]));

        let config = LoraConfig { targets: vec![Projection::Output, Projection::Query], ..Default::default() };
        let error = Lora::new(&phi3, config, 0).err().unwrap();
        assert_eq!(
            error.message(),
            "the base model has no target module q_proj; it has qkv_proj, o_proj, gate_up_proj, down_proj"
        );
        assert_eq!(error.kind(), crate::error::Kind::Validation);
    }
}
