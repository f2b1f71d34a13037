//! A CUDA device as a machine: launches go to the driver on the device's one stream, products to cuBLAS, memory
//! comes from candle's pool and becomes candle's tensors without a copy.

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, result as driver_result, sys as driver};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr, gemm_reduced_precision_f32};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Device, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};
use half::bf16;

use super::launch::{Argument, Element, Launch, Machine, Value, View};
use super::product::Product;

/// Bytes of shared memory that a kernel may have without being allowed more.
const SHARED: u32 = 48 << 10;

/// A device and its stream.
#[derive(Debug, Clone)]
pub(in crate::kernels) struct Cuda {
    device: CudaDevice,
}

impl Cuda {
    /// The device that an operand of a forward pass lies on.
    pub(super) fn of(storage: &CudaStorage) -> Self {
        Self { device: storage.device().clone() }
    }

    /// The device that a tensor lies on.
    pub(super) fn of_tensor(tensor: &Tensor) -> Result<Self> {
        Self::of_device(tensor.device())
    }

    /// A device of candle's.
    pub(super) fn of_device(device: &Device) -> Result<Self> {
        Ok(Self { device: device.as_cuda_device()?.clone() })
    }

    /// The first device of this computer, if it has one.
    #[cfg(test)]
    pub(super) fn first() -> Option<Self> {
        Some(Self { device: CudaDevice::new_with_stream(0).ok()? })
    }

    /// Whether both are one.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.device.id() == other.device.id()
    }

    /// The stream, with its context bound to this thread, as calls of the driver itself need it.
    pub(super) fn stream(&self) -> Result<Arc<CudaStream>> {
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        Ok(stream)
    }

    #[expect(unsafe_code, reason = "memory that holds nothing in particular")]
    fn slice<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>> {
        // SAFETY: the elements are plain numbers, and a launch writes them before any reads them. The driver
        // gives no memory of no bytes.
        unsafe { self.device.alloc::<T>(len.max(1)) }
    }
}

/// Memory of a device. It may be longer than `len`, for the driver gives none of no bytes.
#[derive(Debug)]
pub(in crate::kernels) struct Memory {
    storage: CudaStorage,
    len: usize,
}

impl Memory {
    /// As candle's.
    pub(super) fn into_storage(self) -> CudaStorage {
        self.storage
    }

    /// As a tensor of this shape.
    pub(super) fn into_tensor(self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.elem_count() != self.len {
            bail!("cuda: {} values for a tensor of shape {shape:?}", self.len);
        }
        Ok(Tensor::from_storage(Storage::Cuda(self.storage), shape, BackpropOp::none(), false))
    }
}

/// The values of a contiguous operand of a forward pass.
pub(super) fn view<'a>(op: &str, storage: &'a CudaStorage, layout: &Layout) -> Result<View<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{op} reads rows in order: make the operand of shape {:?} contiguous", layout.shape())
    };
    whole(op, storage)?.part(start, end - start)
}

fn whole<'a>(op: &str, storage: &'a CudaStorage) -> Result<View<'a>> {
    let stream = storage.device().cuda_stream();
    macro_rules! view {
        ($slice:expr, $element:ident) => {{
            // The device has one stream, so whatever was written before is there when a later launch reads.
            let address = $slice.device_ptr(&stream).0;
            Ok(View::new(address, Element::$element, $slice.len()))
        }};
    }
    match &storage.slice {
        CudaStorageSlice::F32(slice) => view!(slice, F32),
        CudaStorageSlice::BF16(slice) => view!(slice, Bf16),
        CudaStorageSlice::U32(slice) => view!(slice, U32),
        CudaStorageSlice::U8(slice) => view!(slice, U8),
        CudaStorageSlice::F64(slice) => view!(slice, F64),
        _ => bail!("{op} computes in f32 and bf16 on a GPU: convert the {:?} operand with to_dtype", storage.dtype()),
    }
}

/// A tensor whose memory is looked at, for backward passes: they get tensors, not storages.
pub(super) struct Held<'a> {
    op: &'static str,
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Held<'a> {
    pub(super) fn of(op: &'static str, tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { op, storage, layout }
    }

    /// The values.
    pub(super) fn view(&self) -> Result<View<'_>> {
        match &*self.storage {
            Storage::Cuda(storage) => view(self.op, storage, self.layout),
            other => bail!("{}: all operands belong on one device, one is on {:?}", self.op, other.device().location()),
        }
    }
}

impl Machine for Cuda {
    type Memory = Memory;

    fn allocate(&self, element: Element, len: usize) -> Result<Memory> {
        let slice = match element {
            Element::F32 => CudaStorageSlice::F32(self.slice(len)?),
            Element::Bf16 => CudaStorageSlice::BF16(self.slice::<bf16>(len)?),
            Element::U32 => CudaStorageSlice::U32(self.slice(len)?),
            Element::U8 => CudaStorageSlice::U8(self.slice(len)?),
            Element::F64 => CudaStorageSlice::F64(self.slice(len)?),
        };
        Ok(Memory { storage: CudaStorage { slice, device: self.device.clone() }, len })
    }

