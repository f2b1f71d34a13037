//! The floating-point operations that a pass really does, two for every product and sum: those of layers
//! that are run again and of attention's scores included, so that a measured rate gives the time. (What the
//! field reports as a model's FLOPs leaves both out.)

use crate::models::DecoderConfig;
use crate::tune::TuningMethod;

/// Counts for a base, a method, and a way to go backward.
pub(super) struct Operations<'a> {
    pub(super) base: &'a DecoderConfig,
    pub(super) method: &'a TuningMethod,
    pub(super) keeps_graphs: bool,
}

impl Operations<'_> {
    /// Values of the maps in one layer, and of those that a method multiplies with beside them.
    fn layer(&self) -> (f64, f64) {
        let layers = self.base.layers.max(1) as f64;
        let added = match self.method {
            TuningMethod::Lora(_) | TuningMethod::Qlora(_) | TuningMethod::Adapter(_) => {
                self.method.trained_values(self.base) as f64 / layers
            }
            _ => 0.0,
        };
        (self.base.weight_counts().maps as f64 / layers, added)
    }

    /// Of a layer for so many tokens, the sum of whose records' squared lengths is `squares`.
    fn layer_forward(&self, tokens: f64, squares: f64) -> f64 {
        let (maps, added) = self.layer();
        // Scores and their sums over values, for the half of the pairs that a token sees.
        let attention = 2.0 * (self.base.heads * self.base.head_dim) as f64 * squares;
        2.0 * (maps + added) * tokens + attention
    }

    fn head(&self, labelled: f64) -> f64 {
        2.0 * (self.base.vocab_size * self.base.hidden_size) as f64 * labelled
    }

    /// Without gradients.
    pub(super) fn forward(&self, tokens: f64, labelled: f64, squares: f64) -> f64 {
        self.base.layers as f64 * self.layer_forward(tokens, squares) + self.head(labelled)
    }

    /// With gradients.
    pub(super) fn training(&self, tokens: f64, labelled: f64, squares: f64) -> f64 {
        let (maps, added) = self.layer();
        let layers = self.method.trained_layers(self.base) as f64;
        let attention = 2.0 * (self.base.heads * self.base.head_dim) as f64 * squares;
        let full = *self.method == TuningMethod::Full;
        // Gradients of what goes in, and of weights that train; attention makes its scores again.
        let weights = if full { 2.0 * maps } else { 0.0 } + 3.0 * added;
        let mut backward = (2.0 * (maps + added) + weights) * tokens + 2.5 * attention;
        if !self.keeps_graphs {
            backward += self.layer_forward(tokens, squares);
        }
        // The head's own gradient, and that of what goes into it where something below trains.
        let head = self.head(labelled) * if full { 2.0 } else { 1.0 };
        self.forward(tokens, labelled, squares) + layers * backward + head
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tune::LoraConfig;

    #[test]
    fn a_frozen_weight_costs_four_a_trained_one_six_and_running_a_layer_again_two_more() {
        let file = json!({"model_type": "llama", "vocab_size": 30, "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 3, "num_attention_heads": 2});
        let base = DecoderConfig::parse(&file.to_string()).unwrap();
        let maps = base.weight_counts().maps as f64;
        let head = 240.0;
        let lora = TuningMethod::Lora(LoraConfig { rank: 1, ..LoraConfig::default() });
        let added = lora.trained_values(&base) as f64;
        let of = |method: &TuningMethod, keeps_graphs| {
            Operations { base: &base, method, keeps_graphs }.training(10.0, 5.0, 0.0)
        };
        let expected = 10.0 * (4.0 * maps + 7.0 * added) + 5.0 * 4.0 * head;
        assert!((of(&lora, true) - expected).abs() < 1.0, "{} and {expected}", of(&lora, true));
        assert_eq!(of(&TuningMethod::Full, true), 10.0 * 6.0 * maps + 5.0 * 6.0 * head);
        assert_eq!(of(&TuningMethod::Full, false), 10.0 * 8.0 * maps + 5.0 * 6.0 * head);
        assert_eq!(of(&TuningMethod::Head, true), 10.0 * 2.0 * maps + 5.0 * 4.0 * head);
    }
}
