//! Reading adapter directories: ours, and those that `peft` and `adapters` wrote. What they say that
//! changes the numbers and that we do not compute is refused by name.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use candle_core::Device;
use regex::RegexBuilder;
use serde::Deserialize;
use serde_json::Value;

use super::adapter::{Activation, AdapterConfig, Arrangement, BottleneckAdapter};
use super::head::{HEAD, Head};
use super::llama_adapter::{LlamaAdapter, LlamaAdapterConfig};
use super::lora::{Lora, LoraConfig, magnitude_name, names};
use super::parameters::Parameters;
use super::prefix::{PROMPT_EMBEDDINGS, Prefix};
use super::prompt::SoftPrompt;
use super::{Method, PrefixConfig, PromptConfig, SCORE, TuningMethod, VirtualTokens};
use crate::error::{Error, Result};
use crate::models::limits::{
    self, MAX_COMPILED_PATTERN, MAX_LAYERS, MAX_MATCHES, MAX_PATTERN, MAX_PATTERNS, MAX_RANK, MAX_VIRTUAL_TOKENS,
};
use crate::models::{DecoderConfig, Site, Weights};

/// The files that hold an adapter's tensors: of `peft`, and of `adapters`.
pub const WEIGHT_FILES: [&str; 2] = ["adapter_model.safetensors", "adapter.safetensors"];

const CONFIG: &str = "adapter_config.json";

/// The file beside an adapter that was trained over a quantised base: how the base was quantised.
pub const QUANTIZATION: &str = "base_quantization_config.json";

/// The file with the adapter's tensors.
pub fn weight_file(dir: &Path) -> PathBuf {
    let found = WEIGHT_FILES.iter().map(|name| dir.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| dir.join(WEIGHT_FILES[0]))
}

/// Bytes that the tensors of the adapter in `dir` take in memory.
///
/// # Errors
/// When its file is missing or damaged.
pub fn adapter_bytes(dir: &Path) -> Result<u64> {
    let weights = Weights::open_file(&weight_file(dir))?;
    let values = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let values: u64 = weights.names().filter_map(|name| weights.shape(name)).map(values).sum();
    Ok(values.saturating_mul(size_of::<f32>() as u64))
}

/// An adapter in memory.
pub struct Adapter {
    /// What it is and what it was made with.
    pub method: TuningMethod,
    /// Itself, as hooks of the decoder; its parameters train if that was asked for.
    pub tuning: Box<dyn Method>,
    /// Why it can only be asked, not trained on, if so.
    pub fixed: Option<String>,
}

/// `adapter_config.json`: the fields that change the numbers.
#[derive(Deserialize)]
struct File {
    peft_type: Option<String>,
    task_type: Option<String>,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    #[serde(default)]
    lora_dropout: f32,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    bias: Option<String>,
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    #[serde(default)]
    target_parameters: Option<Value>,
    target_modules: Option<Value>,
    num_virtual_tokens: Option<usize>,
    num_transformer_submodules: Option<usize>,
    adapter_len: Option<usize>,
    adapter_layers: Option<usize>,
    /// `adapters`: the adapter's name inside its files, and its configuration.
    name: Option<String>,
    config: Option<Bottlenecks>,
}

