//! Floating-point operations of a training step, counted as the field counts them: two for every weight
//! and token forward, two for the gradient of what goes in, two for that of a weight that trains. Frozen
//! weights make LoRA 4N a token instead of 6N. Attention's own products and recomputation are left out, so
//! that the share of a machine's peak (MFU) compares with published figures.

use crate::models::{DecoderConfig, Projection};
use crate::tune::{Place, Trainable, TuningMethod};

/// What a pass over the model costs for each token, in floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flops {
    /// Of the layers, for every token.
    pub per_token: f64,
    /// Of the output head, for every labelled token.
    pub per_label: f64,
}

impl Flops {
    /// Of one forward and backward pass that trains `trainables` by `method`.
    pub fn of(config: &DecoderConfig, method: &TuningMethod, trainables: &[Trainable]) -> Self {
        let lowest = trainables.iter().map(|one| one.place).min().unwrap_or(Place::Top);
        let below = match lowest {
            Place::Embedding => 0,
            Place::Layer(layer) => layer,
            Place::Top => config.layers,
        };
        let layer = layer_weights(config) as f64;
        let frozen = 2.0 * layer * config.layers as f64 + 2.0 * layer * (config.layers - below) as f64;
        // What a value of a matrix costs beside that: its gradient where the base's own trains; all three
        // products where it stands beside the base. Virtual tokens are no matrices.
        let each = match method {
            TuningMethod::Full => 2.0,
            TuningMethod::Lora(_) | TuningMethod::Qlora(_) | TuningMethod::Adapter(_) => 6.0,
            _ => 0.0,
        };
        let in_layers = |one: &&Trainable| matches!(one.place, Place::Layer(_)) && one.var.dims().len() == 2;
        let trained: usize = trainables.iter().filter(in_layers).map(|one| one.var.elem_count()).sum();
        let head_trains = matches!(method, TuningMethod::Full | TuningMethod::Head);
        let head = (config.vocab_size * config.hidden_size) as f64;
        let backward = if lowest < Place::Top { 2.0 } else { 0.0 } + if head_trains { 2.0 } else { 0.0 };
        Self { per_token: frozen + each * trained as f64, per_label: head * (2.0 + backward) }
    }

    /// Of a step over so many tokens, of which so many are labelled.
    pub fn of_step(&self, tokens: u64, labelled: u64) -> f64 {
        self.per_token * tokens as f64 + self.per_label * labelled as f64
    }
}

/// Values in the linear maps of a layer.
pub(super) fn layer_weights(config: &DecoderConfig) -> usize {
    let size = |projection: Projection| {
        let (outputs, inputs) = config.sizes(projection);
        outputs * inputs
    };
    config.projections().iter().copied().map(size).sum()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::{Decoder, Form};
    use crate::tune::{Full, Head, Lora, LoraConfig, Method};

    /// Untied, with 1000 values in each layer's maps apart from LoRA's own.
    fn decoder(form: Form) -> Decoder {
        let file = serde_json::json!({"model_type": "llama", "vocab_size": 30, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2});
        Decoder::random(DecoderConfig::parse(&file.to_string()).unwrap(), 1, &Device::Cpu, form).unwrap()
    }

    #[test]
    fn lora_costs_four_full_tuning_six_and_a_new_head_two_for_each_weight_and_token() {
        let frozen = decoder(Form::Frozen);
        let layers = (3 * layer_weights(frozen.config())) as f64;
        let lora = Lora::new(&frozen, LoraConfig { rank: 2, ..LoraConfig::default() }, 1).unwrap();
        let added: usize = lora.trainables().iter().map(|one| one.var.elem_count()).sum();
        let of = |name: TuningMethod, method: &dyn Method| Flops::of(frozen.config(), &name, method.trainables());
        let flops = of(TuningMethod::Lora(LoraConfig::default()), &lora);
        assert_eq!(flops, Flops { per_token: 4.0 * layers + 6.0 * added as f64, per_label: 4.0 * 240.0 });
        let head = Head::new(&frozen).unwrap();
        assert_eq!(of(TuningMethod::Head, &head), Flops { per_token: 2.0 * layers, per_label: 4.0 * 240.0 });
        let trainable = decoder(Form::Trainable);
        let full = Full::new(&trainable).unwrap();
        assert_eq!(of(TuningMethod::Full, &full), Flops { per_token: 6.0 * layers, per_label: 6.0 * 240.0 });
        assert_eq!(flops.of_step(10, 5), 10.0 * flops.per_token + 5.0 * flops.per_label);
    }
}
