//! Ops on heads and the cache: rotating and appending, and attending, as in a step of decoding, where every token has a
//! slot of its own and stands at its last position, and as in prompts.

mod append;
mod attention;
mod rope;

use std::collections::BTreeMap;

use super::bench::{Bed, Bench, Families, Family, Identity, Made};
use super::judge::{mixed, numbers};
use super::ops::{OpEntry, Sizes};
use crate::error::Result;
use crate::kernels::attention::{Attention, CacheScales, LayerCache, Queries};
use crate::kernels::device::HostElem;
use crate::kernels::fill::Filling;
use crate::kernels::{Buf, BufType, Device};
use crate::model::ModelConfig;
use crate::scheme::{CodeFormat, DType, KvFormat};

pub(super) const ROPE: OpEntry = OpEntry {
    name: "rope",
    what: "rotating queries and keys, and writing the cache",
    needs_model: true,
    uses_context: true,
    families: |sizes| Ok(by_heads("rope", sizes, Queries::Single, rope::bench)),
};

pub(super) const ATTENTION: OpEntry = OpEntry {
    name: "attention",
    what: "one token of each sequence over its cache",
    needs_model: true,
    uses_context: true,
    families: |sizes| {
        Ok(by_heads(
            "attention",
            sizes,
            Queries::Single,
            attention::bench,
        ))
    },
};

pub(super) const APPEND_ATTEND: OpEntry = OpEntry {
    name: "append_attend",
    what: "rope and attention of one token of each sequence, at once where there is a kernel",
    needs_model: true,
    uses_context: true,
    families: |sizes| {
        Ok(by_heads(
            "append_attend",
            sizes,
            Queries::Single,
            append::bench,
        ))
    },
};

pub(super) const PREFILL: OpEntry = OpEntry {
    name: "attention_prefill",
    what: "whole prompts of the context's length, M of them",
    needs_model: true,
    uses_context: true,
    families: |sizes| {
        Ok(by_heads(
            "attention_prefill",
            sizes,
            Queries::Runs,
            attention::bench,
        ))
    },
};

/// Makes the bench of a model's heads.
type Make = fn(&Bed<'_>, Heads, DType) -> Result<Box<dyn Bench>>;

/// Tokens that are compared at most.
const COMPARED: usize = 4;

/// What a family knows of a model, and the sequences of a bench.
#[derive(Debug, Clone)]
struct Heads {
    op: Attention,
    /// Slots `0 ..`, one for each sequence.
    sequences: usize,
    frequencies: Vec<f32>,
    /// Epsilon of the norms of queries and keys, where the model has them.
    norms: Option<f32>,
}

impl Heads {
    /// Heads whose cache holds `context` positions in the format `kv`, of which the last token of each sequence, or all,
    /// are attended from.
    fn of(config: &ModelConfig, context: usize, queries: Queries, kv: KvFormat) -> Self {
        let frequencies = config.rope.inverse_frequencies(config.head_dim);
        Self {
            op: Attention {
                tokens: 0,
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                capacity: context,
                kv,
                scale: 1.0 / (config.head_dim as f32).sqrt(),
                queries,
            },
            sequences: 0,
            frequencies: frequencies.iter().map(|&f| f as f32).collect(),
            norms: config.qk_norm.then_some(config.norm_eps),
        }
    }

    /// The same for so many sequences.
    fn side_by_side(mut self, sequences: usize) -> Self {
        self.sequences = sequences;
        self.op.tokens = sequences * self.tokens_of_each();
        self
    }

    fn tokens_of_each(&self) -> usize {
        match self.op.queries {
            Queries::Single => 1,
            Queries::Runs => self.op.capacity,
        }
    }

    /// Slot and position of a token: the last ones of each sequence.
    fn place(&self, token: usize) -> (usize, usize) {
        let each = self.tokens_of_each();
        (token / each, self.op.capacity - each + token % each)
    }

    /// Keys of all sequences.
    fn vectors(&self) -> usize {
        self.sequences * self.op.kv_heads * self.op.capacity
    }

    fn bytes(&self, act: DType) -> u64 {
        let op = &self.op;
        let rows = op.tokens * (op.qkv_width() + op.heads * op.head_dim) * act.size();
        (rows + 2 * self.vectors() * op.kv.vector_bytes(act.size(), op.head_dim)) as u64
    }
}

fn by_heads(op: &'static str, sizes: &Sizes<'_>, queries: Queries, make: Make) -> Families {
    let mut families: Vec<(BTreeMap<String, usize>, Vec<String>, Heads)> = Vec::new();
    for model in sizes.models {
        let config = &model.config;
        for context in sizes.plan.contexts() {
            let known = BTreeMap::from(
                [
                    ("heads", config.heads),
                    ("kv_heads", config.kv_heads),
                    ("head_dim", config.head_dim),
                    ("context", context),
                ]
                .map(|(name, size)| (name.to_owned(), size)),
            );
            match families.iter_mut().find(|family| family.0 == known) {
                Some(family) => family.1.push(model.name.clone()),
                None => {
                    let heads = Heads::of(config, context, queries, KvFormat::Auto);
                    families.push((known, vec![model.name.clone()], heads));
                }
            }
        }
    }
    let acts = sizes.acts();
    let family = |(known, roles, heads): &(BTreeMap<String, usize>, Vec<String>, Heads),
                  act: DType,
                  kv: KvFormat|
     -> Box<dyn Family> {
        let mut heads = heads.clone();
        heads.op.kv = kv;
        let variant = match kv.codes() {
            None => act.name().to_owned(),
            Some(_) => format!("{act} kv {kv}"),
        };
        Box::new(Made {
            identity: Identity {
                op,
                sizes: known.clone(),
                roles: roles.clone(),
                variant,
                act: act.name().to_owned(),
            },
            make: move |bed: &Bed<'_>, sequences: usize| {
                make(bed, heads.clone().side_by_side(sequences), act)
            },
        })
    };
    let formats = &sizes.plan.kv;
    families
        .iter()
        .flat_map(|entry| acts.iter().map(move |&act| (entry, act)))
        .flat_map(|(entry, act)| formats.iter().map(move |&kv| (entry, act, kv)))
        .map(|(entry, act, kv)| family(entry, act, kv))
        .collect()
}

