//! A machine for the tests: every `.cu` file built by the system's C++ compiler against `emulator.h`, loaded
//! into this process, and launched with what the launches of this folder say. Memory begins as NaN and lies
//! between guards, so what is read before it is written shows, and what is written outside fails.

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use candle_core::{Result, bail};
use libloading::Library;

use super::launch::{Argument, Element, Launch, Machine, Value, View};
use super::product::Product;

/// Bytes before and after every piece of memory.
const GUARD: usize = 256;

/// The host that plays a device.
pub(super) struct Emulator {
    compiler: String,
    /// The loaded files.
    modules: Mutex<HashMap<&'static str, Library>>,
}

/// As `Launch` of `emulator.h` lays it out.
#[repr(C)]
struct Call {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    count: u32,
    arguments: *const Word,
}

/// As `Argument` of `emulator.h` lays it out.
#[repr(C)]
struct Word {
    kind: u32,
    unused: u32,
    bits: u64,
}

impl From<&Argument<'_>> for Word {
    fn from(argument: &Argument<'_>) -> Self {
        let (kind, bits) = match argument {
            Argument::U32(value) => (1, u64::from(*value)),
            Argument::U64(value) => (2, *value),
            Argument::F32(value) => (3, u64::from(value.to_bits())),
            Argument::F64(value) => (4, value.to_bits()),
            Argument::Memory(view) => (16 + view.element as u32, view.address),
        };
        Self { kind, unused: 0, bits }
    }
}

impl Emulator {
    /// The emulator, where there is a C++ compiler (`CXX`, else `g++`).
    #[expect(clippy::disallowed_methods, reason = "the compiler is a setting of this test alone")]
    pub(super) fn new() -> Option<Self> {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
        let found = Command::new(&compiler).arg("--version").output().is_ok_and(|output| output.status.success());
        found.then(|| Self { compiler, modules: Mutex::default() })
    }

    /// The file of a module, built unless its sources are those of the last time.
    fn built(&self, name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
        let source = folder.join(format!("{name}.cu"));
        let texts = [&source, &folder.join("cuda/kernel.cuh"), &folder.join("cuda/emulator.h")]
            .map(|path| std::fs::read(path).unwrap());
        let mark = texts
            .concat()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |mark, byte| (mark ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
        // Tests of one process build one file at a time; those of other processes have names of their own.
        static BUILDING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let into = std::env::current_exe().unwrap().with_file_name("kernels");
        std::fs::create_dir_all(&into).unwrap();
        let (file, making) =
            (into.join(format!("{name}-{mark:x}.so")), into.join(format!("{name}-{mark:x}-{}", std::process::id())));
        if !file.exists() {
            let flags =
                ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-x", "c++"];
            let warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"];
            let mut command = Command::new(&self.compiler);
            let output = command.args(flags).args(warnings).arg(&source).arg("-o").arg(&making).output().unwrap();
            assert!(output.status.success(), "{name}.cu: {}", String::from_utf8_lossy(&output.stderr));
            std::fs::rename(&making, &file).unwrap();
        }
        file
    }
}

/// A piece of the host's memory.
pub(super) struct Memory {
    element: Element,
    len: usize,
    /// A guard, the values, a guard.
    bytes: Box<[u8]>,
}

impl Memory {
    fn new(element: Element, len: usize) -> Self {
        Self { element, len, bytes: vec![0xff; 2 * GUARD + len * element.size()].into() }
    }

    fn values_mut(&mut self) -> &mut [u8] {
        let end = self.bytes.len() - GUARD;
        &mut self.bytes[GUARD..end]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let end = self.bytes.len() - GUARD;
        let whole = self.bytes[..GUARD].iter().chain(&self.bytes[end..]).all(|byte| *byte == 0xff);
        assert!(whole || std::thread::panicking(), "a kernel wrote outside of {} {:?}", self.len, self.element);
    }
}

impl Machine for Emulator {
    type Memory = Memory;

    fn allocate(&self, element: Element, len: usize) -> Result<Memory> {
        Ok(Memory::new(element, len))
    }

    fn zeros(&self, element: Element, len: usize) -> Result<Memory> {
        let mut memory = Memory::new(element, len);
        memory.values_mut().fill(0);
        Ok(memory)
    }

