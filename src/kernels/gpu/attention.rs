//! Rotary embedding with the cache append, attention over the cache, and both in one launch.

use super::device::Gpu;
use super::flash::{self, AttentionKernel};
use super::launch::{Address, KernelArg, Op, WARP, launch};
use crate::error::Result;
use crate::kernels::attention::{Attention, LayerCache, Places, other_format};
use crate::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use crate::kernels::{Buf, BufType};
use crate::scheme::{DType, KvFormat};

/// Threads of a block of either kernel.
const THREADS: u32 = 128;

/// The largest head that `attention.cu` holds.
pub(crate) const MAX_HEAD_DIM: usize = 256;

/// `KvCache` of `common/kv.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct KvCache {
    k: Address,
    v: Address,
    k_scales: Address,
    v_scales: Address,
}

impl KvCache {
    /// The arrays of `cache`, once they are known to be of the format and the shape; and how many slots they have room for.
    fn reads(
        op: Op<'_>,
        shape: &Attention,
        cache: &LayerCache,
        act: DType,
    ) -> Result<(Self, usize)> {
        let (kind, slots, [numbers, scales]) = Self::shapes(op, shape, cache, act)?;
        let mut args = Self {
            k: op.reads("k_cache", &cache.k, kind, &numbers)?,
            v: op.reads("v_cache", &cache.v, kind, &numbers)?,
            k_scales: Address::NULL,
            v_scales: Address::NULL,
        };
        if let Some(of) = &cache.scales {
            args.k_scales = op.reads("scales of keys", &of.k, F32S, &scales)?;
            args.v_scales = op.reads("scales of values", &of.v, F32S, &scales)?;
        }
        Ok((args, slots))
    }

    /// The same, to write.
    fn writes(
        op: Op<'_>,
        shape: &Attention,
        cache: &mut LayerCache,
        act: DType,
    ) -> Result<(Self, usize)> {
        let (kind, slots, [numbers, scales]) = Self::shapes(op, shape, cache, act)?;
        let mut args = Self {
            k: op.writes("k_cache", &mut cache.k, kind, 0, &numbers)?,
            v: op.writes("v_cache", &mut cache.v, kind, 0, &numbers)?,
            k_scales: Address::NULL,
            v_scales: Address::NULL,
        };
        if let Some(of) = &mut cache.scales {
            args.k_scales = op.writes("scales of keys", &mut of.k, F32S, 0, &scales)?;
            args.v_scales = op.writes("scales of values", &mut of.v, F32S, 0, &scales)?;
        }
        Ok((args, slots))
    }

    /// The type of the numbers, the slots that there is room for, and the shapes of numbers and scales.
    fn shapes(
        op: Op<'_>,
        shape: &Attention,
        cache: &LayerCache,
        act: DType,
    ) -> Result<(BufType, usize, [Vec<usize>; 2])> {
        let kind = match (shape.kv.codes(), &cache.scales) {
            (None, None) => BufType::Float(act),
            (Some(_), Some(_)) => BufType::U8,
            _ => return Err(other_format(shape.kv)),
        };
        let slot = [shape.kv_heads, shape.capacity, shape.head_dim]
            .iter()
            .fold(1_usize, |n, &dim| n.saturating_mul(dim));
        let slots = cache.k.len().checked_div(slot);
        let slots = slots.ok_or_else(|| op.bug(&format!("a cache without room: {shape:?}")))?;
        let scales = vec![slots, shape.kv_heads, shape.capacity];
        let numbers = [&scales[..], &[shape.head_dim]].concat();
        Ok((kind, slots, [numbers, scales]))
    }
}

const F32S: BufType = BufType::Float(DType::F32);

/// `TurnArgs` of `common/heads.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct TurnArgs {
    q_norm: Address,
    k_norm: Address,
    cosines: Address,
    sines: Address,
    max_position: u32,
    eps: f32,
}

