//! Base models in NF4 as files, in the form that transformers with bitsandbytes writes and reads: the codes
//! under the weight's own name, and beside it what turns them into numbers. A base that was quantised once
//! is kept in this form, so that the next job reads it; and one that somebody else quantised is read as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use candle_core::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::decoder::{Decoder, Form};
use super::limits::at_most;
use super::weights::{Outgoing, Weights, save};
use crate::clock::Clock;
use crate::durable;
use crate::error::{Error, Result};
use crate::kernels::{BLOCK, DYNAMIC_MAP, LEVELS, NESTED_BLOCK, Nf4, Parts};

/// What follows a weight's name.
const STATE: &str = "quant_state.bitsandbytes__nf4";
/// Bytes of it.
const MAX_STATE: usize = 16 << 10;

/// `quant_state`: what bitsandbytes needs to know beside the tensors.
#[derive(Serialize, Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// The `quantization_config` of a base in NF4, as in transformers' `config.json`.
pub fn quantization_config() -> Value {
    json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": true,
        "load_in_8bit": false,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": true,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["lm_head"],
    })
}

/// What of a `quantization_config` cannot be read, if anything.
pub(super) fn unreadable(config: &Value) -> Option<String> {
    let is = |name: &str, wanted: Value| (config[name] != wanted).then(|| format!("{name} {}", config[name]));
    is("quant_method", "bitsandbytes".into())
        .or_else(|| is("bnb_4bit_quant_type", "nf4".into()))
        .or_else(|| is("bnb_4bit_use_double_quant", true.into()))
}

/// Whether a weight lies there in NF4.
pub(super) fn is_quantized(weights: &Weights, name: &str) -> bool {
    weights.contains(&format!("{name}.{STATE}"))
}

/// A weight that lies there in NF4.
pub(super) fn read(weights: &Weights, name: &str, shape: &[usize]) -> Result<Option<Nf4>> {
    let part = |what: &str| format!("{name}.{what}");
    if !is_quantized(weights, name) {
        return Ok(None);
    }
    let wrong = |what: &str| Error::validation(format!("the tensor {name} in NF4: {what}"));
    // What is small is held to be so before it is read: a tensor may be as large as its file.
    let length = |what: &str| weights.shape(&part(what)).unwrap_or_default().iter().product::<usize>();
    for (what, most) in [(STATE, MAX_STATE), ("quant_map", LEVELS.len()), ("nested_quant_map", DYNAMIC_MAP.len())] {
        at_most(what, length(what), most).map_err(|cause| wrong(&format!("the length of {cause}")))?;
    }
    let state = weights.bytes(&part(STATE))?;
    let state: State = serde_json::from_slice(&state).map_err(|cause| wrong(&format!("{STATE}: {cause}")))?;
    let (&[rows, columns], true) = (shape, state.shape == shape) else {
        return Err(wrong(&format!("it has shape {:?}, its configuration asks for {shape:?}", state.shape)));
    };
    if (state.quant_type.as_str(), state.blocksize, state.nested_blocksize) != ("nf4", BLOCK, Some(NESTED_BLOCK)) {
        return Err(wrong("only blocks of 64 with double quantization in blocks of 256 can be read"));
    }
    let floats = |what: &str| weights.vector(&part(what));
    let near = |read: &[f32], own: &[f32]| {
        read.len() == own.len() && read.iter().zip(own).all(|(read, own)| (read - own).abs() <= 1e-6)
    };
    if !near(&floats("quant_map")?, &LEVELS) || !near(&floats("nested_quant_map")?, &*DYNAMIC_MAP) {
        return Err(wrong("it has other levels than NF4 or the signed dynamic map"));
    }
    let (codes, magnitudes) = (weights.bytes(name)?, weights.bytes(&part("absmax"))?);
    let nested = floats("nested_absmax")?;
    let offset = state.nested_offset.unwrap_or_default() as f32;
    let parts = Parts { codes: &codes, magnitudes: &magnitudes, nested: &nested, offset };
    Nf4::from_parts(rows, columns, parts).map(Some).map_err(|cause| wrong(&cause.to_string()))
}

