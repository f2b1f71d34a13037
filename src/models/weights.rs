//! Reading and writing safetensors files. A file is read a tensor at a time, when the tensor is wanted, so
//! loading needs no second copy of the model in memory, nor in the pages that count as this process's.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, View};

use super::index::{INDEX, SINGLE, shard_names};
use super::limits::{self, MAX_HEADER, MAX_TENSORS, wrong};
use crate::durable;
use crate::error::{Error, Result};

/// The tensors of a model or an adapter, in one safetensors file or several.
pub struct Weights {
    /// Where the tensors are listed: the file, or the index of several.
    listing: PathBuf,
    files: Vec<File>,
    /// Where each tensor lies.
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// Numbers of a tensor that are held to be finite at a time.
const STRIP: usize = 1 << 20;

impl Weights {
    /// Opens the weights in a model directory: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// When there is neither, a shard is missing, or a file is damaged; the message names the file.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join(SINGLE);
        if single.exists() {
            return Self::open_file(&single);
        }
        let Some(index) = limits::read_small(dir, INDEX)? else {
            return Err(Error::validation(format!(
                "The model has neither {SINGLE} nor {INDEX}; weights must be in the safetensors format"
            ))
            .at(dir.display().to_string()));
        };
        let listing = dir.join(INDEX);
        let names = shard_names(&index).map_err(|error| error.at(listing.display().to_string()))?;
        let mut weights = Self { listing, files: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            weights.add(dir.join(name))?;
        }
        Ok(weights)
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut weights = Self { listing: path.to_path_buf(), files: Vec::new(), tensors: BTreeMap::new() };
        weights.add(path.to_path_buf())?;
        Ok(weights)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let unreadable = |cause: std::io::Error| wrong(&path, format!("it cannot be read: {cause}"));
        let file = File::open(&path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        // Eight bytes of header length, the header, then the data that offsets count from.
        let mut length = [0u8; 8];
        if size < 8 {
            return Err(wrong(&path, "it is no safetensors file, or is cut short"));
        }
        file.read_exact_at(&mut length, 0).map_err(unreadable)?;
        let header = u64::from_le_bytes(length);
        if header > size - 8 {
            return Err(wrong(&path, "it is no safetensors file, or is cut short"));
        }
        if header > MAX_HEADER {
            return Err(wrong(&path, format!("its header has {header} bytes; {MAX_HEADER} are the most")));
        }
        let mut text = vec![0u8; header as usize];
        file.read_exact_at(&mut text, 8).map_err(unreadable)?;
        // Checks that tensors lie one after the other and have the size that their shapes ask for.
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|cause| wrong(&path, cause))?;
        let start = 8 + header as usize;
        if (metadata.data_len() as u64).checked_add(start as u64) != Some(size) {
            return Err(wrong(&path, "it is cut short, or holds more than it says"));
        }
        let tensors = metadata.tensors();
        if self.tensors.len() + tensors.len() > MAX_TENSORS {
            return Err(wrong(&path, format!("with it there are more than {MAX_TENSORS} tensors, which are the most")));
        }
        for (name, info) in tensors {
            let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
            let entry = Entry { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), bytes };
            self.tensors.insert(name, entry);
        }
        self.files.push(file);
        Ok(())
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// A tensor as f32, which must have this shape.
    ///
    /// # Errors
    /// When it is missing, has another shape, or is stored in a type other than f32, f16 or bf16.
    pub fn get(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let (entry, dtype) = self.entry(name, shape)?;
        let bytes = self.read(entry)?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, shape, device)?.to_dtype(DType::F32)?)
    }

    /// The bytes of a tensor that is stored as such, whatever its shape.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        match self.tensors.get(name) {
            Some(entry) if entry.dtype == Dtype::U8 => self.read(entry),
            Some(entry) => Err(self.wrong(format!("the tensor {name} is stored as {:?}, not as U8", entry.dtype))),
            None => Err(self.lacks(name)),
        }
    }

    /// The numbers of a tensor with one dimension of any length.
    pub(super) fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let shape = self.shape(name).unwrap_or_default().to_vec();
        Ok(self.get(name, &shape, &Device::Cpu)?.flatten_all()?.to_vec1()?)
    }

    /// How a tensor is stored and its shape, if it is there.
    pub fn stored(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.tensors.get(name).map(|entry| (entry.dtype, entry.shape.as_slice()))
    }

    /// Whether every tensor is stored in bf16.
    pub fn are_bf16(&self) -> bool {
        self.tensors.values().all(|entry| entry.dtype == Dtype::BF16)
    }

    /// Some of a tensor's numbers, counted as they lie in the file, as f32.
    ///
    /// # Errors
    /// When it is missing or shorter, or is stored in a type other than f32, f16 or bf16.
    pub fn strip(&self, name: &str, numbers: Range<usize>) -> Result<Vec<f32>> {
        let dtype = self.float_type(name, self.find(name)?)?;
        let count = numbers.len();
        let bytes = self.raw_strip(name, numbers)?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &[count], &Device::Cpu)?.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// The same as the bytes that the file holds.
    ///
    /// # Errors
    /// When it is missing or shorter, or its numbers are no whole bytes.
    pub fn raw_strip(&self, name: &str, numbers: Range<usize>) -> Result<Vec<u8>> {
        let entry = self.find(name)?;
        let (bits, size) = (entry.dtype.bitsize(), entry.shape.iter().product());
        if numbers.end > size || !bits.is_multiple_of(8) {
            return Err(self
                .wrong(format!("the tensor {name} of {size} numbers, each {bits} bits, has no numbers {numbers:?}")));
        }
        let start = entry.bytes.start + numbers.start * bits / 8;
        self.read_at(entry, start..start + numbers.len() * bits / 8)
    }

    fn read(&self, entry: &Entry) -> Result<Vec<u8>> {
        self.read_at(entry, entry.bytes.clone())
    }

    fn read_at(&self, entry: &Entry, place: Range<usize>) -> Result<Vec<u8>> {
        let mut bytes = vec![0u8; place.len()];
        let read = self.files[entry.file].read_exact_at(&mut bytes, place.start as u64);
        read.map_err(|cause| self.wrong(format!("it cannot be read: {cause}")))?;
        Ok(bytes)
    }

    fn find(&self, name: &str) -> Result<&Entry> {
        let found = self.tensors.get(name);
        found.ok_or_else(|| self.lacks(name))
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        wrong(&self.listing, what)
    }

    fn lacks(&self, name: &str) -> Error {
        self.wrong(format!("it lacks the tensor {name}"))
    }

    /// Checks that a tensor is there in this shape and in a type that can be read; its numbers are not read.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.entry(name, shape).map(drop)
    }

    /// Checks that a tensor is there in this shape, and that every number in it is finite. A strip of it is in memory
    /// at a time.
    ///
    /// # Errors
    /// As [`Weights::get`]; and when a number is infinite or none at all.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.expect(name, shape)?;
        let size = shape.iter().product();
        for start in (0..size).step_by(STRIP) {
            let values = self.strip(name, start..(start + STRIP).min(size))?;
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let (value, at) = (values[at], start + at);
                return Err(
                    self.wrong(format!("the tensor {name} holds {value} as its number {at}; weights must be finite"))
                );
            }
        }
        Ok(())
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<(&Entry, DType)> {
        let entry = self.find(name)?;
        if entry.shape != shape {
            return Err(self.wrong(format!(
                "the tensor {name} has shape {:?}, its configuration asks for {shape:?}",
                entry.shape
            )));
        }
        Ok((entry, self.float_type(name, entry)?))
    }

    fn float_type(&self, name: &str, entry: &Entry) -> Result<DType> {
        match entry.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            other => {
                Err(self.wrong(format!("the tensor {name} is stored as {other:?}; F32, F16 and BF16 can be read")))
            }
        }
    }
}