impl TurnArgs {
    /// Of heads that have been turned already.
    const NONE: Self = Self {
        q_norm: Address::NULL,
        k_norm: Address::NULL,
        cosines: Address::NULL,
        sines: Address::NULL,
        max_position: 0,
        eps: 0.0,
    };

    fn new(
        op: Op<'_>,
        head_dim: usize,
        norms: Option<HeadNorms<'_>>,
        table: &RopeTable,
        act: DType,
    ) -> Result<Self> {
        if !head_dim.is_multiple_of(2) {
            return Err(op.bug(&format!("heads of {head_dim} have no halves")));
        }
        let norm = |what: &str, weight: Option<&Buf>| {
            weight.map_or(Ok(Address::NULL), |weight| {
                op.reads(what, weight, BufType::Float(act), &[head_dim])
            })
        };
        let angles = [table.positions, head_dim / 2];
        Ok(Self {
            q_norm: norm("q_norm", norms.map(|norms| norms.q))?,
            k_norm: norm("k_norm", norms.map(|norms| norms.k))?,
            cosines: op.reads("cosines", &table.cos, F32S, &angles)?,
            sines: op.reads("sines", &table.sin, F32S, &angles)?,
            max_position: op.dim("positions", table.positions)?,
            eps: norms.map_or(0.0, |norms| norms.eps),
        })
    }
}

/// `RopeArgs` of `rope.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RopeArgs {
    qkv: Address,
    cache: KvCache,
    positions: Address,
    slot_of: Address,
    turn: TurnArgs,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    slots: u32,
    capacity: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for RopeArgs {}

/// What kernels for this cache have in their names.
pub(super) fn suffix(kv: KvFormat) -> &'static str {
    match kv {
        KvFormat::Auto => "",
        KvFormat::Int8 => "_int8",
        KvFormat::Fp8 => "_fp8",
    }
}

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
    let act = qkv.dtype()?;
    let (cache, slots) = KvCache::writes(op, shape, cache, act)?;
    let args = RopeArgs {
        qkv: op.writes(
            "qkv",
            qkv,
            BufType::Float(act),
            0,
            &[tokens, shape.qkv_width()],
        )?,
        cache,
        positions: op.reads("positions", places.positions, BufType::U32, &[tokens])?,
        slot_of: op.reads("slots", places.slots, BufType::U32, &[tokens])?,
        turn: TurnArgs::new(op, head_dim, norms, table, act)?,
        heads: op.dim("heads", heads)?,
        kv_heads: op.dim("kv_heads", kv_heads)?,
        head_dim: op.dim("head_dim", head_dim)?,
        slots: op.dim("slots", slots)?,
        capacity: op.dim("capacity", capacity)?,
    };
    let all_heads = heads + 2 * kv_heads;
    let grid = op.grid(tokens, all_heads.div_ceil(THREADS as usize / WARP), THREADS)?;
    let name = format!("rope_append_{act}{}", suffix(shape.kv));
    // SAFETY: the argument of rope.cu; every array holds its shape, and the kernel checks positions and slots.
    unsafe { launch!(gpu, &name, grid; args) }
}

/// `AttentionArgs` of `common/attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct AttentionArgs {
    q: Address,
    cache: KvCache,
    positions: Address,
    slot_of: Address,
    out: Address,
    /// Where blocks that share a token leave parts of its keys, and how many of them have.
    pub(super) partial: Address,
    pub(super) arrived: Address,
    turn: TurnArgs,
    q_stride: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    slots: u32,
    capacity: u32,
    tokens: u32,
    pub(super) most_parts: u32,
    scale: f32,
    unused: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl KernelArg for AttentionArgs {}

impl AttentionArgs {
    /// Whether heads are still to be rotated and the cache to be written.
    pub(super) const fn rotates(&self) -> bool {
        !self.turn.cosines.is_null()
    }