    fn zeros(&self, element: Element, len: usize) -> Result<Memory> {
        let slice = match element {
            Element::F32 => CudaStorageSlice::F32(self.device.alloc_zeros(len.max(1))?),
            Element::Bf16 => CudaStorageSlice::BF16(self.device.alloc_zeros(len.max(1))?),
            Element::U32 => CudaStorageSlice::U32(self.device.alloc_zeros(len.max(1))?),
            Element::U8 => CudaStorageSlice::U8(self.device.alloc_zeros(len.max(1))?),
            Element::F64 => CudaStorageSlice::F64(self.device.alloc_zeros(len.max(1))?),
        };
        Ok(Memory { storage: CudaStorage { slice, device: self.device.clone() }, len })
    }

    #[expect(unsafe_code, reason = "the driver copies from memory by its address")]
    fn upload<T: Value>(&self, values: &[T]) -> Result<Memory> {
        let memory = self.allocate(T::ELEMENT, values.len())?;
        let (address, stream) = (self.view(&memory).address, self.stream()?);
        if !values.is_empty() {
            // SAFETY: the memory has as many bytes as the values. The values are pageable, so the driver has
            // taken them by the time it returns.
            unsafe { driver_result::memcpy_htod_async(address, values, stream.cu_stream()) }.w()?;
        }
        Ok(memory)
    }

    #[expect(unsafe_code, reason = "the driver copies to memory by its address")]
    fn download<T: Value>(&self, memory: &Memory) -> Result<Vec<T>> {
        let view = self.view(memory);
        if view.element != T::ELEMENT {
            bail!("cuda: memory of {:?} was asked for as {:?}", view.element, T::ELEMENT);
        }
        let stream = self.stream()?;
        let mut values = vec![T::default(); memory.len];
        if !values.is_empty() {
            // SAFETY: both sides have `len` numbers of one kind, and the stream is waited for before the
            // values are looked at.
            unsafe { driver_result::memcpy_dtoh_async(&mut values, view.address, stream.cu_stream()) }.w()?;
        }
        stream.synchronize().w()?;
        Ok(values)
    }

    fn view<'a>(&self, memory: &'a Memory) -> View<'a> {
        // Memory is made in `allocate` and `zeros`, of elements that `whole` knows.
        whole("cuda", &memory.storage)
            .map_or(View::null(Element::F32), |view| View::new(view.address, view.element, memory.len))
    }

    #[expect(unsafe_code, reason = "a kernel is started")]
    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        if launch.is_empty() {
            return Ok(());
        }
        let stream = self.stream()?;
        let function = self.device.get_or_load_custom_func(&launch.kernel, launch.module.name, launch.module.ptx)?;
        let function = function.into_cuda_function();
        if launch.shared > SHARED {
            let attribute = driver::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, launch.shared as i32).w()?;
        }
        let mut arguments = stream.launch_builder(&function);
        for argument in &launch.arguments {
            match argument {
                Argument::Memory(view) => arguments.arg(&view.address),
                Argument::U32(value) => arguments.arg(value),
                Argument::U64(value) => arguments.arg(value),
                Argument::F32(value) => arguments.arg(value),
                Argument::F64(value) => arguments.arg(value),
            };
        }
        let size = |[x, y, z]: [u32; 3]| (x, y, z);
        let config = LaunchConfig {
            grid_dim: size(launch.grid),
            block_dim: size(launch.block),
            shared_mem_bytes: launch.shared,
        };
        // SAFETY: number, order and kinds of the arguments are those of the kernel, which the tests hold on the
        // emulator; their memory outlives the launch on this stream, because freeing it is ordered behind.
        unsafe { arguments.launch(config) }.w()?;
        Ok(())
    }

    #[expect(unsafe_code, reason = "cuBLAS takes addresses")]
    fn multiply(&self, product: &Product<'_>) -> Result<()> {
        if product.m == 0 || product.n == 0 {
            return Ok(());
        }
        let turned =
            |turn| if turn { sys::cublasOperation_t::CUBLAS_OP_T } else { sys::cublasOperation_t::CUBLAS_OP_N };
        let kind = |view: View<'_>| match view.element {
            Element::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
            Element::Bf16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
            other => bail!("cuda: no product of {other:?}"),
        };
        let single = product.a.element == Element::F32 && gemm_reduced_precision_f32();
        let compute = match single {
            true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        self.stream()?;
        let blas = self.device.cublas_handle();
        // SAFETY: the sizes and strides are those of the views, which `Product::new` checked; alpha and beta are
        // f32 on the host, as this compute type reads them, and are read before the call returns.
        unsafe {
            result::gemm_ex(
                *blas.handle(),
                turned(product.turn_a),
                turned(product.turn_b),
                product.m as i32,
                product.n as i32,
                product.k as i32,
                (&raw const product.alpha).cast::<c_void>(),
                product.a.address as *const c_void,
                kind(product.a)?,
                product.stride_a.max(1) as i32,
                product.b.address as *const c_void,
                kind(product.b)?,
                product.stride_b.max(1) as i32,
                (&raw const product.beta).cast::<c_void>(),
                product.c.address as *mut c_void,
                kind(product.c)?,
                product.stride_c.max(1) as i32,
                compute,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()
    }
}
