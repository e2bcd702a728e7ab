//! Attention in decoding and of prompts.

use super::super::bench::{Bed, Bench, Facts, NO_LIBRARY, Rotated};
use super::super::judge::{Judge, Judgement, least_step, numbers, poison, spread, unit, whole};
use super::{COMPARED, Heads, Set, places, sets, vectors};
use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::attention::{Places, Queries};
use crate::scheme::DType;

pub(super) fn bench(bed: &Bed<'_>, heads: Heads, act: DType) -> Result<Box<dyn Bench>> {
    let op = heads.op;
    let (device, seed) = (bed.device.clone(), bed.seed);
    let [slots, positions] = places(&device, &heads)?;
    let sets = sets(bed, &heads, act)?;
    let cached = (heads.sequences * op.capacity) as f64;
    let (seen, product) = match op.queries {
        Queries::Single => (cached, None),
        // Token i of a prompt sees i + 1 positions; so much arithmetic is what may bind.
        Queries::Runs => (cached * (op.capacity + 1) as f64 / 2.0, Some(act.name())),
    };
    let facts = Facts {
        cost: op.cost(act, seen, cached),
        product,
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
        judged(&device, &heads, set, act, seed)
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
pub(super) fn judged(
    device: &Device,
    heads: &Heads,
    set: &Set,
    act: DType,
    seed: u64,
) -> Result<Judgement> {
    let op = &heads.op;
    let dim = op.head_dim;
    let mut judge = Judge::default();
    for token in spread(op.tokens, op.tokens.div_ceil(COMPARED), seed) {
        let (slot, position) = heads.place(token);
        let first = token * op.qkv_width();
        let q = numbers(device, &set.qkv, first..first + op.heads * dim)?;
        let first = token * op.heads * dim;
        let out = numbers(device, &set.out, first..first + op.heads * dim)?;
        let share = op.heads / op.kv_heads;
        for head in 0..op.heads {
            let first = (slot * op.kv_heads + head / share) * op.capacity;
            let range = first..first + position + 1;
            let (k, v) = (
                vectors(device, heads, set.keys(), range.clone())?,
                vectors(device, heads, set.values(), range)?,
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
                let tolerance = 2.0 * unit(act) * size + 2.0_f64.powi(-16) * size + least_step(act);
                judge.element(out[head * dim + j], sum, tolerance, || {
                    format!("element {j} of head {head} of token {token}")
                });
            }
        }
    }
    Ok(judge.verdict(8.0 * whole(act)))
}
