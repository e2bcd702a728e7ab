//! Attention of tokens together with what prepares it: head norms, rotation, and the cache's new entries.

use super::{Attention, LayerCache, Places};
use crate::error::Result;
use crate::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use crate::kernels::{Buf, Cost, Device, check_len};
use crate::scheme::DType;

/// [`RopeAppend`] and then [`Attention`] of the same tokens, with the same bits in the cache and in what comes out. Where a
/// GPU has attention of tokens that are alone in their slot, both are one launch, and `qkv` stays as it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AppendAttend(pub Attention);

impl AppendAttend {
    /// Traffic and arithmetic, as of [`Attention::cost`]: the projection is read, but not written back.
    pub fn cost(&self, act: DType, seen: f64, cached: f64) -> Cost {
        let op = &self.0;
        let (mut all, rope) = (op.cost(act, seen, cached), RopeAppend(*op).cost(act));
        // Of the rows of the projection, attention reads the queries alone.
        all.read += (op.tokens * 2 * op.kv_heads * op.head_dim * act.size()) as f64;
        all.written += (op.tokens * 2 * op.position_bytes(act)) as f64;
        all.flops += rope.flops;
        all
    }

    /// How it is computed on `device` with activations of type `act`, in words.
    pub fn plan(&self, device: &Device, act: DType) -> String {
        let attention = self.0.plan(device, act);
        if self.is_one_launch(device, act) {
            format!("{attention}, rotating and appending")
        } else {
            format!("rotated and appended, then {attention}")
        }
    }

    /// Whether `device` does it in one launch.
    pub fn is_one_launch(&self, device: &Device, act: DType) -> bool {
        match device {
            Device::Cpu => false,
            Device::Gpu(gpu) => crate::kernels::gpu::attention_kernel(gpu, &self.0, act).appends(),
        }
    }

    /// `out [tokens, heads, head_dim]` from the rows of `qkv [tokens, qkv_width]`.
    ///
    /// # Errors
    /// If a buffer is too short or, on the CPU, a place lies outside the cache.
    #[expect(clippy::too_many_arguments, reason = "what two ops take")]
    pub fn run(
        &self,
        device: &Device,
        qkv: &mut Buf,
        norms: Option<HeadNorms<'_>>,
        table: &RopeTable,
        places: Places<'_>,
        cache: &mut LayerCache,
        out: &mut Buf,
    ) -> Result<()> {
        let op = &self.0;
        if let Device::Gpu(gpu) = device
            && self.is_one_launch(device, out.dtype()?)
        {
            check_len("attention qkv", qkv, op.tokens * op.qkv_width())?;
            check_len("attention output", out, op.tokens * op.heads * op.head_dim)?;
            return crate::kernels::gpu::append_attend(
                gpu, op, qkv, norms, table, places, cache, out,
            );
        }
        RopeAppend(*op).run(device, qkv, norms, table, places, cache)?;
        op.run(device, qkv, places, cache, out)
    }
}
