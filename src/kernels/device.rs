//! Where tensors live: the device, typed buffers on it, and the two ways across.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};

use super::gpu::{Gpu, GpuBytes};
use crate::error::{Error, Result};
use crate::scheme::DType;

/// What computes. Cheap to clone; one host thread at a time drives a GPU.
#[derive(Clone)]
pub enum Device {
    /// This machine's processor.
    Cpu,
    /// An NVIDIA GPU, or the emulation of one.
    Gpu(Arc<Gpu>),
}

/// Element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufType {
    /// Floating-point numbers: activations, plain weights, scales, the KV cache.
    Float(DType),
    /// Bytes: packed codes of either width.
    U8,
    /// Token ids, positions, slots, row numbers.
    U32,
}

impl BufType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.size(),
            Self::U8 => 1,
            Self::U32 => 4,
        }
    }
}

/// A contiguous, typed allocation on a device; its shape is known to the op that uses it.
pub struct Buf {
    kind: BufType,
    len: usize,
    data: Data,
}

/// The elements of a [`Buf`], wherever they are.
pub enum Data {
    /// f32 on the host.
    F32(Vec<f32>),
    /// f16 on the host.
    F16(Vec<f16>),
    /// bf16 on the host.
    BF16(Vec<bf16>),
    /// Bytes on the host.
    U8(Vec<u8>),
    /// u32 on the host.
    U32(Vec<u32>),
    /// Anything on the GPU.
    Gpu(GpuBytes),
}

/// Element types that a buffer may hold.
pub trait HostElem: bytemuck::Pod + Default + Send + Sync {
    /// The buffer's type tag.
    const KIND: BufType;
    /// The elements, if they are of this type and on the host.
    fn slice(data: &Data) -> Option<&[Self]>;
    /// The same, to write.
    fn slice_mut(data: &mut Data) -> Option<&mut [Self]>;
    /// Takes ownership of host elements.
    fn wrap(elements: Vec<Self>) -> Data;
}

macro_rules! host_elem {
    ($type:ty, $variant:ident, $kind:expr) => {
        impl HostElem for $type {
            const KIND: BufType = $kind;
            fn slice(data: &Data) -> Option<&[Self]> {
                if let Data::$variant(v) = data {
                    Some(v)
                } else {
                    None
                }
            }
            fn slice_mut(data: &mut Data) -> Option<&mut [Self]> {
                if let Data::$variant(v) = data {
                    Some(v)
                } else {
                    None
                }
            }
            fn wrap(elements: Vec<Self>) -> Data {
                Data::$variant(elements)
            }
        }
    };
}

host_elem!(f32, F32, BufType::Float(DType::F32));
host_elem!(f16, F16, BufType::Float(DType::F16));
host_elem!(bf16, BF16, BufType::Float(DType::BF16));
host_elem!(u8, U8, BufType::U8);
host_elem!(u32, U32, BufType::U32);

impl Buf {
    /// Element type.
    pub fn kind(&self) -> BufType {
        self.kind
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * self.kind.size()
    }

    /// The floating-point type.
    ///
    /// # Errors
    /// If the buffer holds codes or ids.
    pub fn dtype(&self) -> Result<DType> {
        match self.kind {
            BufType::Float(dtype) => Ok(dtype),
            other => Err(Error::Internal(format!(
                "expected a floating-point buffer, found {other:?}"
            ))),
        }
    }

    /// A host buffer that owns `elements`.
    pub fn from_vec<T: HostElem>(elements: Vec<T>) -> Self {
        Self {
            kind: T::KIND,
            len: elements.len(),
            data: T::wrap(elements),
        }
    }

    /// The elements of a host buffer.
    ///
    /// # Errors
    /// If they are of another type or on a GPU.
    pub fn host<T: HostElem>(&self) -> Result<&[T]> {
        T::slice(&self.data).ok_or_else(|| self.mismatch(T::KIND))
    }

    /// The elements of a host buffer, to write.
    ///
    /// # Errors
    /// If they are of another type or on a GPU.
    pub fn host_mut<T: HostElem>(&mut self) -> Result<&mut [T]> {
        let error = self.mismatch(T::KIND);
        T::slice_mut(&mut self.data).ok_or(error)
    }

    /// The bytes on the GPU.
    pub(crate) fn gpu(&self) -> Result<&GpuBytes> {
        match &self.data {
            Data::Gpu(bytes) => Ok(bytes),
            _ => Err(Error::Internal("expected a buffer on the GPU".into())),
        }
    }

    /// The bytes on the GPU, to write.
    pub(crate) fn gpu_mut(&mut self) -> Result<&mut GpuBytes> {
        match &mut self.data {
            Data::Gpu(bytes) => Ok(bytes),
            _ => Err(Error::Internal("expected a buffer on the GPU".into())),
        }
    }

    fn mismatch(&self, wanted: BufType) -> Error {
        Error::Internal(format!(
            "expected a host buffer of {wanted:?}, found {:?}",
            self.kind
        ))
    }
}

