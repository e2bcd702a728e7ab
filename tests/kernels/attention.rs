//! Attention over a cache that other sequences share, against the textbook in f64.

use candlepower::kernels::attention::{Attention, LayerCache, Places};
use candlepower::kernels::{BufType, Device};
use candlepower::scheme::DType;

use super::{Noise, TYPES, assert_close, devices, get, gpus, put, put_ids, unit};

/// Slot and position of every token, out of order: alone, a chunk of a prompt, and two sequences at different depths.
pub(super) const TOKENS: &[&[(u32, u32)]] = &[
    &[(0, 0)],
    &[(1, 0), (1, 1), (1, 2), (1, 3)],
    &[(2, 69), (0, 5), (2, 70), (1, 63), (0, 64)],
];

const SLOTS: usize = 3;

#[test]
fn attention_equals_the_textbook_in_every_type() {
    for device in devices() {
        for (heads, kv_heads, head_dim) in
            [(1, 1, 2), (6, 2, 16), (4, 4, 36), (3, 1, 128), (2, 1, 256)]
        {
            for tokens in TOKENS {
                for act in TYPES {
                    attend(&device, [heads, kv_heads, head_dim], tokens, act);
                }
            }
        }
    }
}

pub(super) fn attend(
    device: &Device,
    [heads, kv_heads, head_dim]: [usize; 3],
    places: &[(u32, u32)],
    act: DType,
) {
    let op = Attention {
        tokens: places.len(),
        heads,
        kv_heads,
        head_dim,
        capacity: 71,
        scale: 1.0 / (head_dim as f32).sqrt(),
    };
    let mut noise = Noise((heads * head_dim) as u64);
    // Scores of very different size, so that the largest one moves on the way.
    let qkv: Vec<f32> = noise
        .numbers(op.tokens * op.qkv_width(), act)
        .iter()
        .map(|x| act.round(x * 4.0))
        .collect();
    let cached = SLOTS * kv_heads * op.capacity * head_dim;
    let (k, v) = (noise.numbers(cached, act), noise.numbers(cached, act));
    let cache = LayerCache {
        k: put(device, &k, act),
        v: put(device, &v, act),
    };
    let slots: Vec<u32> = places.iter().map(|place| place.0).collect();
    let positions: Vec<u32> = places.iter().map(|place| place.1).collect();
    let (slots_held, positions_held) = (put_ids(device, &slots), put_ids(device, &positions));
    let mut out = device
        .alloc(BufType::Float(act), op.tokens * heads * head_dim)
        .unwrap();
    op.run(
        device,
        &put(device, &qkv, act),
        Places {
            slots: &slots_held,
            positions: &positions_held,
        },
        &cache,
        &mut out,
    )
    .unwrap();
    let truth = textbook(&op, &qkv, places, &k, &v);
    // Values are at most 1; scores, of up to 4 sqrt(head_dim), are off by what f32 sums of head_dim terms are off by.
    let score_error = 4.0 * (head_dim as f64).powf(1.5) * 2.0_f64.powi(-24);
    let tolerance = |i: usize| unit(act) * truth[i].abs() + 4.0 * score_error + 2e-6;
    let what = format!("{op:?}, {places:?}, {act}, {}", device.kind());
    assert_close(&get(device, &out), &truth, tolerance, &what);
}

fn textbook(op: &Attention, qkv: &[f32], places: &[(u32, u32)], k: &[f32], v: &[f32]) -> Vec<f64> {
    let dim = op.head_dim;
    let mut out = Vec::new();
    for (t, &(slot, position)) in places.iter().enumerate() {
        for head in 0..op.heads {
            let q = &qkv[t * op.qkv_width() + head * dim..][..dim];
            let kv_head = head / (op.heads / op.kv_heads);
            let row = |j: usize| ((slot as usize * op.kv_heads + kv_head) * op.capacity + j) * dim;
            let scores: Vec<f64> = (0..=position as usize)
                .map(|j| {
                    let terms = q.iter().zip(&k[row(j)..][..dim]);
                    let dot: f64 = terms.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    dot * f64::from(op.scale)
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..dim).map(|d| {
                let terms = weights.iter().enumerate();
                terms
                    .map(|(j, w)| w / total * f64::from(v[row(j) + d]))
                    .sum::<f64>()
            }));
        }
    }
    out
}

#[test]
fn a_place_outside_the_cache_gives_nan_there_and_nowhere_else() {
    for device in gpus() {
        let op = Attention {
            tokens: 3,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            capacity: 4,
            scale: 1.0,
        };
        let cache = LayerCache {
            k: put(&device, &[0.5; 32], DType::F32),
            v: put(&device, &[0.5; 32], DType::F32),
        };
        let qkv = put(&device, &[1.0; 96], DType::F32);
        // One slot, four positions: the second token is in no slot, the third at no position.
        let (slots, positions) = (
            put_ids(&device, &[0, 1, 0]),
            put_ids(&device, &[3, 0, u32::MAX]),
        );
        let mut out = put(&device, &[7.0; 48], DType::F32);
        let places = Places {
            slots: &slots,
            positions: &positions,
        };
        op.run(&device, &qkv, places, &cache, &mut out).unwrap();
        let out = get(&device, &out);
        assert!(out[..16].iter().all(|&x| x == 0.5), "{out:?}");
        assert!(out[16..].iter().all(|x| x.is_nan()), "{out:?}");
    }
}
