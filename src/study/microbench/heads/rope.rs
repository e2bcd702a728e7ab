//! Rotation and the way into the cache.

use super::super::bench::{Bed, Bench, Facts, NO_LIBRARY, Rotated};
use super::super::judge::{Judge, Judgement, numbers, spread, unit, whole};
use super::{COMPARED, Heads, Set, head_norms, places, sets, vectors};
use crate::error::Result;
use crate::kernels::attention::Places;
use crate::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use crate::kernels::{Buf, Device};
use crate::scheme::{DType, KvFormat};

pub(super) fn bench(bed: &Bed<'_>, heads: Heads, act: DType) -> Result<Box<dyn Bench>> {
    let op = RopeAppend(heads.op);
    let (device, seed) = (bed.device.clone(), bed.seed);
    let [slots, positions] = places(&device, &heads)?;
    let table = RopeTable::new(&device, &heads.frequencies, heads.op.capacity)?;
    let sets = sets(bed, &heads, act)?;
    let norms = head_norms(&device, &heads, act, seed)?;
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
        judged(&device, &heads, norms.as_ref(), &before, set, act, seed)
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
fn judged(
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
                    (set.values(), head - op.heads - op.kv_heads)
                } else {
                    (set.keys(), head - op.heads)
                };
                let vector = (token * op.kv_heads + kv) * op.capacity + position;
                vectors(device, heads, cache, vector..vector + 1)?
            };
            let size = truth.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            // Half a step of a cache in codes, which is largest where the numbers are.
            let step = match op.kv {
                _ if is_query => 0.0,
                KvFormat::Auto => 0.0,
                KvFormat::Int8 => 0.5 / 127.0,
                KvFormat::Fp8 => 1.0 / 16.0,
            };
            let tolerance = (4.0 * unit(act) + step + 2.0_f64.powi(-18)) * size;
            for (j, (got, truth)) in got.iter().zip(&truth).enumerate() {
                judge.element(*got, *truth, tolerance, || {
                    format!("element {j} of head {head} of token {token}")
                });
            }
        }
    }
    let of_codes = match op.kv {
        KvFormat::Auto => 0.0,
        KvFormat::Int8 => 0.01,
        KvFormat::Fp8 => 0.04,
    };
    Ok(judge.verdict(2.0 * whole(act) + of_codes))
}

fn normed(x: &[f64], weight: Option<&Vec<f32>>, eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let factor = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter()
        .enumerate()
        .map(|(i, x)| x * factor * weight.map_or(1.0, |w| f64::from(w[i])))
        .collect()
}