/// The configuration of a bottleneck adapter, as `adapters` writes it.
#[derive(Deserialize)]
struct Bottlenecks {
    #[serde(default)]
    mh_adapter: bool,
    #[serde(default)]
    output_adapter: bool,
    #[serde(default)]
    is_parallel: bool,
    reduction_factor: Value,
    non_linearity: String,
    #[serde(default)]
    scaling: Value,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Settings of `adapters` that change the numbers, each with the one value that is computed here.
const FIXED: [(&str, &[&str]); 13] = [
    ("ln_before", &["false"]),
    ("ln_after", &["false"]),
    ("adapter_residual_before_ln", &["false"]),
    ("cross_adapter", &["false"]),
    ("dropout", &["0", "0.0"]),
    ("inv_adapter", &["null"]),
    ("leave_out", &["[]"]),
    ("phm_layer", &["false"]),
    ("shared_W_phm", &["false"]),
    ("stochastic_depth", &["0", "0.0"]),
    ("use_gating", &["false"]),
    ("residual_before_ln", &["true", "\"post_add\""]),
    ("init_weights_seed", &["null"]),
];

/// The adapter in `dir`, made ready to answer, or to train further, on a base of this shape.
///
/// # Errors
/// When a file is missing or damaged, the adapter is of a kind that cannot be read, or a tensor
/// does not fit the base; the message names it.
pub fn read_adapter(dir: &Path, base: &DecoderConfig, device: &Device, trains: bool) -> Result<Adapter> {
    let path = dir.join(CONFIG);
    let wrong = |what: String| limits::wrong(&path, what);
    let text = limits::read_small_text(dir, CONFIG)?;
    let file: File = serde_json::from_str(&text).map_err(|cause| wrong(cause.to_string()))?;
    file.check_sizes().map_err(&wrong)?;
    let weights = Weights::open_file(&weight_file(dir))?;
    let parameters = Parameters::read(&weights, trains, device);
    let kind = file.peft_type.as_deref();
    let (method, tuning, expected): (TuningMethod, Box<dyn Method>, Vec<String>) = match (kind, &file.config) {
        (Some("LORA"), _) => return lora(dir, &file, base, &weights, parameters, &wrong),
        (Some("PREFIX_TUNING" | "PROMPT_TUNING"), _) => {
            let Some(tokens) = file.num_virtual_tokens.filter(|tokens| *tokens > 0) else {
                return Err(wrong("num_virtual_tokens is missing".into()));
            };
            if file.num_transformer_submodules.is_some_and(|submodules| submodules != 1) {
                return Err(wrong("num_transformer_submodules other than 1 is not supported".into()));
            }
            if tokens >= base.max_positions {
                return Err(wrong(format!(
                    "num_virtual_tokens {tokens} leave no room in the base's context of {} tokens",
                    base.max_positions
                )));
            }
            let begin = VirtualTokens::Random;
            let held = weights.shape(PROMPT_EMBEDDINGS).and_then(|shape| shape.first().copied());
            if held.is_some_and(|held| held != tokens) {
                return Err(wrong(format!("num_virtual_tokens is {tokens}, but {PROMPT_EMBEDDINGS} has other rows")));
            }
            let known = vec![PROMPT_EMBEDDINGS.to_string()];
            if kind == Some("PREFIX_TUNING") {
                let method = TuningMethod::Prefix(PrefixConfig { tokens, begin, projection: None });
                (method, Box::new(Prefix::read(base, &weights, parameters)?), known)
            } else {
                let method = TuningMethod::Prompt(PromptConfig { tokens, begin });
                (method, Box::new(SoftPrompt::read(base, &weights, parameters)?), known)
            }
        }
        (Some("ADAPTION_PROMPT"), _) => {
            let (Some(length), layers) = (file.adapter_len, file.adapter_layers) else {
                return Err(wrong("adapter_len is missing".into()));
            };
            let config = LlamaAdapterConfig { length, layers };
            // The names are those of its parameters: each layer has two.
            let known = weights.names().map(str::to_string).collect::<Vec<_>>();
            if known.len() != 2 * config.layers_of(base) {
                return Err(wrong(format!("adapter_layers does not fit the {} tensors beside it", known.len())));
            }
            let adapter = LlamaAdapter::build(base, config, parameters)?;
            (TuningMethod::LlamaAdapter(config), Box::new(adapter), known)
        }
        (Some("LN_TUNING"), _) => {
            let head = [Value::from("lm_head"), serde_json::json!(["lm_head"])];
            if !file.target_modules.as_ref().is_some_and(|targets| head.contains(targets)) {
                return Err(wrong("LN_TUNING of modules other than lm_head is not supported".into()));
            }
            (TuningMethod::Head, Box::new(Head::read(base, parameters)?), vec![HEAD.to_string()])
        }
        (None, Some(bottlenecks)) => {
            let config = bottlenecks.checked().map_err(&wrong)?;
            limits::at_most("the width of a bottleneck", config.width(base.hidden_size), MAX_RANK).map_err(&wrong)?;
            let name = file.name.as_deref().unwrap_or_default();
            let known = weights.names().filter(|known| known.contains(&format!(".adapters.{name}.")));
            let known = known.map(str::to_string).collect();
            let adapter = BottleneckAdapter::build(base, config, name, parameters)?;
            (TuningMethod::Adapter(config), Box::new(adapter), known)
        }
        (Some(other), _) => {
            return Err(wrong(format!(
                "adapters of type {other} are not supported; LORA, PREFIX_TUNING, PROMPT_TUNING, ADAPTION_PROMPT, \
                 LN_TUNING of lm_head and bottleneck adapters of the library adapters are"
            )));
        }
        (None, None) => return Err(wrong("it names neither a peft_type nor a config".into())),
    };
    no_strangers(dir, base, &weights, &expected)?;
    Ok(Adapter { method, tuning, fixed: None })
}

/// A tensor that no part of the method takes would be a part that is lost.
fn no_strangers(dir: &Path, base: &DecoderConfig, weights: &Weights, known: &[String]) -> Result<()> {
    let known: HashSet<&str> = known.iter().map(String::as_str).collect();
    match weights.names().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(stranger) => Err(limits::wrong(
            &weight_file(dir),
            format!(
                "the tensor {stranger} has no place in a model of {} layers with these projections: {}",
                base.layers,
                base.projections().iter().map(|one| one.name()).collect::<Vec<_>>().join(", ")
            ),
        )),
    }
}

