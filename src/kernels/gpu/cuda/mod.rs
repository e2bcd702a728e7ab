//! The driver of a real GPU, through cudarc and on candle's stream.

mod fatbin;
mod gemm;
mod mapped;
mod pool;
mod timing;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::Device as CandleDevice;
use cudarc::driver::sys::{
    self, CUdevice_attribute as Attribute, CUfunction_attribute as FunctionAttribute,
    CUlimit as Limit,
};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DriverError, result,
};
use cudarc::nvrtc::Ptx;

use self::fatbin::{FATBINS, RUNS_ON};
use super::driver::{Driver, Facts, Follows, Grid, Mapped, Mark, Memory, Pool, Recording};
use super::gemm::Gemm;
use crate::error::{Error, Result};

/// Identifies the kernels of this build: a hash over their sources, the compiler's version and its flags.
pub const KERNELS_HASH: &str = env!("CANDLEPOWER_KERNELS_HASH");

/// From this compute capability on a grid can overlap with the one before it.
const OVERLAPS_FROM: i32 = 9;

/// Percent of a multiprocessor's memory that is shared, where all that can be is.
const CARVEOUT_MAX_SHARED: i32 = 100;

/// A GPU with candle's device on it and the kernels of this program loaded.
pub(super) struct Cuda {
    device: CandleDevice,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    lt: gemm::Lt,
    functions: HashMap<&'static str, CudaFunction>,
    facts: Facts,
}

/// Memory of the stream's pool.
struct Allocation {
    address: u64,
    bytes: usize,
    _memory: CudaSlice<u8>,
}

impl Memory for Allocation {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Cuda {
    /// Opens GPU `ordinal` and loads every kernel, so that no later call has to.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if there is no such GPU, or none that the kernels were compiled for.
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let no_device = |why: &str| {
            Error::NoDevice(format!(
                "cannot open CUDA device {ordinal}: {why}; --device cpu does without"
            ))
        };
        let unanswered = |e: DriverError| no_device(&in_words(e));
        // Asked first because the driver says in a few words why it has no such GPU; candle adds a backtrace.
        let first = CudaContext::new(ordinal).map_err(unanswered)?;
        let stack = first.get_limit(Limit::CU_LIMIT_STACK_SIZE).ok();
        // A stream of its own: candle's other choice is the per-thread default stream, a different one for every thread.
        let device =
            CandleDevice::new_cuda_with_stream(ordinal).map_err(|e| no_device(&e.to_string()))?;
        let candle = device
            .as_cuda_device()
            .map_err(|e| no_device(&e.to_string()))?;
        // SAFETY: every use of the memory allocated from here on goes to the one stream of this device, in order.
        unsafe { candle.disable_event_tracking() };
        let stream = candle.cuda_stream();
        let context = stream.context().clone();
        // The driver keeps local memory for as many threads as fit on the device at once, each with the largest stack that
        // any kernel has asked for, gigabytes where a library initialises random numbers. What it has grown to goes back;
        // where the driver refuses, that memory is lost and nothing else.
        if let Some(stack) = stack {
            stream.synchronize().map_err(unanswered)?;
            context.set_limit(Limit::CU_LIMIT_STACK_SIZE, stack).ok();
        }
        let facts = facts(&context).map_err(unanswered)?;
        pool::keep(&context).map_err(unanswered)?;
        Ok(Self {
            functions: load_kernels(&context, &facts)?,
            facts,
            lt: gemm::Lt::new(&stream)?,
            context,
            stream,
            device,
        })
    }
}

impl Driver for Cuda {
    fn kind(&self) -> &'static str {
        "cuda"
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn kernels(&self) -> Vec<String> {
        self.functions.keys().map(|&name| name.to_owned()).collect()
    }

    fn kernels_hash(&self) -> Option<&'static str> {
        Some(KERNELS_HASH)
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = self
            .context
            .mem_get_info()
            .map_err(|e| fault("memory information", e))?;
        Ok((free as u64, total as u64))
    }

    fn pool(&self) -> Result<Pool> {
        self.bind()?;
        pool::account(&self.context).map_err(|e| fault("the account of the memory pool", e))
    }

    fn settle_pool(&self) -> Result<()> {
        self.bind()?;
        pool::settle(&self.context).map_err(|e| fault("the reset of the memory pool", e))
    }

    fn alloc(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        // The driver refuses to allocate nothing, and a kernel wants an address even if it reads nothing from it.
        let memory = self
            .stream
            .alloc_zeros::<u8>(bytes.max(1))
            .map_err(|e| no_room(bytes, e))?;
        let address = memory.device_ptr(&self.stream).0;
        Ok(Box::new(Allocation {
            address,
            bytes,
            _memory: memory,
        }))
    }

    fn alloc_mapped(&self, words: usize) -> Result<Box<dyn Mapped>> {
        mapped::alloc(&self.stream, words)
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the memory is there by contract; the driver has read pageable memory when the call returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }
            .map_err(|e| fault("upload", e))
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the memory is there by contract, and `bytes` is borrowed until the copy is done.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) };
        let done = self.synchronize();
        copied.map_err(|e| fault("download", e))?;
        done
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: the memory is there by contract.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(|e| fault("copy", e))
    }

    fn synchronize(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(|e| fault("synchronize", e))
    }

    fn is_idle(&self) -> Result<bool> {
        self.bind()?;
        // SAFETY: the stream lives as long as this driver.
        match unsafe { sys::cuStreamQuery(self.stream.cu_stream()) } {
            sys::CUresult::CUDA_SUCCESS => Ok(true),
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            failed => Err(fault("the state of the stream", DriverError(failed))),
        }
    }

    fn resident_blocks(&self, kernel: &str, threads: u32, shared_bytes: u32) -> Result<usize> {
        let function = self.function(kernel)?;
        self.bind()?;
        let each = function
            .occupancy_max_active_blocks_per_multiprocessor(threads, shared_bytes as usize, None)
            .map_err(|e| fault(kernel, e))?;
        Ok(each as usize * self.facts.multiprocessors)
    }

    unsafe fn launch(
        &self,
        kernel: &str,
        grid: Grid,
        args: &mut [*mut c_void],
        _sizes: &[usize],
    ) -> Result<()> {
        let function = self.function(kernel)?;
        self.bind()?;
        let attribute = |id, value| sys::CUlaunchAttribute {
            id,
            pad: [0; 4],
            value,
        };
        let mut attributes = Vec::new();
        match grid.follows {
            Follows::Overlapping if self.facts.compute_capability.0 >= OVERLAPS_FROM => attributes
                .push(attribute(
                    sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                    sys::CUlaunchAttributeValue {
                        programmaticStreamSerializationAllowed: 1,
                    },
                )),
            Follows::Together => attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
                sys::CUlaunchAttributeValue { cooperative: 1 },
            )),
            Follows::Done | Follows::Overlapping => {}
        }
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks[0],
            gridDimY: grid.blocks[1],
            gridDimZ: grid.blocks[2],
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the function and the stream live as long as this driver, and the arguments are the kernel's by contract;
        // the driver reads them and the configuration before the call returns.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function.cu_function(),
                args.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(|e| fault(kernel, e))
    }

    unsafe fn gemm(&self, product: &Gemm) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        unsafe { self.lt.gemm(product, self.is_recording()?) }
    }

    fn mark(&self) -> Result<Box<dyn Mark>> {
        timing::mark(&self.stream)
    }

    fn begin_recording(&self) -> Result<()> {
        timing::begin(&self.stream)
    }

    fn end_recording(&self) -> Result<Box<dyn Recording>> {
        timing::end(&self.stream)
    }

    fn candle(&self) -> Option<CandleDevice> {
        Some(self.device.clone())
    }
}

