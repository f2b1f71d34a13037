//! Model directories written a strip of numbers at a time: what a file will hold is said first, and its numbers
//! are asked for when they are written, so that a model of any size takes the memory of one strip.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, View};
use serde_json::json;

use super::weights::{bf16, header};
use crate::durable;
use crate::error::{Error, Result};

/// Numbers of a strip: 4 MiB of f32. A strip is of whole rows, so one row may be more.
const STRIP: usize = 1 << 20;

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Its Hugging Face name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub dtype: Dtype,
}

impl Outline {
    fn numbers(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        (self.numbers() * self.dtype.bitsize() / 8) as u64
    }

    /// Its strips, in order, as ranges of numbers.
    fn strips(&self) -> impl Iterator<Item = Range<usize>> {
        let row = self.shape.iter().skip(1).product::<usize>().max(1);
        let (step, all) = ((STRIP / row).max(1) * row, self.numbers());
        (0..all).step_by(step).map(move |start| start..(start + step).min(all))
    }
}

/// Gives the bytes of a strip of a tensor, as a range of its numbers.
pub type Content<'a> = dyn FnMut(&Outline, Range<usize>) -> Result<Vec<u8>> + 'a;

/// Numbers as a file stores them, each rounded to the nearest, ties to even.
///
/// # Errors
/// When the type is none of f32, f16 and bf16.
pub fn encode(values: &[f32], dtype: Dtype) -> Result<Vec<u8>> {
    match dtype {
        Dtype::F32 => Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Dtype::BF16 => Ok(values.iter().flat_map(|value| bf16(*value).to_le_bytes()).collect()),
        Dtype::F16 => {
            let rounded = Tensor::from_slice(values, values.len(), &Device::Cpu)?.to_dtype(DType::F16)?;
            Ok(View::data(&rounded).into_owned())
        }
        other => Err(Error::internal(anyhow::anyhow!("numbers cannot be written as {other:?}"))),
    }
}

/// Writes the tensors into `dir` as transformers names them: `model.safetensors`, or, when that would be larger than
/// `max_bytes`, files of at most that size with `model.safetensors.index.json`; a single tensor may be larger.
/// `content` gives the bytes of strip after strip. The names of the files with weights, in order.
///
/// # Errors
/// When `content` fails or does not give what the outline says, or a file cannot be written.
pub fn write_shards(dir: &Path, tensors: &[Outline], max_bytes: u64, content: &mut Content<'_>) -> Result<Vec<String>> {
    let shards = shards(tensors, max_bytes);
    let count = shards.len();
    let name = |index: usize| match count {
        1 => "model.safetensors".to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    for (index, shard) in shards.iter().enumerate() {
        write(&dir.join(name(index)), shard, content)?;
    }
    if count > 1 {
        let places: BTreeMap<&str, String> = shards
            .iter()
            .enumerate()
            .flat_map(|(index, shard)| shard.iter().map(move |tensor| (tensor.name.as_str(), index)))
            .map(|(tensor, index)| (tensor, name(index)))
            .collect();
        let total: u64 = tensors.iter().map(Outline::bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": places});
        durable::write(&dir.join("model.safetensors.index.json"), format!("{index:#}\n"))?;
    }
    Ok((0..count).map(name).collect())
}

/// The tensors of each file, in the order they lie there: larger numbers first, so that all are aligned.
fn shards(tensors: &[Outline], max_bytes: u64) -> Vec<Vec<&Outline>> {
    let mut shards: Vec<(u64, Vec<&Outline>)> = vec![(0, Vec::new())];
    for tensor in tensors {
        let full = shards.last().is_some_and(|(held, one)| !one.is_empty() && held + tensor.bytes() > max_bytes);
        if full {
            shards.push((0, Vec::new()));
        }
        if let Some((held, shard)) = shards.last_mut() {
            *held += tensor.bytes();
            shard.push(tensor);
        }
    }
    for (_, shard) in &mut shards {
        shard.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
    }
    shards.into_iter().map(|(_, shard)| shard).collect()
}

fn write(path: &Path, tensors: &[&Outline], content: &mut Content<'_>) -> Result<()> {
    let parts = tensors.iter().map(|tensor| {
        let Outline { name, shape, dtype } = tensor;
        (name.clone(), *dtype, shape.clone(), tensor.bytes() as usize)
    });
    let mut file = durable::Writer::create(path)?;
    file.write_all(&header(parts)?)?;
    for tensor in tensors {
        let mut written = 0;
        for strip in tensor.strips() {
            let bytes = content(tensor, strip)?;
            file.write_all(&bytes)?;
            written += bytes.len() as u64;
        }
        if written != tensor.bytes() {
            return Err(Error::internal(anyhow::anyhow!("{}: {written} bytes, not {}", tensor.name, tensor.bytes())));
        }
    }
    Ok(file.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Weights;

    fn outline(name: &str, shape: &[usize], dtype: Dtype) -> Outline {
        Outline { name: name.into(), shape: shape.to_vec(), dtype }
    }

    #[test]
    fn what_is_written_in_strips_reads_back_whole_from_one_file_or_from_several() {
        // The first takes three strips of two rows and a half; types are mixed.
        let tensors = [
            outline("a", &[5, 1 << 19], Dtype::BF16),
            outline("b", &[3], Dtype::F32),
            outline("c", &[2, 2], Dtype::F16),
            outline("d", &[0, 4], Dtype::F32),
        ];
        let number =
            |tensor: &Outline, at: usize| ((at % 97) as f32 - 40.0) * if tensor.name == "b" { 0.1 } else { 0.5 };
        for (limit, files) in [(u64::MAX, 1), (20, 2), (1, 4)] {
            let dir = tempfile::tempdir().unwrap();
            let mut strips = Vec::new();
            let mut content = |tensor: &Outline, at: Range<usize>| {
                strips.push((tensor.name.clone(), at.len()));
                encode(&at.map(|at| number(tensor, at)).collect::<Vec<_>>(), tensor.dtype)
            };
            let written = write_shards(dir.path(), &tensors, limit, &mut content).unwrap();
            assert_eq!(written.len(), files, "{written:?}");
            assert_eq!(
                strips.iter().filter(|(name, _)| name == "a").map(|(_, size)| *size).collect::<Vec<_>>(),
                [1 << 20, 1 << 20, 1 << 19]
            );
            let weights = Weights::open(dir.path()).unwrap();
            for tensor in &tensors {
                assert_eq!(weights.stored(&tensor.name), Some((tensor.dtype, tensor.shape.as_slice())));
                let read = weights.get(&tensor.name, &tensor.shape, &Device::Cpu).unwrap();
                let read = read.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let expected = (0..tensor.numbers()).map(|at| number(tensor, at));
                assert!(read.into_iter().eq(expected), "{}", tensor.name);
            }
            assert_eq!(weights.strip("b", 1..3).unwrap(), [number(&tensors[1], 1), number(&tensors[1], 2)]);
            assert!(weights.strip("b", 1..4).is_err() && weights.raw_strip("e", 0..1).is_err());
        }
    }

    #[test]
    fn a_strip_that_is_not_what_was_said_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let short = &mut |_: &Outline, _: Range<usize>| Ok(vec![0; 3]);
        assert!(write_shards(dir.path(), &[outline("a", &[1], Dtype::F32)], 100, short).is_err());
    }
}
