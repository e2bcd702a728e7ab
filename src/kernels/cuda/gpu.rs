//! One GPU: its context, stream, memory and loaded kernels.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Device;
use cudarc::cublas::CudaBlas;
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError};
use cudarc::nvrtc::Ptx;

use super::fatbin::{FATBINS, RUNS_ON};
use crate::error::{Error, Result};

/// An allocation on the GPU.
pub type GpuBytes = CudaSlice<u8>;

/// A GPU with candle's device on it and the kernels of this program loaded. One host thread at a time drives it.
pub struct Gpu {
    device: Device,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
    functions: HashMap<&'static str, CudaFunction>,
    name: String,
    uuid: [u8; 16],
    compute_capability: (i32, i32),
}

impl Gpu {
    /// Opens GPU `ordinal` and loads every kernel, so that no later call has to.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if there is no such GPU, or none that the kernels were compiled for.
    pub fn open(ordinal: usize) -> Result<Self> {
        let no_device = |why: &str| {
            Error::NoDevice(format!(
                "cannot open CUDA device {ordinal}: {why}; --device cpu does without"
            ))
        };
        let unanswered = |e: DriverError| no_device(&in_words(e));
        // Asked first because the driver says in a few words why it has no such GPU; candle adds a backtrace.
        CudaContext::new(ordinal).map_err(unanswered)?;
        // A stream of its own: candle's other choice is the per-thread default stream, a different one for every thread.
        let device =
            Device::new_cuda_with_stream(ordinal).map_err(|e| no_device(&e.to_string()))?;
        let candle = device
            .as_cuda_device()
            .map_err(|e| no_device(&e.to_string()))?;
        // SAFETY: every use of the memory allocated from here on goes to the one stream of this device, in order.
        unsafe { candle.disable_event_tracking() };
        let stream = candle.cuda_stream();
        let context = stream.context().clone();
        let compute_capability = context.compute_capability().map_err(unanswered)?;
        Ok(Self {
            functions: load_kernels(&context, compute_capability)?,
            name: context.name().map_err(unanswered)?,
            uuid: context
                .uuid()
                .map_err(unanswered)?
                .bytes
                .map(|byte| byte as u8),
            compute_capability,
            blas: candle.cublas_handle(),
            context,
            stream,
            device,
        })
    }

    /// The same GPU as candle knows it; it shares the stream.
    pub fn candle_device(&self) -> Device {
        self.device.clone()
    }

    /// The marketing name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The identity under which NVML knows it too.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Compute capability, major and minor.
    pub fn compute_capability(&self) -> (i32, i32) {
        self.compute_capability
    }

    /// Free and total memory in bytes; the free part is what all programs on the GPU have left.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = self
            .context
            .mem_get_info()
            .map_err(|e| fault("memory information", e))?;
        Ok((free as u64, total as u64))
    }

    /// Allocates `bytes`, all zero.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn alloc(&self, bytes: usize) -> Result<GpuBytes> {
        // The driver refuses to allocate nothing, and a kernel wants an address even if it reads nothing from it.
        self.stream.alloc_zeros(bytes.max(1)).map_err(|e| {
            Error::Device(format!(
                "cannot allocate {bytes} bytes on the GPU: {e}: choose a smaller model, batch or context"
            ))
        })
    }

    /// Copies `source` to `target`, from byte `offset` on.
    ///
    /// # Errors
    /// If it does not fit, or the device fails.
    pub fn upload(&self, target: &mut GpuBytes, offset: usize, source: &[u8]) -> Result<()> {
        if source.is_empty() {
            return Ok(());
        }
        let length = target.len();
        let mut part = offset
            .checked_add(source.len())
            .and_then(|end| target.try_slice_mut(offset..end))
            .ok_or_else(|| outside("upload", offset, source.len(), length))?;
        self.stream
            .memcpy_htod(source, &mut part)
            .map_err(|e| fault("upload", e))
    }

    /// Copies `source`, from byte `offset` on, to `target`, after all work before it is done.
    ///
    /// # Errors
    /// If there are fewer bytes, or the device fails, now or in that work.
    pub fn download(&self, source: &GpuBytes, offset: usize, target: &mut [u8]) -> Result<()> {
        if target.is_empty() {
            return self.synchronize();
        }
        let part = offset
            .checked_add(target.len())
            .and_then(|end| source.try_slice(offset..end))
            .ok_or_else(|| outside("download", offset, target.len(), source.len()))?;
        self.stream
            .memcpy_dtoh(&part, target)
            .map_err(|e| fault("download", e))?;
        self.synchronize()
    }

    /// Copies all of `source` to the start of `target`.
    ///
    /// # Errors
    /// If it does not fit, or the device fails.
    pub fn copy(&self, source: &GpuBytes, target: &mut GpuBytes) -> Result<()> {
        if source.len() > target.len() {
            return Err(outside("copy", 0, source.len(), target.len()));
        }
        self.stream
            .memcpy_dtod(source, target)
            .map_err(|e| fault("copy", e))
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// What the device says of work that failed.
    pub fn synchronize(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(|e| fault("synchronize", e))
    }

    /// The stream that everything goes to.
    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// cuBLAS on that stream.
    pub(super) fn blas(&self) -> &CudaBlas {
        &self.blas
    }

    /// A kernel by its name.
    pub(super) fn function(&self, name: &str) -> Result<&CudaFunction> {
        self.functions
            .get(name)
            .ok_or_else(|| Error::Internal(format!("there is no kernel '{name}'")))
    }
}

/// A failure that the driver reports; faults of earlier kernels come out here too.
pub(super) fn fault(doing: &str, e: impl std::fmt::Display) -> Error {
    Error::Device(format!("{doing}: {e}"))
}

/// What the driver itself says of an error.
fn in_words(e: DriverError) -> String {
    match e.error_string() {
        Ok(words) => words.to_string_lossy().into_owned(),
        Err(_) => format!("{:?}", e.0),
    }
}

fn outside(doing: &str, offset: usize, count: usize, length: usize) -> Error {
    Error::Internal(format!(
        "{doing} of {count} bytes at {offset}: the buffer has {length}"
    ))
}

fn load_kernels(
    context: &Arc<CudaContext>,
    (major, minor): (i32, i32),
) -> Result<HashMap<&'static str, CudaFunction>> {
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
            functions.insert(name, module.load_function(name).map_err(cannot_load)?);
        }
    }
    Ok(functions)
}
