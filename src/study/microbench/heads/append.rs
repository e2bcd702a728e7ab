//! Rotating, appending and attending at once, as a step of decoding does.

use std::sync::Arc;

use super::super::bench::{Bed, Bench, Facts, NO_LIBRARY, Rotated};
use super::super::judge::{mixed, poison};
use super::{Heads, Set, attention, head_norms, noise, places, sets, vectors};
use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::attention::{AppendAttend, Places};
use crate::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use crate::scheme::DType;

pub(super) fn bench(bed: &Bed<'_>, heads: Heads, act: DType) -> Result<Box<dyn Bench>> {
    let op = AppendAttend(heads.op);
    let (device, seed) = (bed.device.clone(), bed.seed);
    let [slots, positions] = places(&device, &heads)?;
    let table = RopeTable::new(&device, &heads.frequencies, heads.op.capacity)?;
    let norms = head_norms(&device, &heads, act, seed)?;
    let eps = heads.norms.unwrap_or_default();
    let sets = sets(bed, &heads, act)?;
    let cached = (heads.sequences * heads.op.capacity) as f64;
    let facts = Facts {
        cost: op.cost(act, cached, cached),
        product: None,
        copies: sets.len(),
        bytes: heads.bytes(act) * sets.len() as u64,
    };
    let plan = op.plan(&device, act);
    let shared = Arc::new((norms, table, slots, positions));
    let run = Arc::new({
        let (device, shared) = (device.clone(), shared.clone());
        move |set: &mut Set, _: usize| {
            let (norms, table, slots, positions) = &*shared;
            let norms = norms.as_ref().map(|[q, k]| HeadNorms { q, k, eps });
            let Set { qkv, cache, out } = set;
            let places = Places { slots, positions };
            op.run(&device, qkv, norms, table, places, cache, out)
        }
    });
    let call = run.clone();
    let judge = move |set: &mut Set| {
        let rows = || {
            let count = heads.op.tokens * heads.op.qkv_width();
            noise(&device, count, act, mixed(mixed(seed, 0), 0))
        };
        poison(&device, &mut set.out)?;
        set.qkv = rows()?;
        run(set, 0)?;
        // The queries that it has attended from are those of a rotation, which is judged as an op of its own.
        let (norms, table, slots, positions) = &*shared;
        let norms = norms.as_ref().map(|[q, k]| HeadNorms { q, k, eps });
        let written = own_vectors(&device, &heads, set)?;
        set.qkv = rows()?;
        let places = Places { slots, positions };
        let rope = RopeAppend(heads.op);
        rope.run(&device, &mut set.qkv, norms, table, places, &mut set.cache)?;
        if written != own_vectors(&device, &heads, set)? {
            return Ok(Err(
                "what it has written to the cache is not what a rotation writes".into(),
            ));
        }
        attention::judged(&device, &heads, set, act, seed)
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

/// Keys and values of the tokens themselves.
fn own_vectors(device: &Device, heads: &Heads, set: &Set) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for token in 0..heads.op.tokens {
        let (slot, position) = heads.place(token);
        for head in 0..heads.op.kv_heads {
            let vector = (slot * heads.op.kv_heads + head) * heads.op.capacity + position;
            for held in [set.keys(), set.values()] {
                all.extend(vectors(device, heads, held, vector..vector + 1)?);
            }
        }
    }
    Ok(all)
}