/// How numbers are stored in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits, exact.
    F32,
    /// The upper 16 of those bits, rounded to nearest even.
    Bf16,
}

/// A tensor on its way into a file.
pub(super) struct Outgoing<'a> {
    shape: Vec<usize>,
    values: OutgoingValues<'a>,
}

enum OutgoingValues<'a> {
    Floats(Vec<f32>, Precision),
    Bytes(Cow<'a, [u8]>),
}

impl<'a> Outgoing<'a> {
    /// f32 numbers in one dimension.
    pub(super) fn floats(values: Vec<f32>) -> Self {
        Self { shape: vec![values.len()], values: OutgoingValues::Floats(values, Precision::F32) }
    }

    /// Bytes as they are.
    pub(super) fn bytes(values: Cow<'a, [u8]>, shape: Vec<usize>) -> Self {
        Self { shape, values: OutgoingValues::Bytes(values) }
    }

    /// A tensor as f32.
    pub(super) fn tensor(tensor: &Tensor) -> Result<Self> {
        Self::rounded(tensor, Precision::F32)
    }

    fn rounded(tensor: &Tensor, precision: Precision) -> Result<Self> {
        let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        Ok(Self { shape: tensor.dims().to_vec(), values: OutgoingValues::Floats(values, precision) })
    }
}