/// One set of buffers.
struct Set {
    qkv: Buf,
    cache: LayerCache,
    out: Buf,
}

fn noise(device: &Device, count: usize, act: DType, stream: u64) -> Result<Buf> {
    let mut buf = device.alloc(BufType::Float(act), count)?;
    let noise = Filling::Uniform {
        stream,
        amplitude: 1.0,
    };
    noise.run(device, &mut buf, 0, count)?;
    Ok(buf)
}

/// Codes and scales of vectors whose numbers are below one, no scale like its neighbour's.
fn coded_noise(device: &Device, heads: &Heads, codes: CodeFormat, seed: u64) -> Result<[Buf; 2]> {
    let (vectors, largest) = (heads.vectors(), codes.range().1);
    let bytes: Vec<u8> = (0..(vectors * heads.op.head_dim).div_ceil(8) as u64)
        .flat_map(|i| mixed(seed, i).to_le_bytes())
        // Not the two codes of NaN that E4M3 has.
        .map(|code| if code & 0x7f == 0x7f { code ^ 1 } else { code })
        .collect();
    let scales: Vec<f32> = (0..vectors as u64)
        .map(|i| (0.5 + 0.5 * (mixed(!seed, i) >> 40) as f32 / (1 << 24) as f32) / largest)
        .collect();
    let held = |kind, count| device.alloc(kind, count);
    let mut numbers = held(BufType::U8, vectors * heads.op.head_dim)?;
    let mut factors = held(<f32 as HostElem>::KIND, vectors)?;
    device.upload(&mut numbers, 0, &bytes[..vectors * heads.op.head_dim])?;
    device.upload(&mut factors, 0, &scales)?;
    Ok([numbers, factors])
}

fn filled_cache(device: &Device, heads: &Heads, act: DType, seed: u64) -> Result<LayerCache> {
    let numbers = heads.vectors() * heads.op.head_dim;
    let [one, other] = [mixed(seed, 1), mixed(seed, 2)];
    let Some(codes) = heads.op.kv.codes() else {
        return Ok(LayerCache::plain(
            noise(device, numbers, act, one)?,
            noise(device, numbers, act, other)?,
        ));
    };
    let [k, of_k] = coded_noise(device, heads, codes, one)?;
    let [v, of_v] = coded_noise(device, heads, codes, other)?;
    let scales = Some(CacheScales { k: of_k, v: of_v });
    Ok(LayerCache { k, v, scales })
}

/// The numbers that vectors `range` of keys or values stand for.
fn vectors(
    device: &Device,
    heads: &Heads,
    (held, scales): (&Buf, Option<&Buf>),
    range: std::ops::Range<usize>,
) -> Result<Vec<f32>> {
    let dim = heads.op.head_dim;
    let all = range.start * dim..range.end * dim;
    let (Some(codes), Some(scales)) = (heads.op.kv.codes(), scales) else {
        return numbers(device, held, all);
    };
    let bytes: Vec<u8> = device.download(held, all)?;
    let scales: Vec<f32> = device.download(scales, range)?;
    let vectors = bytes.chunks(dim).zip(scales);
    Ok(vectors
        .flat_map(|(bytes, scale)| bytes.iter().map(move |&code| codes.value(code) * scale))
        .collect())
}

impl Set {
    fn keys(&self) -> (&Buf, Option<&Buf>) {
        (&self.cache.k, self.cache.scales.as_ref().map(|of| &of.k))
    }

    fn values(&self) -> (&Buf, Option<&Buf>) {
        (&self.cache.v, self.cache.scales.as_ref().map(|of| &of.v))
    }
}

fn sets(bed: &Bed<'_>, heads: &Heads, act: DType) -> Result<Vec<Set>> {
    let (op, device) = (&heads.op, bed.device);
    (0..bed.copies(heads.bytes(act))? as u64)
        .map(|copy| {
            let seed = mixed(bed.seed, copy);
            Ok(Set {
                qkv: noise(device, op.tokens * op.qkv_width(), act, mixed(seed, 0))?,
                cache: filled_cache(device, heads, act, seed)?,
                out: device.alloc(BufType::Float(act), op.tokens * op.heads * op.head_dim)?,
            })
        })
        .collect()
}

/// Weights of the norms of queries and keys, where the model has them.
fn head_norms(device: &Device, heads: &Heads, act: DType, seed: u64) -> Result<Option<[Buf; 2]>> {
    let norm = |stream| noise(device, heads.op.head_dim, act, mixed(seed, stream));
    let norms = heads.norms.map(|_| Ok([norm(11)?, norm(12)?]));
    norms.transpose()
}

/// Slots and positions of all tokens.
fn places(device: &Device, heads: &Heads) -> Result<[Buf; 2]> {
    let ids = |of: &dyn Fn((usize, usize)) -> usize| -> Result<Buf> {
        let ids: Vec<u32> = (0..heads.op.tokens)
            .map(|token| of(heads.place(token)) as u32)
            .collect();
        let mut buf = device.alloc(BufType::U32, ids.len())?;
        device.upload(&mut buf, 0, &ids)?;
        Ok(buf)
    };
    Ok([ids(&|place| place.0)?, ids(&|place| place.1)?])
}
