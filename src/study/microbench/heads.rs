//! Ops on heads and the cache: rotating and appending, and attending, as in a step of decoding. Every token has a slot
//! of its own and stands at its last position.

use std::collections::BTreeMap;

use super::bench::{Bed, Bench, Facts, Families, Family, Identity, Made, NO_LIBRARY, Rotated};
use super::judge::{Judge, Judgement, mixed, numbers, poison, spread, unit, whole};
use super::ops::{OpEntry, Sizes};
use crate::error::Result;
use crate::kernels::attention::{Attention, LayerCache, Places, Queries};
use crate::kernels::fill::Filling;
use crate::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use crate::kernels::{Buf, BufType, Device};
use crate::model::ModelConfig;
use crate::scheme::DType;

pub(super) const ROPE: OpEntry = OpEntry {
    name: "rope",
    what: "rotating queries and keys, and writing the cache",
    needs_model: true,
    uses_context: true,
    families: |sizes| Ok(by_heads("rope", sizes, rope)),
};

pub(super) const ATTENTION: OpEntry = OpEntry {
    name: "attention",
    what: "one token of each sequence over its cache",
    needs_model: true,
    uses_context: true,
    families: |sizes| Ok(by_heads("attention", sizes, attention)),
};

/// Makes the bench of a model's heads.
type Make = fn(&Bed<'_>, Heads, DType) -> Result<Box<dyn Bench>>;

/// Tokens that are compared at most.
const COMPARED: usize = 4;

/// What a family knows of a model, and the tokens of a bench.
#[derive(Debug, Clone)]
struct Heads {
    op: Attention,
    frequencies: Vec<f32>,
    /// Epsilon of the norms of queries and keys, where the model has them.
    norms: Option<f32>,
}

impl Heads {
    fn of(config: &ModelConfig, context: usize) -> Self {
        let frequencies = config.rope.inverse_frequencies(config.head_dim);
        Self {
            op: Attention {
                tokens: 0,
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                capacity: context,
                scale: 1.0 / (config.head_dim as f32).sqrt(),
                // Every token of a bench has a slot of its own.
                queries: Queries::Single,
            },
            frequencies: frequencies.iter().map(|&f| f as f32).collect(),
            norms: config.qk_norm.then_some(config.norm_eps),
        }
    }

    /// Numbers of one token in keys, and in values.
    fn cached(&self) -> usize {
        self.op.kv_heads * self.op.capacity * self.op.head_dim
    }

    fn bytes(&self, act: DType) -> u64 {
        let rows = self.op.qkv_width() + self.op.heads * self.op.head_dim;
        (self.op.tokens * (rows + 2 * self.cached()) * act.size()) as u64
    }
}

fn by_heads(op: &'static str, sizes: &Sizes<'_>, make: Make) -> Families {
    let context = sizes.plan.context();
    let mut families: Vec<(BTreeMap<String, usize>, Vec<String>, Heads)> = Vec::new();
    for model in sizes.models {
        let config = &model.config;
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
            None => families.push((known, vec![model.name.clone()], Heads::of(config, context))),
        }
    }
    let acts = sizes.acts();
    let family = |(known, roles, heads): &(BTreeMap<String, usize>, Vec<String>, Heads),
                  act: DType|
     -> Box<dyn Family> {
        let heads = heads.clone();
        Box::new(Made {
            identity: Identity {
                op,
                sizes: known.clone(),
                roles: roles.clone(),
                variant: act.name().to_owned(),
                act: act.name().to_owned(),
            },
            make: move |bed: &Bed<'_>, tokens: usize| {
                let mut heads = heads.clone();
                heads.op.tokens = tokens;
                make(bed, heads, act)
            },
        })
    };
    families
        .iter()
        .flat_map(|entry| acts.iter().map(|&act| family(entry, act)))
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

fn sets(bed: &Bed<'_>, heads: &Heads, act: DType) -> Result<Vec<Set>> {
    let (op, device) = (&heads.op, bed.device);
    let cached = op.tokens * heads.cached();
    (0..bed.copies(heads.bytes(act))? as u64)
        .map(|copy| {
            let seed = mixed(bed.seed, copy);
            Ok(Set {
                qkv: noise(device, op.tokens * op.qkv_width(), act, mixed(seed, 0))?,
                cache: LayerCache {
                    k: noise(device, cached, act, mixed(seed, 1))?,
                    v: noise(device, cached, act, mixed(seed, 2))?,
                },
                out: device.alloc(BufType::Float(act), op.tokens * op.heads * op.head_dim)?,
            })
        })
        .collect()
}

