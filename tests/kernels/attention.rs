//! Attention over a cache that other sequences share, against the textbook in f64.

use candlepower::kernels::attention::{Attention, CacheScales, LayerCache, Places, Queries};
use candlepower::kernels::{BufType, Device};
use candlepower::scheme::{DType, KvFormat};

use super::{
    Noise, TYPES, assert_close, devices, get, gpus, one_gpu, put, put_bytes, put_ids, some_gpus,
    unit,
};

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
                let heads = [heads, kv_heads, head_dim];
                for (i, act) in TYPES.into_iter().enumerate() {
                    for queries in [Queries::Single, Queries::Runs] {
                        attend(&device, heads, tokens, act, queries, KvFormat::Auto);
                    }
                    let coded = [KvFormat::Int8, KvFormat::Fp8][(i + tokens.len()) % 2];
                    attend(&device, heads, tokens, act, Queries::Runs, coded);
                }
            }
        }
    }
}

/// Tokens of these places over a cache of `capacity` positions.
pub(super) fn shape(
    [heads, kv_heads, head_dim]: [usize; 3],
    tokens: usize,
    capacity: usize,
    queries: Queries,
    kv: KvFormat,
) -> Attention {
    Attention {
        tokens,
        heads,
        kv_heads,
        head_dim,
        capacity,
        kv,
        scale: 1.0 / (head_dim as f32).sqrt(),
        queries,
    }
}

/// Keys, or values, of a cache: what they stand for, and what is held.
#[derive(Clone)]
pub(super) struct Vectors {
    kv: KvFormat,
    head_dim: usize,
    pub(super) numbers: Vec<f32>,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Vectors {
    /// Noise as a cache of this format holds it beside activations of type `act`.
    pub(super) fn new(op: &Attention, slots: usize, act: DType, noise: &mut Noise) -> Self {
        let count = slots * op.kv_heads * op.capacity * op.head_dim;
        let mut numbers = noise.numbers(count, act);
        // Neighbours of different sizes, so that the scale of another one is noticed.
        for (i, x) in numbers.chunks_mut(op.head_dim).enumerate() {
            let size = [1.0, 0.5, 0.25][i % 3];
            x.iter_mut().for_each(|x| *x *= size);
        }
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        if let Some(format) = op.kv.codes() {
            codes = vec![0; count];
            let vectors = numbers.chunks_mut(op.head_dim);
            for (x, codes) in vectors.zip(codes.chunks_mut(op.head_dim)) {
                let scale = op.kv.encode(x.iter().copied(), codes);
                scales.push(scale);
                for (x, &code) in x.iter_mut().zip(&*codes) {
                    *x = format.value(code) * scale;
                }
            }
        }
        Self {
            kv: op.kv,
            head_dim: op.head_dim,
            numbers,
            codes,
            scales,
        }
    }

    /// Makes a vector one that must not be looked at.
    pub(super) fn spoil(&mut self, vector: usize) {
        let numbers = vector * self.head_dim..(vector + 1) * self.head_dim;
        self.numbers[numbers.clone()].fill(f32::NAN);
        if self.kv.codes().is_some() {
            self.codes[numbers].fill(0x7f);
            self.scales[vector] = f32::NAN;
        }
    }
}

/// Both on a device.
pub(super) fn cache(device: &Device, act: DType, k: &Vectors, v: &Vectors) -> LayerCache {
    if k.kv.codes().is_none() {
        return LayerCache::plain(put(device, &k.numbers, act), put(device, &v.numbers, act));
    }
    LayerCache {
        k: put_bytes(device, &k.codes),
        v: put_bytes(device, &v.codes),
        scales: Some(CacheScales {
            k: put(device, &k.scales, DType::F32),
            v: put(device, &v.scales, DType::F32),
        }),
    }
}

/// Queries, keys and values.
struct Numbers {
    qkv: Vec<f32>,
    k: Vectors,
    v: Vectors,
}

impl Numbers {
    fn new(op: &Attention, slots: usize, act: DType) -> Self {
        let mut noise = Noise((op.heads * op.head_dim) as u64);
        // Scores of very different size, so that the largest one moves on the way.
        let qkv: Vec<f32> = noise
            .numbers(op.tokens * op.qkv_width(), act)
            .iter()
            .map(|x| act.round(x * 4.0))
            .collect();
        let k = Vectors::new(op, slots, act, &mut noise);
        let v = Vectors::new(op, slots, act, &mut noise);
        Self { qkv, k, v }
    }