/// The tensors of a weight in NF4 on their way into a file.
fn outgoing<'a>(name: &str, weight: &'a Nf4) -> Result<Vec<(String, Outgoing<'a>)>> {
    let (rows, columns) = weight.dims();
    let parts = weight.parts();
    let state = State {
        quant_type: "nf4".into(),
        blocksize: BLOCK,
        dtype: "float32".into(),
        shape: vec![rows, columns],
        nested_blocksize: Some(NESTED_BLOCK),
        nested_dtype: Some("float32".into()),
        nested_offset: Some(f64::from(parts.offset)),
    };
    let part = |what: &str| format!("{name}.{what}");
    Ok(vec![
        (name.to_string(), Outgoing::bytes(parts.codes.into(), vec![parts.codes.len(), 1])),
        (part("absmax"), Outgoing::bytes(parts.magnitudes.into(), vec![parts.magnitudes.len()])),
        (part("nested_absmax"), Outgoing::floats(parts.nested.to_vec())),
        (part("nested_quant_map"), Outgoing::floats(DYNAMIC_MAP.to_vec())),
        (part("quant_map"), Outgoing::floats(LEVELS.to_vec())),
        (part(STATE), {
            let text = serde_json::to_vec(&state)?;
            let length = text.len();
            Outgoing::bytes(text.into(), vec![length])
        }),
    ])
}

/// Writes a decoder whose maps are in NF4 as a model directory.
fn write(decoder: &Decoder, dir: &Path) -> Result<()> {
    let mut config = decoder.config().to_json();
    config["torch_dtype"] = "float32".into();
    config["quantization_config"] = quantization_config();
    durable::write(&dir.join("config.json"), format!("{config:#}\n"))?;
    let mut tensors = Vec::new();
    for (name, tensor) in decoder.named_weights() {
        tensors.push((name.clone(), Outgoing::tensor(tensor)?));
    }
    for (name, weight) in decoder.quantized_weights() {
        tensors.extend(outgoing(name, weight)?);
    }
    save(&dir.join("model.safetensors"), tensors)
}

/// The base in `dir` with its maps in NF4: out of `cache` when it was quantised before, and put there when
/// not. A cache that cannot be written costs the next job the work again, and nothing else.
///
/// # Errors
/// As [`Decoder::load`].
pub fn load_nf4(dir: &Path, device: &Device, cache: Option<&Path>) -> Result<Decoder> {
    let Some(cache) = cache else { return Decoder::load(dir, device, Form::Nf4) };
    let place = cache.join(fingerprint(dir)?);
    // Held while it is read: what was not used for longest is removed when the cache is full.
    if let Some(_in_use) = durable::hold(&place)? {
        durable::touch(&place, UNIX_EPOCH + Duration::from_millis(Clock::system().now().unsigned_abs()));
        match Decoder::load(&place, device, Form::Nf4) {
            Ok(decoder) => return Ok(decoder),
            Err(cause) => tracing::warn!("the quantised base in {} is not used: {}", place.display(), cause.log()),
        }
    }
    let decoder = Decoder::load(dir, device, Form::Nf4)?;
    if let Err(cause) = keep(&decoder, &place) {
        tracing::warn!("the quantised base is not kept in {}: {}", place.display(), cause.log());
    }
    Ok(decoder)
}

fn keep(decoder: &Decoder, place: &Path) -> Result<()> {
    let staging = place.with_file_name(format!(".{}.unfinished", Clock::system().id()));
    fs::create_dir_all(&staging)?;
    // Tells those who sweep left-overs that somebody is at work.
    let _in_use = durable::hold(&staging)?;
    let kept = write(decoder, &staging).and_then(|()| {
        // A damaged one may be in the way; another process may be faster.
        let _ = fs::remove_dir_all(place);
        Ok(durable::rename(&staging, place)?)
    });
    let _ = fs::remove_dir_all(&staging);
    kept
}

/// Names a model directory by what is in it: another file, size or time of writing is another model.
fn fingerprint(dir: &Path) -> Result<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors" || extension == "json") {
            files.push(path);
        }
    }
    files.sort_unstable();
    let mut digest = Sha256::new();
    digest.update(fs::canonicalize(dir)?.as_os_str().as_encoded_bytes());
    for file in files {
        let facts = fs::metadata(&file)?;
        let written = facts.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        digest.update(format!("\n{} {} {written}", file.display(), facts.len()));
    }
    Ok(hex::encode(&digest.finalize()[..16]).into())
}

/// A weight in NF4, shared by all that compute with it.
pub(super) fn quantize(name: &str, values: &[f32], shape: &[usize]) -> Result<Arc<Nf4>> {
    let [rows, columns] = shape else {
        return Err(Error::internal(anyhow::anyhow!("{name} of shape {shape:?} is no matrix")));
    };
    let quantized = Nf4::quantize(values, *rows, *columns);
    quantized.map(Arc::new).map_err(|cause| Error::validation(format!("the tensor {name}: {cause}")))
}