impl Device {
    /// `cpu`, `cuda` or `emulator`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu(gpu) => gpu.kind(),
        }
    }

    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// [`Error::NoDevice`] with what to do, if this build or this machine has none.
    #[cfg(not(feature = "cuda"))]
    pub fn cuda(_ordinal: usize) -> Result<Self> {
        Err(Error::NoDevice(
            "this build has no CUDA support: build with `--features cuda` (kernels/toolkit.sh gives what that needs), \
             or use --device cpu"
                .into(),
        ))
    }

    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// [`Error::NoDevice`] with what to do, if this machine has none.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Self::Gpu(Arc::new(Gpu::open(ordinal)?)))
    }

    /// An emulated GPU that runs the kernels compiled for the host which lie in `folder`, one shared object for every
    /// `.cu` file.
    ///
    /// # Errors
    /// If there are none, or a file is not what it should be.
    #[doc(hidden)]
    pub fn emulated(folder: &Path) -> Result<Self> {
        Ok(Self::Gpu(Arc::new(Gpu::emulated(folder)?)))
    }

    /// Allocates `len` elements, all zero.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn alloc(&self, kind: BufType, len: usize) -> Result<Buf> {
        let data = match self {
            Self::Cpu => match kind {
                BufType::Float(DType::F32) => Data::F32(zeroed(len)?),
                BufType::Float(DType::F16) => Data::F16(zeroed(len)?),
                BufType::Float(DType::BF16) => Data::BF16(zeroed(len)?),
                BufType::U8 => Data::U8(zeroed(len)?),
                BufType::U32 => Data::U32(zeroed(len)?),
            },
            Self::Gpu(gpu) => Data::Gpu(gpu.alloc(len * kind.size())?),
        };
        Ok(Buf { kind, len, data })
    }

    /// Copies `elements` into `buf` from element `offset` on.
    ///
    /// # Errors
    /// If they do not fit or are of another type.
    pub fn upload<T: HostElem>(&self, buf: &mut Buf, offset: usize, elements: &[T]) -> Result<()> {
        buf.check_range::<T>(&(offset..offset + elements.len()))?;
        match self {
            Self::Cpu => buf.host_mut::<T>()?[offset..][..elements.len()].copy_from_slice(elements),
            Self::Gpu(gpu) => {
                gpu.upload(
                    buf.gpu_mut()?,
                    offset * size_of::<T>(),
                    bytemuck::cast_slice(elements),
                )?;
            }
        }
        Ok(())
    }

    /// Copies the elements `range` of `buf` to the host, after all work before them is done.
    ///
    /// # Errors
    /// If the range is outside or the type is another.
    pub fn download<T: HostElem>(&self, buf: &Buf, range: Range<usize>) -> Result<Vec<T>> {
        buf.check_range::<T>(&range)?;
        match self {
            Self::Cpu => Ok(buf.host::<T>()?[range].to_vec()),
            Self::Gpu(gpu) => {
                let mut elements = vec![T::default(); range.len()];
                gpu.download(
                    buf.gpu()?,
                    range.start * size_of::<T>(),
                    bytemuck::cast_slice_mut(&mut elements),
                )?;
                Ok(elements)
            }
        }
    }

    /// A buffer of its own with the same elements.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn duplicate(&self, buf: &Buf) -> Result<Buf> {
        let mut copy = self.alloc(buf.kind, buf.len)?;
        match (&buf.data, &mut copy.data) {
            (Data::F32(from), Data::F32(to)) => to.copy_from_slice(from),
            (Data::F16(from), Data::F16(to)) => to.copy_from_slice(from),
            (Data::BF16(from), Data::BF16(to)) => to.copy_from_slice(from),
            (Data::U8(from), Data::U8(to)) => to.copy_from_slice(from),
            (Data::U32(from), Data::U32(to)) => to.copy_from_slice(from),
            (from, to) => match (self, from, to) {
                (Self::Gpu(gpu), Data::Gpu(from), Data::Gpu(to)) => gpu.copy(from, to)?,
                _ => return Err(Error::Internal("a buffer of another device".into())),
            },
        }
        Ok(copy)
    }

    /// Runs a sequence of ops where starting each is cheap: on the CPU, a thread of the pool.
    pub(crate) fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Self::Cpu => super::parallel::on_pool(work),
            Self::Gpu(_) => work(),
        }
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// What the device says of work that failed.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Gpu(gpu) => gpu.synchronize(),
        }
    }

    /// Free and total memory in bytes: of the GPU, or `None` on the CPU, whose memory is not the program's alone.
    pub fn memory(&self) -> Option<(u64, u64)> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => gpu.memory().ok(),
        }
    }
}

impl Buf {
    fn check_range<T: HostElem>(&self, range: &Range<usize>) -> Result<()> {
        if self.kind != T::KIND {
            return Err(self.mismatch(T::KIND));
        }
        if range.end > self.len {
            return Err(Error::Internal(format!(
                "elements {range:?} of a buffer of {}",
                self.len
            )));
        }
        Ok(())
    }
}

/// A zeroed vector; an error, not an abort, where the memory is not there.
fn zeroed<T: HostElem>(len: usize) -> Result<Vec<T>> {
    bytemuck::try_zeroed_slice_box::<T>(len)
        .map(Vec::from)
        .map_err(|()| {
            Error::OutOfMemory(format!(
                "cannot allocate {} on the host: choose a smaller model, batch or context",
                crate::units::Bytes(len.saturating_mul(size_of::<T>()) as u64)
            ))
        })
}

/// Runs a block with a type parameter bound to the Rust type of a [`DType`].
macro_rules! with_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::scheme::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::scheme::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::scheme::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_dtype;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_no_fault_of_the_configuration() {
        let error = zeroed::<f32>(usize::MAX / 4).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
        assert_eq!(error.exit_code(), 75);
    }

    #[test]
    fn a_duplicate_has_its_elements_and_memory_of_its_own() {
        let mut buf = Buf::from_vec(vec![1_u32, 2, 3]);
        let copy = Device::Cpu.duplicate(&buf).unwrap();
        buf.host_mut::<u32>().unwrap()[0] = 9;
        assert_eq!(copy.host::<u32>().unwrap(), [1, 2, 3]);
    }
}