impl View for Outgoing<'_> {
    fn dtype(&self) -> Dtype {
        match self.values {
            OutgoingValues::Floats(_, Precision::F32) => Dtype::F32,
            OutgoingValues::Floats(_, Precision::Bf16) => Dtype::BF16,
            OutgoingValues::Bytes(_) => Dtype::U8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.values {
            OutgoingValues::Floats(values, Precision::F32) => {
                values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into()
            }
            OutgoingValues::Floats(values, Precision::Bf16) => {
                values.iter().flat_map(|value| bf16(*value).to_le_bytes()).collect::<Vec<_>>().into()
            }
            OutgoingValues::Bytes(bytes) => Cow::Borrowed(bytes),
        }
    }

    fn data_len(&self) -> usize {
        match &self.values {
            OutgoingValues::Floats(values, Precision::F32) => 4 * values.len(),
            OutgoingValues::Floats(values, Precision::Bf16) => 2 * values.len(),
            OutgoingValues::Bytes(bytes) => bytes.len(),
        }
    }
}

/// The nearest bf16, ties to even; a NaN stays one.
pub(super) fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        // Rounding could carry a NaN's mantissa into infinity: keep it quiet instead.
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Writes tensors as one safetensors file that torch, transformers and peft read. The same tensors
/// give the same bytes.
///
/// # Errors
/// When the file cannot be written.
pub fn save_tensors(path: &Path, tensors: &[(String, Tensor)], precision: Precision) -> Result<()> {
    let outgoing = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), Outgoing::rounded(tensor, precision)?)))
        .collect::<Result<Vec<_>>>()?;
    save(path, outgoing)
}

/// Writes tensors of any kind as one safetensors file.
pub(super) fn save(path: &Path, mut tensors: Vec<(String, Outgoing<'_>)>) -> Result<()> {
    // The order of the format's own library: larger numbers first, so that all are aligned, then by name.
    tensors.sort_by(|(a, left), (b, right)| right.dtype().cmp(&left.dtype()).then_with(|| a.cmp(b)));
    let parts =
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dtype(), tensor.shape().to_vec(), tensor.data_len()));
    let mut file = durable::Writer::create(path)?;
    file.write_all(&header(parts)?)?;
    for (_, tensor) in &tensors {
        file.write_all(&tensor.data())?;
    }
    Ok(file.finish()?)
}

/// The beginning of a safetensors file with these tensors, each by its name, type, shape and bytes: the length of the
/// header and the header.
pub(super) fn header(tensors: impl Iterator<Item = (String, Dtype, Vec<usize>, usize)>) -> Result<Vec<u8>> {
    let (mut infos, mut offset) = (Vec::new(), 0);
    for (name, dtype, shape, bytes) in tensors {
        infos.push((name, TensorInfo { dtype, shape, data_offsets: (offset, offset + bytes) }));
        offset += bytes;
    }
    let mut header = serde_json::to_vec(&Metadata::new(Some(origin()), infos)?)?;
    // The data begins at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes(), header.as_slice()].concat())
}

