//! What a run computes on: the CPU, or one CUDA GPU with a stream of the run's own. A build without the feature
//! `cuda` knows the names of GPUs and says that it cannot use them.

use std::fmt;

use candle_core::Device;

use super::{Memory, MemoryKind};
use crate::error::{Error, Result};

/// A device by its name: `cpu`, or `cuda:0` and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrainingDevice {
    /// All cores that the process may use.
    #[default]
    Cpu,
    /// The GPU of this number, as the driver counts them.
    Cuda(usize),
}

impl TrainingDevice {
    /// The devices of a setting: `auto` (every GPU that this build can use and the computer has, else the CPU),
    /// or names with commas between them, one for each trainer.
    ///
    /// # Errors
    /// When a name is none, or a GPU is asked for that this build or this computer does not have.
    pub fn parse(setting: &str) -> Result<Vec<Self>> {
        let gpus = gpus();
        if setting.trim() == "auto" {
            return Ok(match gpus {
                0 => vec![Self::Cpu],
                count => (0..count).map(Self::Cuda).collect(),
            });
        }
        setting.split(',').map(|name| Self::named(name.trim(), gpus)).collect()
    }

    fn named(name: &str, gpus: usize) -> Result<Self> {
        if name == "cpu" {
            return Ok(Self::Cpu);
        }
        let Some(number) = name.strip_prefix("cuda:").and_then(|number| number.parse().ok()) else {
            return Err(Error::validation(format!("{name:?} is not a device; use auto, cpu, or cuda:0,cuda:1")));
        };
        if !cfg!(feature = "cuda") {
            return Err(Error::validation(format!(
                "This build has no CUDA, so it cannot train on {name}. Build it with --features cuda, or use cpu"
            )));
        }
        if number >= gpus {
            return Err(Error::validation(format!("There is no {name}: the driver knows {gpus} GPUs")));
        }
        Ok(Self::Cuda(number))
    }

    /// The device, ready for work. A GPU gets a stream that belongs to the caller alone.
    ///
    /// # Errors
    /// When this build has no CUDA, or the driver refuses.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => open_gpu(number),
        }
    }
}

impl TrainingDevice {
    /// The memory that a run on this device may take; `host` is what it may take of the machine's.
    ///
    /// # Errors
    /// When the driver does not say how much a GPU has.
    pub(crate) fn memory(self, host: Memory) -> Result<Memory> {
        match self {
            Self::Cpu => Ok(host),
            Self::Cuda(number) => Ok(Memory { kind: MemoryKind::Device, bytes: gpu_memory(number)? }),
        }
    }
}

/// What a GPU has in all, less what the driver and the libraries' own workspaces take.
#[cfg(feature = "cuda")]
fn gpu_memory(number: usize) -> Result<u64> {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;

    const RESERVED: u64 = 1 << 30;
    let context = CudaContext::new(number).map_err(Error::internal)?;
    let total = context.total_mem().map_err(Error::internal)?;
    Ok((total as u64).saturating_sub(RESERVED))
}

#[cfg(not(feature = "cuda"))]
fn gpu_memory(number: usize) -> Result<u64> {
    Err(Error::validation(format!("This build has no CUDA, so it cannot train on cuda:{number}")))
}

impl fmt::Display for TrainingDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// How many GPUs this build can use here; no driver means none.
#[cfg(feature = "cuda")]
fn gpus() -> usize {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    CudaContext::device_count().map_or(0, |count| usize::try_from(count).unwrap_or_default())
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> usize {
    0
}

#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "settings of the driver that candle leaves at their defaults")]
fn open_gpu(number: usize) -> Result<Device> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    let device = Device::new_cuda_with_stream(number)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: every tensor of the run is made and used on the device's one stream.
    unsafe { cuda.disable_event_tracking() };
    // Freed memory stays with the process, or each wait for the stream would hand it back to the driver.
    let mut keep = u64::MAX;
    // SAFETY: the attribute is a u64, which lives through the call.
    let kept = unsafe {
        result::device::get_default_mem_pool(cuda.cuda_stream().context().cu_device()).and_then(|pool| {
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, attribute, (&raw mut keep).cast())
        })
    };
    kept.map_err(Error::internal)?;
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(number: usize) -> Result<Device> {
    Err(Error::validation(format!("This build has no CUDA, so it cannot train on cuda:{number}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_a_device_that_is_not_there_is_refused_in_words() {
        assert_eq!(TrainingDevice::parse("cpu, cpu").unwrap(), [TrainingDevice::Cpu; 2]);
        assert!(!TrainingDevice::parse("auto").unwrap().is_empty());
        for (setting, words) in [("gpu", "is not a device"), ("cuda:x", "is not a device"), ("cpu,", "is not a device")]
        {
            let error = TrainingDevice::parse(setting).unwrap_err();
            assert!(error.message().contains(words), "{}", error.message());
        }
        let missing = TrainingDevice::parse("cuda:4096").unwrap_err();
        let words = if cfg!(feature = "cuda") { "There is no cuda:4096" } else { "Build it with --features cuda" };
        assert!(missing.message().contains(words), "{}", missing.message());
    }
}
