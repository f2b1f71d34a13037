//! The hyperparameters of what is trained: the tuning method with its options.

use super::Values;
use crate::error::{Error, Result};
use crate::models::Projection;
use crate::tune::{
    Activation, AdapterConfig, Arrangement, LlamaAdapterConfig, LoraConfig, PrefixConfig, PromptConfig, TuningMethod,
    VirtualTokens,
};

impl Values<'_> {
    pub(super) fn method(&self) -> Result<TuningMethod> {
        let virtual_tokens = self.size("virtualTokens")?.unwrap_or(20);
        Ok(match self.word("tuningMethod")?.as_deref() {
            Some("qlora") => TuningMethod::Qlora(self.lora()?),
            Some("adapter") => TuningMethod::Adapter(self.bottleneck()?),
            Some("prefix") => {
                let projected = self.truth("prefixProjection")?;
                let inner = self.size("prefixHiddenSize")?;
                if inner.is_some() && !projected {
                    return Err(Error::validation("prefixHiddenSize has no effect without prefixProjection true"));
                }
                if projected && (self.0.contains_key("virtualTokensInit") || self.0.contains_key("virtualTokensText")) {
                    return Err(Error::validation(
                        "with prefixProjection true the prefix is what a new net makes: leave virtualTokensInit and \
                         virtualTokensText out",
                    ));
                }
                // 0 stands for the model's width, which is not known here.
                let projection = projected.then_some(inner.unwrap_or(0));
                TuningMethod::Prefix(PrefixConfig { tokens: virtual_tokens, begin: self.begin()?, projection })
            }
            Some("prompt") => TuningMethod::Prompt(PromptConfig { tokens: virtual_tokens, begin: self.begin()? }),
            Some("llama_adapter") => TuningMethod::LlamaAdapter(LlamaAdapterConfig {
                length: self.size("adapterLength")?.unwrap_or(10),
                layers: self.size("adapterLayers")?,
            }),
            Some("head") => TuningMethod::Head,
            Some("full") => TuningMethod::Full,
            _ => TuningMethod::Lora(self.lora()?),
        })
    }

    fn lora(&self) -> Result<LoraConfig> {
        let rank = self.size("loraRank")?.unwrap_or(16);
        Ok(LoraConfig {
            rank,
            alpha: self.number("loraAlpha")?.unwrap_or(2.0 * rank as f64),
            dropout: self.number("loraDropout")?.unwrap_or(0.0) as f32,
            rank_stabilized: self.truth("rsLora")?,
            magnitudes: self.truth("dora")?,
            targets: self.projections()?,
        })
    }

    fn bottleneck(&self) -> Result<AdapterConfig> {
        let named = self.word("adapterArchitecture")?;
        let arrangement = Arrangement::ALL.into_iter().find(|one| Some(one.name()) == named.as_deref());
        let mut config = AdapterConfig::of(arrangement.unwrap_or(Arrangement::Pfeiffer));
        if let Some(factor) = self.number("adapterReductionFactor")? {
            config.reduction_factor = factor;
        }
        let named = self.word("adapterNonLinearity")?;
        if let Some(activation) = Activation::ALL.into_iter().find(|one| Some(one.name()) == named.as_deref()) {
            config.activation = activation;
        }
        Ok(config)
    }

    fn begin(&self) -> Result<VirtualTokens> {
        let text = self.checked("virtualTokensText")?.map(str::to_string);
        match self.word("virtualTokensInit")?.as_deref() {
            Some(other @ ("vocabulary" | "random")) if text.is_some() => {
                Err(Error::validation(format!("virtualTokensText has no effect with virtualTokensInit {other}")))
            }
            Some("vocabulary") => Ok(VirtualTokens::Vocabulary),
            Some("random") => Ok(VirtualTokens::Random),
            _ => Ok(VirtualTokens::Text(text)),
        }
    }

    fn projections(&self) -> Result<Vec<Projection>> {
        let wanted = self.word("loraTargetModules")?.unwrap_or_else(|| "all-linear".into());
        let names: Vec<&str> = wanted.split(',').map(str::trim).collect();
        let all = names.contains(&"all-linear");
        Ok(Projection::ALL.into_iter().filter(|one| all || names.contains(&one.name())).collect())
    }
}
