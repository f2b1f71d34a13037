//! What a run computes on: the CPU, or one CUDA GPU with a stream of the run's own. A build without the feature
//! `cuda` knows the names of GPUs and says that it cannot use them.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroUsize;

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

    /// The devices of one run, one for every slot: `auto` is as many GPUs as there are slots and the CPU where there
    /// is none, `cpu` any number of slots, and of GPUs every slot has its own. Without a number of slots, one for
    /// every device that is named, or one.
    ///
    /// # Errors
    /// When a name is no device that this build can use here, or devices and slots do not go together.
    pub fn of_slots(setting: &str, slots: Option<NonZeroUsize>) -> Result<Vec<Self>> {
        Self::for_slots(Self::parse(setting)?, setting.trim() == "auto", slots.map(NonZeroUsize::get))
    }

    fn for_slots(named: Vec<Self>, auto: bool, slots: Option<usize>) -> Result<Vec<Self>> {
        let (count, wanted) = (named.len(), slots.unwrap_or(if auto { 1 } else { named.len() }));
        let on_cpu = named.iter().filter(|one| **one == Self::Cpu).count();
        if on_cpu != 0 && on_cpu != count {
            return Err(Error::validation("The slots of one run are all on the CPU or all on GPUs: name one kind"));
        }
        let different: BTreeSet<String> = named.iter().map(Self::to_string).collect();
        if on_cpu == 0 && different.len() != count {
            return Err(Error::validation("Every slot needs a GPU of its own: name each GPU once"));
        }
        match (on_cpu == count, count.cmp(&wanted)) {
            (true, _) if count == 1 => Ok(vec![Self::Cpu; wanted]),
            (_, Ordering::Equal) => Ok(named),
            (false, Ordering::Greater) if auto => Ok(named.into_iter().take(wanted).collect()),
            (false, Ordering::Less) => Err(Error::validation(format!(
                "A run of {wanted} slots needs as many GPUs, each slot one of its own; here it has {count}. Name them, \
                 such as cuda:0,cuda:1, or ask for fewer slots"
            ))),
            _ => Err(Error::validation(format!(
                "A run of {wanted} slots cannot be placed on {count} devices: name one for every slot, or leave the \
                 number of slots out"
            ))),
        }
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
    #[test]
    fn every_slot_gets_a_device_and_no_two_share_a_gpu() {
        use TrainingDevice::{Cpu, Cuda};
        /// The devices that are named, whether by `auto`, the slots, and what comes of it.
        type Case<'a, T> = (&'a [TrainingDevice], bool, Option<usize>, T);
        let place = |named: &[TrainingDevice], auto, slots| TrainingDevice::for_slots(named.to_vec(), auto, slots);
        let two = [Cuda(0), Cuda(1)];
        let placed: [Case<'_, &[TrainingDevice]>; 9] = [
            (&[Cpu], true, None, &[Cpu]),
            (&[Cpu], true, Some(3), &[Cpu; 3]),
            (&[Cpu], false, Some(2), &[Cpu; 2]),
            (&[Cpu, Cpu], false, None, &[Cpu; 2]),
            (&[Cuda(3)], false, None, &[Cuda(3)]),
            (&two, true, None, &[Cuda(0)]),
            (&two, true, Some(2), &two),
            (&two, false, None, &two),
            (&two, false, Some(2), &two),
        ];
        for (named, auto, slots, devices) in placed {
            assert_eq!(place(named, auto, slots).unwrap(), devices, "{named:?}, auto {auto}, {slots:?}");
        }
        let refused: [Case<'_, &str>; 6] = [
            (&[Cpu, Cuda(0)], false, None, "all on the CPU or all on GPUs"),
            (&[Cuda(1), Cuda(1)], false, None, "name each GPU once"),
            (&[Cuda(0)], false, Some(2), "needs as many GPUs"),
            (&two, true, Some(3), "needs as many GPUs"),
            (&two, false, Some(1), "cannot be placed on 2 devices"),
            (&[Cpu, Cpu], false, Some(3), "cannot be placed on 2 devices"),
        ];
        for (named, auto, slots, words) in refused {
            let error = place(named, auto, slots).unwrap_err();
            assert!(error.message().contains(words), "{named:?}, auto {auto}, {slots:?}: {}", error.message());
        }
    }
}