impl File {
    /// Holds every size to its limit before anything is made of it.
    fn check_sizes(&self) -> std::result::Result<(), String> {
        for (name, size, most) in [
            ("r", self.r, MAX_RANK),
            ("num_virtual_tokens", self.num_virtual_tokens, MAX_VIRTUAL_TOKENS),
            ("adapter_len", self.adapter_len, MAX_VIRTUAL_TOKENS),
            ("adapter_layers", self.adapter_layers, MAX_LAYERS),
            ("the number of entries in alpha_pattern", Some(self.alpha_pattern.len()), MAX_PATTERNS),
        ] {
            limits::at_most(name, size.unwrap_or_default(), most)?;
        }
        Ok(())
    }
}

impl Bottlenecks {
    fn checked(&self) -> std::result::Result<AdapterConfig, String> {
        let arrangement = match (self.mh_adapter, self.output_adapter, self.is_parallel) {
            (true, true, false) => Arrangement::Houlsby,
            (false, true, false) => Arrangement::Pfeiffer,
            (false, true, true) => Arrangement::Parallel,
            _ => return Err("bottlenecks are supported after attention and MLP, after the MLP, or beside it".into()),
        };
        for (name, allowed) in FIXED {
            if let Some(value) = self.rest.get(name).filter(|value| !allowed.contains(&value.to_string().as_str())) {
                return Err(format!("{name} {value} is not supported"));
            }
        }
        let sum = self.rest.get("original_ln_before").and_then(Value::as_bool).unwrap_or(false);
        if sum != (arrangement == Arrangement::Pfeiffer) && arrangement != Arrangement::Parallel {
            return Err(format!("original_ln_before {sum} is not supported for these bottlenecks"));
        }
        let Some(reduction_factor) = self.reduction_factor.as_f64() else {
            return Err("reduction_factor must be one number for all layers".into());
        };
        let activation = Activation::ALL.into_iter().find(|one| one.name() == self.non_linearity);
        let Some(activation) = activation else {
            let known = Activation::ALL.map(Activation::name).join(", ");
            return Err(format!("non_linearity {:?} is not supported; {known} are", self.non_linearity));
        };
        let scaling = match &self.scaling {
            Value::Null => 1.0,
            value => value.as_f64().ok_or_else(|| format!("scaling {value} is not supported; a number is"))?,
        };
        Ok(AdapterConfig { arrangement, reduction_factor, activation, scaling })
    }
}