impl Cuda {
    fn function(&self, kernel: &str) -> Result<&CudaFunction> {
        self.functions
            .get(kernel)
            .ok_or_else(|| Error::Internal(format!("there is no kernel '{kernel}'")))
    }

    fn is_recording(&self) -> Result<bool> {
        let status = self
            .stream
            .capture_status()
            .map_err(|e| fault("the state of the stream", e))?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Calls that are not cudarc's own go to the context that the calling thread is bound to.
    fn bind(&self) -> Result<()> {
        self.context
            .bind_to_thread()
            .map_err(|e| fault("binding the GPU to a thread", e))
    }
}

/// A failure that the driver reports; faults of earlier kernels come out here too.
fn fault(doing: &str, e: impl std::fmt::Display) -> Error {
    Error::Device(format!("{doing}: {e}"))
}

/// An allocation that failed: faults of earlier kernels come out here too, and are no lack of memory.
fn no_room(bytes: usize, e: DriverError) -> Error {
    let doing = format!("cannot allocate {bytes} bytes on the GPU");
    if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        Error::OutOfMemory(format!(
            "{doing}: {e}: choose a smaller model, batch or context"
        ))
    } else {
        fault(&doing, e)
    }
}

/// What the driver itself says of an error.
fn in_words(e: DriverError) -> String {
    match e.error_string() {
        Ok(words) => words.to_string_lossy().into_owned(),
        Err(_) => format!("{:?}", e.0),
    }
}

fn facts(context: &CudaContext) -> Result<Facts, DriverError> {
    let size = |attribute| -> Result<usize, DriverError> {
        Ok(context.attribute(attribute)?.max(0) as usize)
    };
    let told = |attribute| {
        let value = context.attribute(attribute).ok()?;
        u32::try_from(value).ok().filter(|&value| value > 0)
    };
    Ok(Facts {
        name: context.name()?,
        uuid: Some(context.uuid()?.bytes.map(|byte| byte as u8)),
        compute_capability: context.compute_capability()?,
        multiprocessors: size(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        cache_bytes: size(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        shared_bytes: size(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        memory_clock_khz: told(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE),
        memory_bus_bits: told(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH),
    })
}

fn load_kernels(
    context: &Arc<CudaContext>,
    facts: &Facts,
) -> Result<HashMap<&'static str, CudaFunction>> {
    let (major, minor) = facts.compute_capability;
    let mut functions = HashMap::new();
    for fatbin in FATBINS {
        let cannot_load = |e: DriverError| {
            Error::NoDevice(format!(
                "cannot load the kernels of {}.cu on a GPU of compute capability {major}.{minor}: {}; they are \
                 compiled for {RUNS_ON}",
                fatbin.stem,
                in_words(e)
            ))
        };
        let module = context
            .load_module(Ptx::from_binary(fatbin.code.to_vec()))
            .map_err(cannot_load)?;
        for &name in fatbin.kernels {
            let function = module.load_function(name).map_err(cannot_load)?;
            allow_all_shared_memory(&function, facts.shared_bytes).map_err(cannot_load)?;
            functions.insert(name, function);
        }
    }
    Ok(functions)
}

/// Without this a launch may ask for no more than 48 KB. And every kernel wants all of the memory that a multiprocessor can
/// share: where one wants another division between that and the first-level cache than the one before it, the
/// multiprocessor runs empty before the next begins, so that nothing overlaps.
fn allow_all_shared_memory(function: &CudaFunction, most: usize) -> Result<(), DriverError> {
    let fixed = function.get_attribute(FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    function.set_attribute(
        FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        (most as i32 - fixed).max(0),
    )?;
    function.set_attribute(
        FunctionAttribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
        CARVEOUT_MAX_SHARED,
    )
}
