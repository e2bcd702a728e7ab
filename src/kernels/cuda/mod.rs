//! The GPU: opening it, its memory, and one launch function for every kernel of `kernels/*.cu`.
//!
//! All `unsafe` of the kernels lives here. The launch functions check every buffer against the shapes before they hand
//! addresses to the device; what lies in device memory (ids, positions, slots, targets) the kernels check themselves,
//! answering NaN where it leads outside. So no argument makes a kernel touch memory that is not its own.
//!
//! Everything goes to one stream, candle's, in the order of the calls; nothing here waits but `download` and
//! `synchronize`. A buffer may be longer than its shape: arenas are sized for the largest batch.

mod attention;
mod fatbin;
mod fill;
mod gpu;
mod launch;
mod linear;
mod quantize;
mod rows;

pub(crate) use attention::{attention, rope_append};
pub(crate) use fill::fill;
pub use gpu::{Gpu, GpuBytes};
pub(crate) use linear::linear;
pub(crate) use quantize::{quantize_act, quantize_rows};
pub(crate) use rows::{argmax, gather, log_prob, rms_norm, silu_mul};

/// Identifies the kernels of this build: a hash over their sources, the compiler's version and its flags.
pub const KERNELS_HASH: &str = env!("CANDLEPOWER_KERNELS_HASH");
