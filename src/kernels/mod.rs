//! The ops of a forward pass, one file each: what the op is (a struct of shapes), what it costs, how it is planned, its
//! CPU reference, and its launch on a GPU behind the same `run`. Its CUDA source is in `kernels/` at the top level.
//! Nothing here has ever heard of a model.

pub mod advance;
pub mod attention;
mod cost;
pub mod device;
pub mod embed;
pub mod fill;
pub mod gpu;
pub mod linear;
pub mod mailbox;
pub mod norm;
mod parallel;
pub mod quantize;
pub mod rope;
pub mod round_input;
pub mod sample;
pub mod silu_mul;
mod simd;
pub mod stream;

pub use cost::Cost;
pub use device::{Buf, BufType, Device};
pub use mailbox::Mailbox;
pub use simd::Level as SimdLevel;

use crate::error::{Error, Result};

/// Refuses a buffer that is shorter than an op's shapes say.
pub(crate) fn check_len(what: &str, buf: &Buf, needed: usize) -> Result<()> {
    if buf.len() < needed {
        return Err(Error::Internal(format!(
            "{what}: {} elements where {needed} are needed",
            buf.len()
        )));
    }
    Ok(())
}
