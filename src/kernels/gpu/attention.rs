//! Rotary embedding with the cache append, and attention over the cache.

use super::device::Gpu;
use super::flash::{self, AttentionKernel};
use super::launch::{Address, KernelArg, Op, WARP, launch};
use crate::error::Result;
use crate::kernels::attention::{Attention, LayerCache, Places};
use crate::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use crate::kernels::{Buf, BufType};
use crate::scheme::DType;

/// Threads of a block of either kernel.
const THREADS: u32 = 128;

/// The largest head that `attention.cu` holds.
const MAX_HEAD_DIM: usize = 256;

/// `RopeArgs` of `rope.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RopeArgs {
    qkv: Address,
    q_norm: Address,
    k_norm: Address,
    cosines: Address,
    sines: Address,
    positions: Address,
    slot_of: Address,
    k_cache: Address,
    v_cache: Address,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    max_position: u32,
    slots: u32,
    capacity: u32,
    eps: f32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for RopeArgs {}

/// `rope.cu`. A position or slot outside the cache or the table writes nothing there and leaves NaN in `qkv`.
pub(crate) fn rope_append(
    gpu: &Gpu,
    RopeAppend(shape): &RopeAppend,
    qkv: &mut Buf,
    norms: Option<HeadNorms<'_>>,
    table: &RopeTable,
    places: Places<'_>,
    cache: &mut LayerCache,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "rope_append",
    };
    let Attention {
        tokens,
        heads,
        kv_heads,
        head_dim,
        capacity,
        ..
    } = *shape;
    if tokens == 0 {
        return Ok(());
    }
    if !head_dim.is_multiple_of(2) {
        return Err(op.bug(&format!("heads of {head_dim} have no halves")));
    }
    let slots = slots_of(op, shape, cache)?;
    let dtype = qkv.dtype()?;
    let kind = BufType::Float(dtype);
    let f32s = BufType::Float(DType::F32);
    let cached = [slots, kv_heads, capacity, head_dim];
    let norm = |what: &str, weight: Option<&Buf>| {
        weight.map_or(Ok(Address::NULL), |weight| {
            op.reads(what, weight, kind, &[head_dim])
        })
    };
    let args = RopeArgs {
        qkv: op.writes("qkv", qkv, kind, 0, &[tokens, shape.qkv_width()])?,
        q_norm: norm("q_norm", norms.map(|norms| norms.q))?,
        k_norm: norm("k_norm", norms.map(|norms| norms.k))?,
        cosines: op.reads(
            "cosines",
            &table.cos,
            f32s,
            &[table.positions, head_dim / 2],
        )?,
        sines: op.reads("sines", &table.sin, f32s, &[table.positions, head_dim / 2])?,
        positions: op.reads("positions", places.positions, BufType::U32, &[tokens])?,
        slot_of: op.reads("slots", places.slots, BufType::U32, &[tokens])?,
        k_cache: op.writes("k_cache", &mut cache.k, kind, 0, &cached)?,
        v_cache: op.writes("v_cache", &mut cache.v, kind, 0, &cached)?,
        heads: op.dim("heads", heads)?,
        kv_heads: op.dim("kv_heads", kv_heads)?,
        head_dim: op.dim("head_dim", head_dim)?,
        max_position: op.dim("positions", table.positions)?,
        slots: op.dim("slots", slots)?,
        capacity: op.dim("capacity", capacity)?,
        eps: norms.map_or(0.0, |norms| norms.eps),
    };
    let all_heads = heads + 2 * kv_heads;
    let grid = op.grid(tokens, all_heads.div_ceil(THREADS as usize / WARP), THREADS)?;
    let name = format!("rope_append_{dtype}");
    // SAFETY: the argument of rope.cu; every array holds its shape, and the kernel checks positions and slots.
    unsafe { launch!(gpu, &name, grid; args) }
}

/// `AttentionArgs` of `common/attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AttentionArgs {
    q: Address,
    k_cache: Address,
    v_cache: Address,
    positions: Address,
    slot_of: Address,
    out: Address,
    /// Where blocks that share a token leave their parts, and how many have.
    pub(super) partial: Address,
    pub(super) arrived: Address,
    q_stride: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    slots: u32,
    capacity: u32,
    tokens: u32,
    pub(super) splits: u32,
    scale: f32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for AttentionArgs {}

/// The kernel that attention of this shape gets.
pub(crate) fn attention_kernel(gpu: &Gpu, shape: &Attention, act: DType) -> AttentionKernel {
    AttentionKernel::plan(shape, act, gpu.facts())
}

/// `attention_single.cu`, `attention_runs.cu` or `attention.cu`. A position or slot outside the cache gives NaN.
pub(crate) fn attention(
    gpu: &Gpu,
    shape: &Attention,
    qkv: &Buf,
    places: Places<'_>,
    cache: &LayerCache,
    out: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "attention",
    };
    let Attention {
        tokens,
        heads,
        kv_heads,
        head_dim,
        capacity,
        scale,
        queries: _,
    } = *shape;
    if tokens == 0 || heads == 0 {
        return Ok(());
    }
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || head_dim > MAX_HEAD_DIM {
        return Err(op.bug(&format!("the kernel cannot do {shape:?}")));
    }
    let slots = slots_of(op, shape, cache)?;
    let dtype = out.dtype()?;
    let kind = BufType::Float(dtype);
    let cached = [slots, kv_heads, capacity, head_dim];
    let args = AttentionArgs {
        q: op.reads("qkv", qkv, kind, &[tokens, shape.qkv_width()])?,
        k_cache: op.reads("k_cache", &cache.k, kind, &cached)?,
        v_cache: op.reads("v_cache", &cache.v, kind, &cached)?,
        positions: op.reads("positions", places.positions, BufType::U32, &[tokens])?,
        slot_of: op.reads("slots", places.slots, BufType::U32, &[tokens])?,
        out: op.writes("out", out, kind, 0, &[tokens, heads, head_dim])?,
        partial: Address::NULL,
        arrived: Address::NULL,
        q_stride: op.dim("qkv_width", shape.qkv_width())?,
        heads: op.dim("heads", heads)?,
        kv_heads: op.dim("kv_heads", kv_heads)?,
        head_dim: op.dim("head_dim", head_dim)?,
        slots: op.dim("slots", slots)?,
        capacity: op.dim("capacity", capacity)?,
        tokens: op.dim("tokens", tokens)?,
        splits: 1,
        scale,
    };
    let kernel = attention_kernel(gpu, shape, dtype);
    if kernel != AttentionKernel::Any {
        return flash::run(op, shape, dtype, kernel, args);
    }
    let grid = op.grid(tokens, heads, THREADS)?;
    let name = format!("attention_{dtype}");
    // SAFETY: the argument of attention.cu; every array holds its shape, and the kernel checks positions and slots.
    unsafe { launch!(gpu, &name, grid; args) }
}

/// Slots that the cache has room for.
fn slots_of(op: Op<'_>, shape: &Attention, cache: &LayerCache) -> Result<usize> {
    let slot = [shape.kv_heads, shape.capacity, shape.head_dim]
        .iter()
        .fold(1_usize, |n, &dim| n.saturating_mul(dim));
    cache
        .k
        .len()
        .checked_div(slot)
        .ok_or_else(|| op.bug(&format!("a cache without room: {shape:?}")))
}