/// What a file says of itself: transformers refuses one that does not say which framework wrote it.
fn origin() -> HashMap<String, String> {
    HashMap::from([("format".to_string(), "pt".to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_bytes_that_the_formats_own_library_writes() {
        let dir = tempfile::tempdir().unwrap();
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        let outgoing = || {
            vec![
                ("z".to_string(), Outgoing::tensor(&tensor(&[1.0, 2.0])).unwrap()),
                ("b".to_string(), Outgoing::bytes(vec![1, 2, 3].into(), vec![3])),
                ("a".to_string(), Outgoing::tensor(&tensor(&[-0.5])).unwrap()),
                ("h".to_string(), Outgoing::rounded(&tensor(&[3.0]), Precision::Bf16).unwrap()),
            ]
        };
        let path = dir.path().join("own.safetensors");
        save(&path, outgoing()).unwrap();
        let library = safetensors::tensor::serialize(outgoing(), Some(origin())).unwrap();
        assert!(std::fs::read(&path).unwrap() == library);
    }

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn tensors_read_back_as_written_in_both_precisions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let values = [1.0, -2.5, 0.1, 3.0e8, f32::MIN_POSITIVE, 0.0];
        for (precision, exact) in [(Precision::F32, true), (Precision::Bf16, false)] {
            save_tensors(&path, &[("x".into(), tensor(&values, &[2, 3]))], precision).unwrap();
            let read = Weights::open_file(&path).unwrap().get("x", &[2, 3], &Device::Cpu).unwrap();
            for (read, written) in read.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().zip(values) {
                assert!(if exact { *read == written } else { (read - written).abs() <= written.abs() / 256.0 });
            }
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_even_and_keeps_nan() {
        assert_eq!(bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(bf16(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert!(f32::from_bits(u32::from(bf16(f32::NAN)) << 16).is_nan());
        assert_eq!(bf16(f32::INFINITY), 0x7f80);
    }

    #[test]
    fn f16_files_are_read_as_f32() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("half.safetensors");
        let half = tensor(&[1.5, -0.25], &[2]).to_dtype(DType::F16).unwrap();
        half.save_safetensors("h", &path).unwrap();
        let read = Weights::open_file(&path).unwrap().get("h", &[2], &Device::Cpu).unwrap();
        assert_eq!(read.to_vec1::<f32>().unwrap(), [1.5, -0.25]);
    }

    #[test]
    fn shards_are_found_through_the_index() {
        let dir = tempfile::tempdir().unwrap();
        for (file, name) in [("a.safetensors", "first"), ("b.safetensors", "second")] {
            save_tensors(&dir.path().join(file), &[(name.into(), tensor(&[1.0], &[1]))], Precision::F32).unwrap();
        }
        let index = r#"{"metadata": {}, "weight_map": {"first": "a.safetensors", "second": "b.safetensors"}}"#;
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["first", "second"]);
        assert!(weights.get("second", &[1], &Device::Cpu).is_ok());

        let escape = index.replace("b.safetensors", "../b.safetensors");
        std::fs::write(dir.path().join("model.safetensors.index.json"), escape).unwrap();
        assert!(Weights::open(dir.path()).err().unwrap().message().contains("is not a file name"));
    }

    #[test]
    fn what_is_wrong_with_the_weights_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Weights::open(dir.path()).err().unwrap();
        assert!(missing.message().contains("neither model.safetensors"), "{missing}");

        let path = dir.path().join("model.safetensors");
        save_tensors(&path, &[("x".into(), tensor(&[1.0, 2.0], &[2]))], Precision::F32).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        let absent = weights.get("y", &[2], &Device::Cpu).unwrap_err();
        assert!(absent.message().ends_with("lacks the tensor y"), "{absent}");
        let misshapen = weights.get("x", &[1, 2], &Device::Cpu).unwrap_err();
        assert!(misshapen.message().contains("x has shape [2], its configuration asks for [1, 2]"), "{misshapen}");

        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let cut = Weights::open(dir.path()).err().unwrap();
        assert!(cut.message().contains("model.safetensors"), "{cut}");
    }
}