    fn run(&self, device: &Device, op: &Attention, places: &[(u32, u32)], act: DType) -> Vec<f32> {
        let cache = cache(device, act, &self.k, &self.v);
        let slots: Vec<u32> = places.iter().map(|place| place.0).collect();
        let positions: Vec<u32> = places.iter().map(|place| place.1).collect();
        let (slots, positions) = (put_ids(device, &slots), put_ids(device, &positions));
        let count = op.tokens * op.heads * op.head_dim;
        let mut out = device.alloc(BufType::Float(act), count).unwrap();
        let places = Places {
            slots: &slots,
            positions: &positions,
        };
        let qkv = put(device, &self.qkv, act);
        op.run(device, &qkv, places, &cache, &mut out).unwrap();
        get(device, &out)
    }
}

pub(super) fn attend(
    device: &Device,
    heads: [usize; 3],
    places: &[(u32, u32)],
    act: DType,
    queries: Queries,
    kv: KvFormat,
) {
    let capacity = places.iter().map(|place| place.1 as usize + 1).max();
    let capacity = capacity.unwrap_or(1).max(71);
    let op = shape(heads, places.len(), capacity, queries, kv);
    let mut numbers = Numbers::new(&op, SLOTS, act);
    // What lies beyond the last position that anyone sees is never looked at.
    let seen = |slot: usize| {
        let of_slot = places.iter().filter(|place| place.0 as usize == slot);
        of_slot.map(|place| place.1 as usize + 1).max().unwrap_or(0)
    };
    for vector in 0..SLOTS * op.kv_heads * capacity {
        if vector % capacity >= seen(vector / capacity / op.kv_heads) {
            numbers.k.spoil(vector);
            numbers.v.spoil(vector);
        }
    }
    let (truth, sizes) = textbook(
        &op,
        &numbers.qkv,
        places,
        &numbers.k.numbers,
        &numbers.v.numbers,
    );
    let out = numbers.run(device, &op, places, act);
    // Values are at most 1; scores, of up to 4 sqrt(head_dim), are off by what f32 sums of head_dim terms are off by. A
    // GPU rounds weights to the type of the values before they meet.
    let score_error = 4.0 * (op.head_dim as f64).powf(1.5) * 2.0_f64.powi(-24);
    let of_weights = if matches!(device, Device::Cpu) || act == DType::F32 {
        0.0
    } else {
        2.0 * unit(act)
    };
    let tolerance =
        |i: usize| unit(act) * truth[i].abs() + of_weights * sizes[i] + 4.0 * score_error + 2e-6;
    let what = format!("{op:?}, {places:?}, {act}, {}", device.kind());
    assert_close(&out, &truth, tolerance, &what);
}

/// The result, and the sum of the magnitudes that make each element.
fn textbook(
    op: &Attention,
    qkv: &[f32],
    places: &[(u32, u32)],
    k: &[f32],
    v: &[f32],
) -> (Vec<f64>, Vec<f64>) {
    let dim = op.head_dim;
    let (mut out, mut sizes) = (Vec::new(), Vec::new());
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
            for d in 0..dim {
                let terms = weights.iter().enumerate();
                let terms = terms.map(|(j, w)| w / total * f64::from(v[row(j) + d]));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, m), y| (s + y, m + y.abs()));
                out.push(sum);
                sizes.push(size);
            }
        }
    }
    (out, sizes)
}

/// Lengths around the borders of fragments, units and parts.
const LENGTHS: [u32; 7] = [1, 16, 64, 127, 128, 129, 300];

#[test]
fn every_group_and_head_size_of_decoding_equals_the_textbook() {
    let device = one_gpu(0);
    for (i, heads) in [
        [1, 1, 64],
        [4, 2, 96],
        [6, 2, 128],
        [8, 2, 64],
        [7, 1, 128],
        [16, 2, 64],
    ]
    .into_iter()
    .enumerate()
    {
        for (j, length) in LENGTHS.into_iter().enumerate() {
            let act = [DType::BF16, DType::F16][(i + j) % 2];
            let kv = KvFormat::ALL[(i + j / 2) % 3];
            for kv in [KvFormat::Auto, kv] {
                attend(&device, heads, &[(1, length - 1)], act, Queries::Single, kv);
            }
        }
    }
}