    #[expect(unsafe_code, reason = "plain numbers are looked at as bytes")]
    fn upload<T: Value>(&self, values: &[T]) -> Result<Memory> {
        let mut memory = Memory::new(T::ELEMENT, values.len());
        // SAFETY: the numbers that implement Value are any bytes of their size.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        memory.values_mut().copy_from_slice(bytes);
        Ok(memory)
    }

    #[expect(unsafe_code, reason = "bytes are looked at as plain numbers")]
    fn download<T: Value>(&self, memory: &Memory) -> Result<Vec<T>> {
        assert_eq!(memory.element, T::ELEMENT);
        let size = size_of::<T>();
        let values = memory.bytes[GUARD..GUARD + memory.len * size].chunks_exact(size);
        // SAFETY: as in `upload`; a chunk has the size of one number.
        Ok(values.map(|chunk| unsafe { chunk.as_ptr().cast::<T>().read_unaligned() }).collect())
    }

    fn view<'a>(&self, memory: &'a Memory) -> View<'a> {
        View::new(memory.bytes.as_ptr() as u64 + GUARD as u64, memory.element, memory.len)
    }

    #[expect(unsafe_code, reason = "host functions of a library built from the kernels are called")]
    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        if launch.is_empty() {
            return Ok(());
        }
        let mut modules = self.modules.lock().unwrap();
        let library = modules.entry(launch.module.name).or_insert_with(|| {
            // SAFETY: the library was built from this repository and runs nothing when loaded.
            unsafe { Library::new(self.built(launch.module.name)) }.unwrap()
        });
        let words: Vec<Word> = launch.arguments.iter().map(Word::from).collect();
        let call = Call {
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            count: words.len() as u32,
            arguments: words.as_ptr(),
        };
        let name = CString::new(format!("launch_{}", launch.kernel)).unwrap();
        // SAFETY: `ENTRY` of emulator.h defines every such function with this type; it checks number and
        // kinds of the arguments, and their memory lives as long as the launch.
        let failed = unsafe {
            let entry = library.get::<unsafe extern "C" fn(*const Call) -> c_int>(name.as_bytes_with_nul()).unwrap();
            entry(&raw const call)
        };
        if failed != 0 {
            bail!("{} failed: see the message before", launch.kernel);
        }
        Ok(())
    }

    /// cuBLAS's definition, one inner product at a time.
    fn multiply(&self, product: &Product<'_>) -> Result<()> {
        let [m, n, k] = [product.m, product.n, product.k].map(|size| size as usize);
        let [over_a, over_b, over_c] =
            [product.stride_a, product.stride_b, product.stride_c].map(|stride| stride as usize);
        for column in 0..n {
            for row in 0..m {
                let mut sum = 0f64;
                for i in 0..k {
                    let a = if product.turn_a { i + row * over_a } else { row + i * over_a };
                    let b = if product.turn_b { column + i * over_b } else { i + column * over_b };
                    sum += f64::from(value(product.a, a)) * f64::from(value(product.b, b));
                }
                let place = row + column * over_c;
                let held = if product.beta == 0.0 { 0.0 } else { product.beta * value(product.c, place) };
                put(product.c, place, product.alpha * sum as f32 + held);
            }
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "memory of the emulator is read through a view")]
fn value(view: View<'_>, place: usize) -> f32 {
    assert!(place < view.len);
    let at = view.address as *const u8;
    // SAFETY: the view's owner lives, and the place is inside.
    unsafe {
        match view.element {
            Element::F32 => at.cast::<f32>().add(place).read_unaligned(),
            Element::Bf16 => f32::from_bits(u32::from(at.cast::<u16>().add(place).read_unaligned()) << 16),
            other => panic!("no product of {other:?}"),
        }
    }
}

#[expect(unsafe_code, reason = "memory of the emulator is written through a view")]
fn put(view: View<'_>, place: usize, value: f32) {
    assert!(place < view.len);
    let at = view.address as *mut u8;
    let bits = value.to_bits();
    // SAFETY: the view's owner lives, nothing else looks at its bytes meanwhile, and the place is inside.
    unsafe {
        match view.element {
            Element::F32 => at.cast::<f32>().add(place).write_unaligned(value),
            Element::Bf16 => {
                at.cast::<u16>().add(place).write_unaligned(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16);
            }
            other => panic!("no product of {other:?}"),
        }
    }
}