fn lora(
    dir: &Path,
    file: &File,
    base: &DecoderConfig,
    weights: &Weights,
    parameters: Parameters<'_>,
    wrong: &dyn Fn(String) -> Error,
) -> Result<Adapter> {
    // The names under which peft looks for the head of a classifier.
    let scores = file.task_type.as_deref() == Some("SEQ_CLS");
    let heads: &[&str] = if scores { &["score", "classifier"] } else { &[] };
    for (present, what) in [
        (file.bias.as_deref().is_some_and(|bias| bias != "none"), "bias other than \"none\""),
        (file.modules_to_save.iter().flatten().any(|module| !heads.contains(&module.as_str())), "modules_to_save"),
        (file.target_parameters.as_ref().is_some_and(|targets| !targets.is_null()), "target_parameters"),
    ] {
        if present {
            return Err(wrong(format!("{what} is not supported")));
        }
    }
    let (Some(rank), Some(alpha)) = (file.r, file.lora_alpha) else {
        return Err(wrong("r or lora_alpha is missing".into()));
    };
    let mut config = LoraConfig {
        rank,
        alpha,
        dropout: file.lora_dropout,
        rank_stabilized: file.use_rslora,
        magnitudes: file.use_dora,
        targets: Vec::new(),
    };
    let (mut ranks, mut known) = (BTreeMap::new(), Vec::new());
    known.extend(scores.then(|| SCORE.to_string()));
    let sites: Vec<Site> = (0..base.layers)
        .flat_map(|layer| base.projections().iter().map(move |projection| Site { layer, projection: *projection }))
        .collect();
    let alphas = alphas(&file.alpha_pattern, &sites).map_err(|cause| wrong(format!("alpha_pattern: {cause}")))?;
    for site in sites {
        let (a, b) = names(site);
        if !weights.contains(&a) && !weights.contains(&b) {
            continue;
        }
        // The rank is the tensor's own: rank_pattern may give each map another.
        let rank = weights.shape(&a).and_then(|shape| shape.first().copied()).unwrap_or(config.rank);
        if rank == 0 || rank > MAX_RANK {
            return Err(limits::wrong(
                &weight_file(dir),
                format!("the rank of {a} is {rank}; it must be between 1 and {MAX_RANK}"),
            ));
        }
        let alpha = alphas.get(&site).copied().unwrap_or(alpha);
        ranks.insert(site, (rank, LoraConfig { alpha, ..config.clone() }.scale(rank)));
        known.extend([a, b]);
        if config.magnitudes {
            known.push(magnitude_name(site));
        }
        if !config.targets.contains(&site.projection) {
            config.targets.push(site.projection);
        }
    }
    no_strangers(dir, base, weights, &known)?;
    if ranks.is_empty() {
        return Err(limits::wrong(&weight_file(dir), "it holds no LoRA tensors"));
    }
    config.targets.sort_unstable();
    let uniform = ranks.len() == config.targets.len() * base.layers
        && ranks.values().all(|own| *own == (config.rank, config.scale(config.rank)));
    let fixed = (!uniform).then(|| {
        "its rank, alpha or targets differ from layer to layer (rank_pattern, alpha_pattern, layers_to_transform)"
            .into()
    });
    let none = |_| Err(Error::internal(anyhow::anyhow!("lengths come from the artifact")));
    let score = scores.then(|| parameters.tensor(SCORE, &[1, base.hidden_size])).transpose()?;
    let mut tuning = Box::new(Lora::build(base, config.clone(), &ranks, parameters, none)?);
    if let Some(weight) = score {
        tuning.take_score(&weight)?;
    }
    let method = if dir.join(QUANTIZATION).exists() { TuningMethod::Qlora(config) } else { TuningMethod::Lora(config) };
    Ok(Adapter { method, tuning, fixed })
}