    fn new(
        op: Op<'_>,
        shape: &Attention,
        qkv: &Buf,
        places: Places<'_>,
        (cache, slots): (KvCache, usize),
        turn: TurnArgs,
        out: &mut Buf,
    ) -> Result<Self> {
        let Attention {
            tokens,
            heads,
            kv_heads,
            head_dim,
            capacity,
            scale,
            ..
        } = *shape;
        let kind = out.kind();
        Ok(Self {
            q: op.reads("qkv", qkv, kind, &[tokens, shape.qkv_width()])?,
            cache,
            positions: op.reads("positions", places.positions, BufType::U32, &[tokens])?,
            slot_of: op.reads("slots", places.slots, BufType::U32, &[tokens])?,
            out: op.writes("out", out, kind, 0, &[tokens, heads, head_dim])?,
            partial: Address::NULL,
            arrived: Address::NULL,
            turn,
            q_stride: op.dim("qkv_width", shape.qkv_width())?,
            heads: op.dim("heads", heads)?,
            kv_heads: op.dim("kv_heads", kv_heads)?,
            head_dim: op.dim("head_dim", head_dim)?,
            slots: op.dim("slots", slots)?,
            capacity: op.dim("capacity", capacity)?,
            tokens: op.dim("tokens", tokens)?,
            most_parts: 1,
            scale,
            unused: 0,
        })
    }
}

/// The kernel that attention of this shape gets.
pub(crate) fn attention_kernel(gpu: &Gpu, shape: &Attention, act: DType) -> AttentionKernel {
    AttentionKernel::plan(shape, act, gpu.facts())
}

/// Refuses shapes that no kernel is for.
fn check(op: Op<'_>, shape: &Attention) -> Result<()> {
    let Attention {
        heads,
        kv_heads,
        head_dim,
        ..
    } = *shape;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || head_dim > MAX_HEAD_DIM {
        return Err(op.bug(&format!("the kernel cannot do {shape:?}")));
    }
    Ok(())
}

/// `attention_single.cu`, `attention_runs.cu`, `attention_wgmma.cu` or `attention.cu`. A position or slot outside the cache
/// gives NaN.
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
    if shape.tokens == 0 || shape.heads == 0 {
        return Ok(());
    }
    check(op, shape)?;
    let act = out.dtype()?;
    let cache = KvCache::reads(op, shape, cache, act)?;
    let args = AttentionArgs::new(op, shape, qkv, places, cache, TurnArgs::NONE, out)?;
    let kernel = attention_kernel(gpu, shape, act);
    if kernel != AttentionKernel::Any {
        return flash::run(op, shape, act, kernel, args);
    }
    let grid = op.grid(shape.tokens, shape.heads, THREADS)?;
    let name = format!("attention_{act}{}", suffix(shape.kv));
    // SAFETY: the argument of attention.cu; every array holds its shape, and the kernel checks positions and slots.
    unsafe { launch!(gpu, &name, grid; args) }
}

/// `attention_single.cu` on rows that have not been rotated: it does what `rope.cu` does, too, but leaves `qkv` as it is.
#[expect(clippy::too_many_arguments, reason = "what two ops take")]
pub(crate) fn append_attend(
    gpu: &Gpu,
    shape: &Attention,
    qkv: &Buf,
    norms: Option<HeadNorms<'_>>,
    table: &RopeTable,
    places: Places<'_>,
    cache: &mut LayerCache,
    out: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "append_attend",
    };
    if shape.tokens == 0 || shape.heads == 0 {
        return Ok(());
    }
    check(op, shape)?;
    let act = out.dtype()?;
    let kernel = attention_kernel(gpu, shape, act);
    if !kernel.appends() {
        return Err(op.bug(&format!("the kernel '{kernel}' does not append")));
    }
    let cache = KvCache::writes(op, shape, cache, act)?;
    let turn = TurnArgs::new(op, shape.head_dim, norms, table, act)?;
    let args = AttentionArgs::new(op, shape, qkv, places, cache, turn, out)?;
    flash::run(op, shape, act, kernel, args)
}