#[test]
fn long_contexts_equal_the_textbook() {
    // A part of 8193 keys has 256 of them.
    for (length, kv) in [
        (1024, KvFormat::Auto),
        (1024, KvFormat::Int8),
        (4096, KvFormat::Auto),
        (4096, KvFormat::Fp8),
        (8193, KvFormat::Auto),
    ] {
        let (device, places) = (one_gpu(0), [(0, length - 1)]);
        attend(
            &device,
            [2, 1, 64],
            &places,
            DType::BF16,
            Queries::Single,
            kv,
        );
        let places: Vec<(u32, u32)> = (length - 5..length).map(|p| (2, p)).collect();
        attend(&device, [1, 1, 64], &places, DType::F16, Queries::Runs, kv);
    }
}

#[test]
fn prompts_equal_the_textbook_whole_in_chunks_and_side_by_side() {
    let run = |slot: u32, positions: std::ops::Range<u32>| positions.map(move |p| (slot, p));
    let whole: Vec<(u32, u32)> = run(0, 0..70).collect();
    let chunk: Vec<(u32, u32)> = run(1, 61..130).collect();
    let ragged: Vec<(u32, u32)> = run(2, 0..1)
        .chain(run(0, 120..129))
        .chain(run(1, 0..37))
        .collect();
    for device in some_gpus(&[0, 77]) {
        for (heads, places, act, kv) in [
            ([2, 2, 64], &whole, DType::BF16, KvFormat::Auto),
            ([3, 1, 96], &chunk, DType::BF16, KvFormat::Auto),
            ([4, 1, 128], &ragged, DType::BF16, KvFormat::Auto),
            ([7, 1, 64], &ragged, DType::BF16, KvFormat::Auto),
            ([2, 2, 64], &whole, DType::F16, KvFormat::Int8),
            ([3, 1, 96], &chunk, DType::BF16, KvFormat::Fp8),
            ([4, 1, 128], &ragged, DType::F16, KvFormat::Fp8),
            ([7, 1, 64], &ragged, DType::BF16, KvFormat::Int8),
        ] {
            attend(&device, heads, places, act, Queries::Runs, kv);
        }
    }
}

/// Who computes a part of the keys follows from the batch; where parts begin and how they are put together does not.
#[test]
fn a_row_has_the_same_bits_alone_and_in_a_ragged_batch() {
    let positions = [0, 1, 63, 64, 126, 127, 128, 129, 200, 255, 256, 299];
    for device in some_gpus(&[0, 77]) {
        for kv in KvFormat::ALL {
            let of = |tokens| shape([8, 2, 64], tokens, 300, Queries::Single, kv);
            let plan = |tokens| of(tokens).plan(&device, DType::BF16);
            // So many that blocks do not share a token's keys, as they do of one alone.
            let rounds = (1..100)
                .find(|rounds| plan(rounds * positions.len()) != plan(1))
                .expect("as many blocks either way");
            let all_positions = positions.iter().cycle().take(rounds * positions.len());
            let places: Vec<(u32, u32)> = (0..).zip(all_positions.copied()).collect();
            let op = of(places.len());
            let numbers = Numbers::new(&op, places.len(), DType::BF16);
            let all = numbers.run(&device, &op, &places, DType::BF16);
            let again = numbers.run(&device, &op, &places, DType::BF16);
            assert_eq!(all, again, "two runs");
            let alone = Attention { tokens: 1, ..op };
            let mut own = Numbers {
                qkv: Vec::new(),
                k: numbers.k,
                v: numbers.v,
            };
            for (i, &place) in places.iter().enumerate() {
                own.qkv = numbers.qkv[i * op.qkv_width()..][..op.qkv_width()].to_vec();
                let alone = own.run(&device, &alone, &[place], DType::BF16);
                let width = op.heads * op.head_dim;
                assert_eq!(alone, all[i * width..][..width], "{place:?}, {kv}");
            }
        }
    }
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
            kv: KvFormat::Auto,
            scale: 1.0,
            queries: Queries::Runs,
        };
        let halves = || put(&device, &[0.5; 32], DType::F32);
        let cache = LayerCache::plain(halves(), halves());
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

#[test]
fn a_place_outside_the_cache_gives_nan_by_matrix_instructions_too() {
    for device in gpus() {
        for queries in [Queries::Single, Queries::Runs] {
            let op = shape([2, 1, 64], 3, 4, queries, KvFormat::Auto);
            let numbers = Numbers::new(&op, 1, DType::BF16);
            let out = numbers.run(&device, &op, &[(0, 3), (1, 0), (0, u32::MAX)], DType::BF16);
            assert!(out[..128].iter().all(|x| x.is_finite()), "{queries:?}");
            assert!(out[128..].iter().all(|x| x.is_nan()), "{queries:?}");
        }
    }
}
