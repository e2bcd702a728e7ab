//! The GPU: its memory, and one launch function for every kernel of `kernels/*.cu`.
//!
//! Launch functions speak to a `driver`: `cuda` (feature `cuda`), which is a real GPU, or `emulator`, which runs the
//! same kernels compiled for the host. So what is launched, with which grid and which arguments, is one piece of code and
//! tested without a GPU.
//!
//! All `unsafe` of launches lives here. The launch functions check every buffer against the shapes before they hand
//! addresses to the device; what lies in device memory (ids, positions, slots, targets) the kernels check themselves,
//! answering NaN where it leads outside. So no argument makes a kernel touch memory that is not its own.
//!
//! Everything goes to one stream, in the order of the calls; what runs a step waits for nothing but `download`,
//! `synchronize` and `elapsed`. A buffer may be longer than its shape: arenas are sized for the largest batch.

mod advance;
mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod driver;
mod emulator;
mod fill;
mod flash;
mod gemm;
mod launch;
mod linear;
mod memory;
mod names;
mod need;
mod quantize;
mod round_input;
mod rows;
mod step;
mod stream;
mod workspace;

pub(crate) use advance::advance;
pub(crate) use attention::{MAX_HEAD_DIM, append_attend, attention, attention_kernel, rope_append};
#[cfg(feature = "cuda")]
pub use cuda::KERNELS_HASH;
pub use device::{Event, Gpu, Graph};
pub use driver::{Facts, Pool};
pub(crate) use fill::fill;
pub(crate) use flash::fast_head_dims;
pub use linear::{LinearKernel, StreamedBufs};
pub(crate) use linear::{
    fused_linear, fused_tokens, linear, linear_kernels, paired, rows_held, streamed,
};
pub use memory::{GpuBytes, GpuMailbox};
#[doc(hidden)]
pub use names::names;
pub use need::{ProductNeed, StepNeed};
pub(crate) use quantize::{quantize_act, quantize_rows, rms_norm_to_codes, silu_mul_to_codes};
pub(crate) use round_input::round_input;
pub(crate) use rows::{argmax, gather, log_prob, rms_norm, silu_mul};
pub use step::OneLaunch;
pub(crate) use stream::{copy_all, nothing, read_all};
pub use workspace::WorkspaceNeed;