/// The alpha of every map that a pattern gives one of its own: the first that matches. `peft` matches a key against
/// the end of the module's name, at a dot. One pattern at a time is compiled, and no larger than it may be.
fn alphas(given: &BTreeMap<String, f64>, sites: &[Site]) -> Result<BTreeMap<Site, f64>, String> {
    limits::at_most("entries times the base's projections", given.len().saturating_mul(sites.len()), MAX_MATCHES)?;
    let names: Vec<(Site, String)> = sites.iter().map(|site| (*site, site.name())).collect();
    let mut alphas = BTreeMap::new();
    for (key, alpha) in given {
        limits::at_most("the length of a pattern", key.len(), MAX_PATTERN)?;
        let pattern = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$"))
            .size_limit(MAX_COMPILED_PATTERN)
            .dfa_size_limit(MAX_COMPILED_PATTERN)
            .build()
            .map_err(|cause| cause.to_string())?;
        for (site, name) in &names {
            if !alphas.contains_key(site) && pattern.is_match(name) {
                alphas.insert(*site, *alpha);
            }
        }
    }
    Ok(alphas)
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use serde_json::json;

    use super::*;
    use crate::models::{Precision, Projection, save_tensors};

    fn base() -> DecoderConfig {
        let file = json!({"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1});
        DecoderConfig::parse(&file.to_string()).unwrap()
    }

    /// A rank-2 adapter of one query projection, its configuration changed by `extra`.
    fn adapter(extra: Value, tensors: &[(&str, &[usize])]) -> Result<LoraConfig> {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
        for (name, value) in extra.as_object().unwrap() {
            config[name] = value.clone();
        }
        std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, shape)| {
                let tensor = Tensor::ones(*shape, candle_core::DType::F32, &Device::Cpu).unwrap();
                (format!("base_model.model.model.layers.{name}.weight"), tensor)
            })
            .collect();
        save_tensors(&dir.path().join("adapter_model.safetensors"), &tensors, Precision::F32).unwrap();
        match read_adapter(dir.path(), &base(), &Device::Cpu, false)?.method {
            TuningMethod::Lora(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    const QUERY: [(&str, &[usize]); 2] =
        [("0.self_attn.q_proj.lora_A", &[2, 8]), ("0.self_attn.q_proj.lora_B", &[8, 2])];

    #[test]
    fn an_adapter_is_read_with_its_scale() {
        let lora = adapter(json!({}), &QUERY).unwrap();
        assert_eq!(lora.scale(2), 2.0);
        assert_eq!(lora.targets, [Projection::Query]);
    }

    #[test]
    fn patterns_are_counted_times_the_maps_before_one_is_matched() {
        let sites = |count: usize| -> Vec<Site> {
            (0..count).map(|layer| Site { layer, projection: Projection::Query }).collect()
        };
        // The last would not compile: it is not reached.
        let given = |count: usize| (0..count).map(|at| (format!("({at}"), 1.0)).collect::<BTreeMap<_, _>>();
        let refused = alphas(&given(MAX_PATTERNS), &sites(MAX_MATCHES / MAX_PATTERNS + 1)).unwrap_err();
        assert_eq!(
            refused,
            format!(
                "entries times the base's projections is {}; {MAX_MATCHES} is the most",
                MAX_MATCHES + MAX_PATTERNS
            )
        );
        assert!(alphas(&given(1), &sites(MAX_LAYERS)).unwrap_err().contains("unclosed group"));
        // As an adapter of 80 layers names all its maps, each by itself.
        let names = sites(560).iter().map(|site| (site.name(), 2.0)).collect();
        assert_eq!(alphas(&names, &sites(560)).unwrap().len(), 560);
    }

    #[test]
    fn adapters_that_cannot_be_read_say_why() {
        let no_b = [QUERY[0]];
        let misshapen: [(&str, &[usize]); 2] = [QUERY[0], ("0.self_attn.q_proj.lora_B", &[9, 2])];
        let deeper: [(&str, &[usize]); 3] = [QUERY[0], QUERY[1], ("5.self_attn.q_proj.lora_A", &[2, 8])];
        let many: serde_json::Map<String, Value> = (0..4097).map(|at| (format!("{at}"), 1.into())).collect();
        let long = "a".repeat(1025);
        for (extra, tensors, said) in [
            (json!({"peft_type": "IA3"}), &QUERY[..], "type IA3 are not supported; LORA, PREFIX_TUNING"),
            (json!({"peft_type": "PREFIX_TUNING"}), &QUERY[..], "num_virtual_tokens"),
            (json!({"peft_type": "LN_TUNING"}), &QUERY[..], "lm_head"),
            (
                json!({"use_dora": true}),
                &QUERY[..],
                "lacks the tensor base_model.model.model.layers.0.self_attn.q_proj.lora_magn",
            ),
            (json!({"bias": "all"}), &QUERY[..], "bias"),
            (json!({"modules_to_save": ["lm_head"]}), &QUERY[..], "modules_to_save"),
            (json!({"r": null}), &QUERY[..], "r or lora_alpha"),
            (json!({"alpha_pattern": {"(": 1.0}}), &QUERY[..], "alpha_pattern"),
            (json!({"alpha_pattern": many}), &QUERY[..], "entries in alpha_pattern is 4097; 4096 is the most"),
            (json!({"alpha_pattern": {"((a{99}){99}){99}": 1.0}}), &QUERY[..], "alpha_pattern: Compiled regex exceeds"),
            (json!({"alpha_pattern": {long: 1.0}}), &QUERY[..], "the length of a pattern is 1025; 1024 is the most"),
            (json!({"r": 1_u64 << 62}), &QUERY[..], "r is 4611686018427387904; 32768 is the most"),
            (
                json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": u64::MAX}),
                &QUERY[..],
                "num_virtual_tokens is 18446744073709551615; 65536 is the most",
            ),
            (json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2048}), &QUERY[..], "leave no room"),
            (
                json!({"peft_type": "ADAPTION_PROMPT", "adapter_len": 1, "adapter_layers": 1_u64 << 63}),
                &QUERY[..],
                "adapter_layers is 9223372036854775808; 1024 is the most",
            ),
            (
                json!({"peft_type": null, "config": {"output_adapter": true, "is_parallel": true,
                    "reduction_factor": 1e-300, "non_linearity": "relu"}}),
                &QUERY[..],
                "the width of a bottleneck is 18446744073709551615; 32768 is the most",
            ),
            (json!({}), &no_b[..], "lacks the tensor base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"),
            (json!({}), &misshapen[..], "shape [9, 2], its configuration asks for [8, 2]"),
            (json!({}), &deeper[..], "layers.5.self_attn.q_proj.lora_A.weight has no place"),
            (json!({}), &[][..], "no LoRA tensors"),
        ] {
            let error = adapter(extra, tensors).err().unwrap();
            assert!(error.message().contains(said), "{}", error.message());
        }
    }
}
