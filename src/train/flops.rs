//! Floating-point operations of a training step, counted as the field counts them: two for every weight
//! and token forward, two for the gradient of what goes in, two for that of a weight that trains. Frozen
//! weights make LoRA 4N a token instead of 6N. Attention's own products and recomputation are left out, so
//! that the share of a machine's peak (MFU) compares with published figures.

use crate::models::DecoderConfig;
use crate::tune::TuningMethod;

/// What a pass over the model costs for each token, in floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flops {
    /// Of the layers, for every token.
    pub per_token: f64,
    /// Of the output head, for every labelled token.
    pub per_label: f64,
}

impl Flops {
    /// Of one forward and backward pass that trains this base by `method`.
    pub fn of(config: &DecoderConfig, method: &TuningMethod) -> Self {
        let (layer, layers) = (config.layer_weights() as f64, config.layers as f64);
        let through = method.trained_layers(config) as f64;
        // What learning costs beside that: the gradient of the base's own matrices, or all three products of those
        // that stand beside it. Virtual tokens are no matrices.
        let learned = match method {
            TuningMethod::Full => 2.0 * layer * layers,
            TuningMethod::Lora(_) | TuningMethod::Qlora(_) | TuningMethod::Adapter(_) => {
                6.0 * method.trained_values(config) as f64
            }
            _ => 0.0,
        };
        // Forward, the gradient of the head where it trains, and that of what goes in where something below does.
        let passes = if *method == TuningMethod::Full { 3.0 } else { 2.0 };
        let head = (config.vocab_size * config.hidden_size) as f64;
        Self { per_token: 2.0 * layer * (layers + through) + learned, per_label: 2.0 * passes * head }
    }

    /// Of a step over so many tokens, of which so many are labelled.
    pub fn of_step(&self, tokens: u64, labelled: u64) -> f64 {
        self.per_token * tokens as f64 + self.per_label * labelled as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::LoraConfig;

    #[test]
    fn lora_costs_four_full_tuning_six_and_a_new_head_two_for_each_weight_and_token() {
        let file = serde_json::json!({"model_type": "llama", "vocab_size": 30, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2});
        let base = DecoderConfig::parse(&file.to_string()).unwrap();
        let layers = (3 * base.layer_weights()) as f64;
        let lora = TuningMethod::Lora(LoraConfig { rank: 2, ..LoraConfig::default() });
        let added = lora.trained_values(&base) as f64;
        let flops = Flops::of(&base, &lora);
        assert_eq!(flops, Flops { per_token: 4.0 * layers + 6.0 * added, per_label: 4.0 * 240.0 });
        let of = |method| Flops::of(&base, &method);
        assert_eq!(of(TuningMethod::Head), Flops { per_token: 2.0 * layers, per_label: 4.0 * 240.0 });
        assert_eq!(of(TuningMethod::Full), Flops { per_token: 6.0 * layers, per_label: 6.0 * 240.0 });
        assert_eq!(flops.of_step(10, 5), 10.0 * flops.per_token + 5.0 * flops.per_label);
    }
}
