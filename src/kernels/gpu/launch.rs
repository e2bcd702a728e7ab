//! What all launches share: checked buffers, sizes, the grid, and the call.

#[cfg(feature = "cuda")]
use std::ffi::c_void;

use super::device::Gpu;
pub(super) use super::driver::{Follows, Grid, KernelArg};
use crate::error::{Error, Result};
use crate::kernels::{Buf, BufType};
use crate::scheme::DType;

/// Threads of a warp.
pub(super) const WARP: usize = 32;

/// The largest second dimension of a grid.
const MAX_GRID_Y: usize = 65_535;

/// An op about to be launched; its name goes into every message.
#[derive(Clone, Copy)]
pub(super) struct Op<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) name: &'static str,
}

impl Op<'_> {
    /// The address of an array that is only read, once `buf` is known to hold one of this type and shape.
    pub(super) fn reads(
        self,
        what: &str,
        buf: &Buf,
        kind: BufType,
        shape: &[usize],
    ) -> Result<Address> {
        self.check(what, buf, kind, 0, shape)?;
        Ok(Address(self.gpu.address(buf.gpu()?)?))
    }

    /// The address of element `first` of an array that is written, once `buf` is known to hold an array of this type and
    /// shape from there on.
    pub(super) fn writes(
        self,
        what: &str,
        buf: &mut Buf,
        kind: BufType,
        first: usize,
        shape: &[usize],
    ) -> Result<Address> {
        self.check(what, buf, kind, first, shape)?;
        let start = self.gpu.address(buf.gpu_mut()?)?;
        Ok(Address(start + (first * kind.size()) as u64))
    }

    fn check(
        self,
        what: &str,
        buf: &Buf,
        kind: BufType,
        first: usize,
        shape: &[usize],
    ) -> Result<()> {
        let count = shape
            .iter()
            .fold(1_usize, |count, &dim| count.saturating_mul(dim));
        if buf.kind() != kind {
            return Err(self.bug(&format!("{what} is of type {:?}, not {kind:?}", buf.kind())));
        }
        if first.saturating_add(count) > buf.len() {
            return Err(self.bug(&format!(
                "{what} {shape:?} from {first} on is more than its {} elements",
                buf.len()
            )));
        }
        Ok(())
    }

    /// A size as kernels take it.
    pub(super) fn dim(self, what: &str, value: usize) -> Result<u32> {
        u32::try_from(value).map_err(|_| self.bug(&format!("{what} = {value} is too large")))
    }

    /// A grid of `x` by `y` blocks of `threads` threads.
    pub(super) fn grid(self, x: usize, y: usize, threads: u32) -> Result<Grid> {
        if y > MAX_GRID_Y {
            return Err(self.bug(&format!("{y} blocks along y are too many")));
        }
        Ok(Grid {
            blocks: [
                self.dim("blocks along x", x)?,
                self.dim("blocks along y", y)?,
                1,
            ],
            threads,
            shared_bytes: 0,
            follows: Follows::Overlapping,
        })
    }

    /// A call that the kernels cannot serve.
    pub(super) fn bug(self, what: &str) -> Error {
        Error::Internal(format!("{} on the GPU: {what}", self.name))
    }
}

/// An element type as `ElemType` of `kernels/common/elem.cuh`.
pub(super) const fn elem_type(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
    }
}

/// A device address as a kernel takes it; zero is null. It holds no borrow, and needs none once the launch is in the
/// stream: memory that is dropped then is given back by the same stream, after the kernel.
#[repr(transparent)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Address(u64);

// SAFETY: a device pointer is 64 bits wide on every platform that CUDA 11 and later support, and so is the host's where
// kernels are emulated.
unsafe impl KernelArg for Address {}

impl Address {
    /// No array.
    pub(super) const NULL: Self = Self(0);

    /// Whether there is no array.
    pub(super) const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// Where an allocation begins.
    pub(super) const fn at(address: u64) -> Self {
        Self(address)
    }

    /// This many bytes further on.
    pub(super) const fn plus(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    /// As drivers take it.
    pub(super) const fn get(self) -> u64 {
        self.0
    }

    /// As C interfaces take it; it leads nowhere on the host.
    #[cfg(feature = "cuda")]
    pub(super) const fn as_ptr(self) -> *mut c_void {
        self.0 as *mut c_void
    }
}

/// Launches the kernel named `$name` on the GPU's stream. Unsafe: the arguments must be those of the kernel, in number,
/// order and type, and every address must lead to as much memory as the kernel uses with them.
macro_rules! launch {
    ($gpu:expr, $name:expr, $grid:expr; $($argument:expr),+ $(,)?) => {
        $gpu.launch(
            $name,
            $grid,
            &mut [$($crate::kernels::gpu::launch::KernelArg::place(&$argument)),+],
            &[$(size_of_val(&$argument)),+],
        )
    };
}
pub(super) use launch;
