//! What a launch consists of, and what a machine must be able to do. Nothing here touches a device: a launch
//! is a description, which the device's launcher hands to the driver and the emulator to a host function.

use std::marker::PhantomData;

use candle_core::{Result, bail};

use super::product::Product;

/// What memory consists of. The numbers are the emulator's, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) enum Element {
    F32 = 0,
    Bf16 = 1,
    U32 = 2,
    U8 = 3,
    F64 = 4,
}

impl Element {
    /// Bytes of one.
    pub(super) fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Bf16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::F64 => 8,
        }
    }

    /// What a kernel's name ends in: kernels exist for f32 and for bf16.
    pub(super) fn suffix(self) -> Result<&'static str> {
        match self {
            Self::F32 => Ok("f32"),
            Self::Bf16 => Ok("bf16"),
            other => bail!("cuda: no kernel computes with {other:?}"),
        }
    }
}

/// A stretch of a machine's memory, contiguous. Whether it may be written is the kernel's business.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct View<'a> {
    /// An address on the machine.
    pub(super) address: u64,
    pub(super) element: Element,
    /// In elements.
    pub(super) len: usize,
    owner: PhantomData<&'a ()>,
}

impl<'a> View<'a> {
    /// Memory that somebody owns for `'a`.
    pub(super) fn new(address: u64, element: Element, len: usize) -> Self {
        Self { address, element, len, owner: PhantomData }
    }

    /// No memory: an output that nobody asked for.
    pub(super) fn null(element: Element) -> Self {
        Self::new(0, element, 0)
    }

    /// The elements from the `start`-th on, `len` of them.
    pub(super) fn part(self, start: usize, len: usize) -> Result<Self> {
        if start + len > self.len {
            bail!("cuda: elements {start} to {} of memory of {}", start + len, self.len);
        }
        Ok(Self::new(self.address + (start * self.element.size()) as u64, self.element, len))
    }

    /// Refuses memory that has not exactly `len` elements.
    pub(super) fn expect(self, op: &str, len: usize) -> Result<Self> {
        if self.len != len {
            bail!("{op}: an operand of {} values where {len} are needed", self.len);
        }
        Ok(self)
    }
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) enum Argument<'a> {
    Memory(View<'a>),
    U32(u32),
    U64(u64),
    F32(f32),
    F64(f64),
}

impl<'a> From<View<'a>> for Argument<'a> {
    fn from(view: View<'a>) -> Self {
        Self::Memory(view)
    }
}

impl From<u64> for Argument<'_> {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}

impl From<f32> for Argument<'_> {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<f64> for Argument<'_> {
    fn from(value: f64) -> Self {
        Self::F64(value)
    }
}

impl From<u32> for Argument<'_> {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

/// One `.cu` file.
#[derive(Debug)]
pub(in crate::kernels) struct Module {
    pub(super) name: &'static str,
    /// What the build made of it.
    #[cfg(feature = "cuda")]
    pub(super) ptx: &'static str,
}

/// The module of `src/kernels/$name.cu`.
macro_rules! module {
    ($name:literal) => {
        $crate::kernels::cuda::Module {
            name: $name,
            #[cfg(feature = "cuda")]
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        }
    };
}
pub(super) use module;

/// Threads of a block where each takes one element.
pub(super) const THREADS: u32 = 256;

/// A kernel and everything it is started with.
#[derive(Debug)]
pub(in crate::kernels) struct Launch<'a> {
    pub(super) module: &'static Module,
    pub(super) kernel: String,
    /// Blocks.
    pub(super) grid: [u32; 3],
    /// Threads of a block.
    pub(super) block: [u32; 3],
    /// Bytes of shared memory whose size the launch decides.
    pub(super) shared: u32,
    pub(super) arguments: Vec<Argument<'a>>,
}

impl<'a> Launch<'a> {
    /// `kernel` for operands of `element`, with a thread for each of `count` elements.
    pub(super) fn each(module: &'static Module, kernel: &str, element: Element, count: usize) -> Result<Self> {
        let blocks = narrow("elements", count.div_ceil(THREADS as usize))?;
        Self::blocks(module, kernel, element, [blocks, 1, 1], THREADS)
    }

    /// `kernel` for operands of `element`, with a block for each of `rows`, of as many threads as suit rows of
    /// `width` values.
    pub(super) fn rows(
        module: &'static Module,
        kernel: &str,
        element: Element,
        rows: usize,
        width: usize,
    ) -> Result<Self> {
        let threads = width.div_ceil(32).clamp(1, 16) * 32;
        Self::blocks(module, kernel, element, [narrow("rows", rows)?, 1, 1], threads as u32)
    }

    /// `kernel` for operands of `element`, with this grid of blocks of so many threads.
    pub(super) fn blocks(
        module: &'static Module,
        kernel: &str,
        element: Element,
        grid: [u32; 3],
        threads: u32,
    ) -> Result<Self> {
        let kernel = format!("{kernel}_{}", element.suffix()?);
        Ok(Self { module, kernel, grid, block: [threads, 1, 1], shared: 0, arguments: Vec::new() })
    }

    /// The next argument.
    pub(super) fn with(mut self, argument: impl Into<Argument<'a>>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// The next argument, a count that kernels take in 32 bits.
    pub(super) fn with_count(self, count: usize) -> Result<Self> {
        let count = narrow("a count", count)?;
        Ok(self.with(count))
    }

    /// The next argument, a count that kernels take in 64 bits.
    pub(super) fn with_total(self, total: usize) -> Self {
        self.with(total as u64)
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// A number in the 32 bits that a launch has for it.
pub(super) fn narrow(what: &str, value: usize) -> Result<u32> {
    match u32::try_from(value) {
        Ok(value) if value <= i32::MAX as u32 => Ok(value),
        _ => bail!("cuda: {value} {what} are more than one launch takes"),
    }
}

/// Where kernels run. Work is done in the order it was given.
pub(in crate::kernels) trait Machine {
    /// Owned memory; it may be dropped as soon as the last launch that uses it was given.
    type Memory;

    /// Memory that holds nothing in particular.
    fn allocate(&self, element: Element, len: usize) -> Result<Self::Memory>;

    /// Memory that holds zeros.
    fn zeros(&self, element: Element, len: usize) -> Result<Self::Memory>;

    /// Brings values onto the machine.
    fn upload<T: Value>(&self, values: &[T]) -> Result<Self::Memory>;

    /// Waits for all work and brings values back; `T` is what the memory consists of.
    fn download<T: Value>(&self, memory: &Self::Memory) -> Result<Vec<T>>;

    /// The memory as an operand.
    fn view<'a>(&self, memory: &'a Self::Memory) -> View<'a>;

    /// Starts a kernel.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Starts a product of matrices.
    fn multiply(&self, product: &Product<'_>) -> Result<()>;
}

/// A number that is brought to and from a machine.
pub(in crate::kernels) trait Value: Copy + Default + 'static {
    /// What memory of it consists of.
    const ELEMENT: Element;
}

impl Value for f32 {
    const ELEMENT: Element = Element::F32;
}

impl Value for u32 {
    const ELEMENT: Element = Element::U32;
}

impl Value for u8 {
    const ELEMENT: Element = Element::U8;
}

impl Value for f64 {
    const ELEMENT: Element = Element::F64;
}