/// Slots `0 ..`, each token at the last position of its own.
fn places(device: &Device, op: &Attention) -> Result<[Buf; 2]> {
    let ids = |ids: Vec<u32>| -> Result<Buf> {
        let mut buf = device.alloc(BufType::U32, ids.len())?;
        device.upload(&mut buf, 0, &ids)?;
        Ok(buf)
    };
    Ok([
        ids((0..op.tokens as u32).collect())?,
        ids(vec![op.capacity as u32 - 1; op.tokens])?,
    ])
}

fn attention(bed: &Bed<'_>, heads: Heads, act: DType) -> Result<Box<dyn Bench>> {
    let op = heads.op;
    let (device, seed) = (bed.device.clone(), bed.seed);
    let [slots, positions] = places(&device, &op)?;
    let sets = sets(bed, &heads, act)?;
    let seen = (op.tokens * op.capacity) as f64;
    let facts = Facts {
        cost: op.cost(act, seen, seen),
        product: None,
        copies: sets.len(),
        bytes: heads.bytes(act) * sets.len() as u64,
    };
    let run = std::sync::Arc::new({
        let device = device.clone();
        move |set: &mut Set, _: usize| {
            let places = Places {
                slots: &slots,
                positions: &positions,
            };
            op.run(&device, &set.qkv, places, &set.cache, &mut set.out)
        }
    });
    let call = run.clone();
    let plan = op.plan(&device, act);
    let judge = move |set: &mut Set| {
        poison(&device, &mut set.out)?;
        run(set, 0)?;
        judge_attention(&device, &op, set, act, seed)
    };
    Ok(Box::new(Rotated {
        facts,
        sets,
        plan: Box::new(move || plan.clone()),
        call: Box::new(move |set, copy| call(set, copy)),
        judge: Box::new(judge),
        library: Err(NO_LIBRARY.to_owned()),
    }))
}

/// Every head of some tokens against softmax and sums in f64.
fn judge_attention(
    device: &Device,
    op: &Attention,
    set: &Set,
    act: DType,
    seed: u64,
) -> Result<Judgement> {
    let (dim, capacity) = (op.head_dim, op.capacity);
    let mut judge = Judge::default();
    for token in spread(op.tokens, op.tokens.div_ceil(COMPARED), seed) {
        let first = token * op.qkv_width();
        let q = numbers(device, &set.qkv, first..first + op.heads * dim)?;
        let first = token * op.heads * dim;
        let out = numbers(device, &set.out, first..first + op.heads * dim)?;
        let share = op.heads / op.kv_heads;
        for head in 0..op.heads {
            let first = (token * op.kv_heads + head / share) * capacity * dim;
            let range = first..first + capacity * dim;
            let (k, v) = (
                numbers(device, &set.cache.k, range.clone())?,
                numbers(device, &set.cache.v, range)?,
            );
            let q = &q[head * dim..(head + 1) * dim];
            let dot = |k: &[f32]| -> f64 {
                let products = q.iter().zip(k);
                products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
            };
            let scores: Vec<f64> = k
                .chunks(dim)
                .map(|k| f64::from(op.scale) * dot(k))
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for j in 0..dim {
                let terms = weights.iter().zip(v.chunks(dim));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), (w, v)| {
                    let y = w / total * f64::from(v[j]);
                    (sum + y, size + y.abs())
                });
                // Weights may be rounded to the type of the values before they meet them.
                let tolerance = 2.0 * unit(act) * size + 2.0_f64.powi(-16) * size;
                judge.element(out[head * dim + j], sum, tolerance, || {
                    format!("element {j} of head {head} of token {token}")
                });
            }
        }
    }
    Ok(judge.verdict(8.0 * whole(act)))
}

fn rope(bed: &Bed<'_>, heads: Heads, act: DType) -> Result<Box<dyn Bench>> {
    let op = RopeAppend(heads.op);
    let (device, seed) = (bed.device.clone(), bed.seed);
    let [slots, positions] = places(&device, &heads.op)?;
    let table = RopeTable::new(&device, &heads.frequencies, heads.op.capacity)?;
    let sets = sets(bed, &heads, act)?;
    let norms = heads.norms.map(|_| -> Result<[Buf; 2]> {
        let dim = heads.op.head_dim;
        Ok([
            noise(&device, dim, act, mixed(seed, 11))?,
            noise(&device, dim, act, mixed(seed, 12))?,
        ])
    });
    let norms = norms.transpose()?;
    let eps = heads.norms.unwrap_or_default();
    let facts = Facts {
        cost: op.cost(act),
        product: None,
        copies: sets.len(),
        bytes: heads.bytes(act) * sets.len() as u64,
    };
    let shared = std::sync::Arc::new((norms, table));
    let run = std::sync::Arc::new({
        let (device, shared) = (device.clone(), shared.clone());
        move |set: &mut Set, _: usize| {
            let places = Places {
                slots: &slots,
                positions: &positions,
            };
            let (norms, table) = &*shared;
            let norms = norms.as_ref().map(|[q, k]| HeadNorms { q, k, eps });
            op.run(&device, &mut set.qkv, norms, table, places, &mut set.cache)
        }
    });
    let call = run.clone();
    let judge = move |set: &mut Set| {
        let before = numbers(&device, &set.qkv, 0..set.qkv.len())?;
        run(set, 0)?;
        let (norms, _) = &*shared;
        judge_rope(&device, &heads, norms.as_ref(), &before, set, act, seed)
    };
    Ok(Box::new(Rotated {
        facts,
        sets,
        plan: Box::new(|| "head by head".to_owned()),
        call: Box::new(move |set, copy| call(set, copy)),
        judge: Box::new(judge),
        library: Err(NO_LIBRARY.to_owned()),
    }))
}

/// Queries, and keys and values as they are in the cache, of some tokens, against the formula in f64.
fn judge_rope(
    device: &Device,
    heads: &Heads,
    norms: Option<&[Buf; 2]>,
    before: &[f32],
    set: &Set,
    act: DType,
    seed: u64,
) -> Result<Judgement> {
    let op = &heads.op;
    let (dim, half) = (op.head_dim, op.head_dim / 2);
    let weights = norms.map(|[q, k]| -> Result<[Vec<f32>; 2]> {
        Ok([numbers(device, q, 0..dim)?, numbers(device, k, 0..dim)?])
    });
    let weights = weights.transpose()?;
    let position = op.capacity - 1;
    let mut judge = Judge::default();
    for token in spread(op.tokens, op.tokens.div_ceil(COMPARED), seed) {
        let first = token * op.qkv_width();
        let row = numbers(device, &set.qkv, first..first + op.heads * dim)?;
        for head in 0..op.heads + 2 * op.kv_heads {
            let x: Vec<f64> = before[first + head * dim..][..dim]
                .iter()
                .map(|&x| f64::from(x))
                .collect();
            let (is_query, is_value) = (head < op.heads, head >= op.heads + op.kv_heads);
            let mut truth = x.clone();
            if !is_value {
                let weight = weights.as_ref().map(|w| &w[usize::from(!is_query)]);
                let normed = heads.norms.map_or(x.clone(), |eps| normed(&x, weight, eps));
                for i in 0..half {
                    let angle = f64::from(position as f32 * heads.frequencies[i]);
                    let (a, b) = (normed[i], normed[i + half]);
                    truth[i] = a * angle.cos() - b * angle.sin();
                    truth[i + half] = b * angle.cos() + a * angle.sin();
                }
            }
            let got = if is_query {
                row[head * dim..(head + 1) * dim].to_vec()
            } else {
                let (cache, kv) = if is_value {
                    (&set.cache.v, head - op.heads - op.kv_heads)
                } else {
                    (&set.cache.k, head - op.heads)
                };
                let first = ((token * op.kv_heads + kv) * op.capacity + position) * dim;
                numbers(device, cache, first..first + dim)?
            };
            let size = truth.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            let tolerance = (4.0 * unit(act) + 2.0_f64.powi(-18)) * size;
            for (j, (got, truth)) in got.iter().zip(&truth).enumerate() {
                judge.element(*got, *truth, tolerance, || {
                    format!("element {j} of head {head} of token {token}")
                });
            }
        }
    }
    Ok(judge.verdict(2.0 * whole(act)))
}

fn normed(x: &[f64], weight: Option<&Vec<f32>>, eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let factor = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter()
        .enumerate()
        .map(|(i, x)| x * factor * weight.map_or(1.0, |w| f64::from(w[i])))
        .collect()
}
