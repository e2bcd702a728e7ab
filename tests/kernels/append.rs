//! The cache as it is written, and attention that writes it: the bits of a rotation and an attention one after the other.

use candlepower::kernels::attention::{AppendAttend, Attention, LayerCache, Places, Queries};
use candlepower::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use candlepower::kernels::{Buf, BufType, Device};
use candlepower::scheme::{DType, KvFormat};

use super::attention::{Vectors, cache, shape};
use super::{Noise, devices, get, gpus, kernel_device, put, put_ids, some_gpus};

/// A step of tokens that are alone in their slots.
struct Step {
    op: Attention,
    act: DType,
    qkv: Vec<f32>,
    k: Vectors,
    v: Vectors,
    norms: Option<[Vec<f32>; 2]>,
    places: Vec<(u32, u32)>,
}

/// What a step leaves behind.
#[derive(Debug, PartialEq)]
struct Left {
    out: Vec<f32>,
    qkv: Vec<f32>,
    /// Keys and values, as bytes or widened.
    cached: [Held; 2],
}

#[derive(Debug, PartialEq)]
enum Held {
    Numbers(Vec<u32>),
    Codes(Vec<u8>, Vec<u32>),
}

fn held(device: &Device, numbers: &Buf, scales: Option<&Buf>) -> Held {
    // Bits, because a NaN equals nothing.
    let bits = |buf: &Buf| get(device, buf).iter().map(|x| x.to_bits()).collect();
    match scales {
        None => Held::Numbers(bits(numbers)),
        Some(scales) => {
            let codes = device.download(numbers, 0..numbers.len()).unwrap();
            Held::Codes(codes, bits(scales))
        }
    }
}

impl Step {
    fn new(heads: [usize; 3], positions: &[u32], act: DType, kv: KvFormat, normed: bool) -> Self {
        let capacity = 300;
        let op = shape(heads, positions.len(), capacity, Queries::Single, kv);
        let mut noise = Noise(op.heads as u64 + 5);
        let qkv = noise.numbers(op.tokens * op.qkv_width(), act);
        let [mut k, mut v] = [(); 2].map(|()| Vectors::new(&op, op.tokens, act, &mut noise));
        // A token's own vectors are yet to come, and so is all behind it.
        for (slot, &position) in positions.iter().enumerate() {
            for head in 0..op.kv_heads {
                let first = (slot * op.kv_heads + head) * capacity;
                for vector in first + position as usize..first + capacity {
                    k.spoil(vector);
                    v.spoil(vector);
                }
            }
        }
        let norms = [(); 2].map(|()| noise.numbers(op.head_dim, act));
        Self {
            op,
            act,
            qkv,
            k,
            v,
            norms: normed.then_some(norms),
            places: (0..).zip(positions.iter().copied()).collect(),
        }
    }

    fn run(&self, device: &Device, fused: bool) -> Left {
        let (op, act) = (&self.op, self.act);
        let mut cache = cache(device, act, &self.k, &self.v);
        let mut qkv = put(device, &self.qkv, act);
        let count = op.tokens * op.heads * op.head_dim;
        let mut out = device.alloc(BufType::Float(act), count).unwrap();
        let frequencies: Vec<f32> = (0..op.head_dim / 2)
            .map(|i| 0.1_f32.powf(i as f32 / 8.0))
            .collect();
        let table = RopeTable::new(device, &frequencies, op.capacity).unwrap();
        let norms = self
            .norms
            .as_ref()
            .map(|norms| norms.each_ref().map(|norm| put(device, norm, act)));
        let norms = norms.as_ref().map(|[q, k]| HeadNorms { q, k, eps: 1e-6 });
        let slots: Vec<u32> = self.places.iter().map(|place| place.0).collect();
        let positions: Vec<u32> = self.places.iter().map(|place| place.1).collect();
        let (slots, positions) = (put_ids(device, &slots), put_ids(device, &positions));
        let places = Places {
            slots: &slots,
            positions: &positions,
        };
        if fused {
            let op = AppendAttend(*op);
            op.run(
                device, &mut qkv, norms, &table, places, &mut cache, &mut out,
            )
            .unwrap();
        } else {
            RopeAppend(*op)
                .run(device, &mut qkv, norms, &table, places, &mut cache)
                .unwrap();
            op.run(device, &qkv, places, &cache, &mut out).unwrap();
        }
        let LayerCache { k, v, scales } = &cache;
        let scales = scales.as_ref();
        Left {
            out: get(device, &out),
            qkv: get(device, &qkv),
            cached: [
                held(device, k, scales.map(|scales| &scales.k)),
                held(device, v, scales.map(|scales| &scales.v)),
            ],
        }
    }
}

fn fused_equals_one_after_the_other(device: &Device, step: &Step) {
    let (apart, fused) = (step.run(device, false), step.run(device, true));
    let what = format!("{:?} at {:?} on {}", step.op, step.places, device.kind());
    assert!(apart.out.iter().all(|x| x.is_finite()), "{what}");
    assert_eq!(fused.out, apart.out, "{what}");
    assert!(fused.cached == apart.cached, "{what}: another cache");
    let one_launch = AppendAttend(step.op).is_one_launch(device, step.act);
    let before: Vec<f32> = step.qkv.iter().map(|&x| step.act.round(x)).collect();
    assert_eq!(one_launch, fused.qkv == before, "{what}");
}

/// Alone, where many blocks share a token, and in a batch, where one has it all; around the borders of tiles and parts.
const POSITIONS: [&[u32]; 6] = [
    &[0],
    &[127],
    &[128],
    &[299],
    &[15, 16, 31],
    &[0, 1, 17, 40, 63, 64, 100, 130, 255],
];

#[test]
fn attention_that_appends_has_the_bits_of_both_ops() {
    for device in some_gpus(&[0, 77]) {
        for (i, positions) in POSITIONS.into_iter().enumerate() {
            for (j, kv) in KvFormat::ALL.into_iter().enumerate() {
                let heads = [[2, 1, 64], [3, 3, 96], [8, 2, 128]][(i + j) % 3];
                let act = [DType::BF16, DType::F16][i % 2];
                let step = Step::new(heads, positions, act, kv, (i + j) % 2 == 0);
                assert!(AppendAttend(step.op).is_one_launch(&device, act));
                fused_equals_one_after_the_other(&device, &step);
            }
        }
    }
}

#[test]
fn where_no_kernel_does_both_they_run_one_after_the_other() {
    for device in devices() {
        for (heads, act) in [([2, 1, 64], DType::F32), ([2, 2, 20], DType::BF16)] {
            let step = Step::new(heads, &[3, 70], act, KvFormat::Int8, true);
            assert!(!AppendAttend(step.op).is_one_launch(&device, act));
            fused_equals_one_after_the_other(&device, &step);
        }
    }
}

#[test]
fn codes_and_scales_are_those_of_the_rows_that_were_rotated() {
    for device in devices() {
        for act in [DType::F32, DType::F16, DType::BF16] {
            for kv in [KvFormat::Int8, KvFormat::Fp8] {
                let step = Step::new([3, 3, 36], &[5, 0, 299], act, kv, true);
                let left = step.run(&device, false);
                let op = &step.op;
                for (which, held) in left.cached.iter().enumerate() {
                    let Held::Codes(codes, scales) = held else {
                        panic!("no codes");
                    };
                    for (t, &(slot, position)) in step.places.iter().enumerate() {
                        for head in 0..op.kv_heads {
                            let column = op.heads + which * op.kv_heads + head;
                            let row = &left.qkv[t * op.qkv_width() + column * op.head_dim..];
                            let mut own = vec![0; op.head_dim];
                            let x = row[..op.head_dim].iter().copied();
                            let scale = kv.encode(x, &mut own);
                            let vector = slot as usize * op.kv_heads + head;
                            let vector = vector * op.capacity + position as usize;
                            assert_eq!(codes[vector * op.head_dim..][..op.head_dim], own);
                            assert_eq!(f32::from_bits(scales[vector]), scale);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_place_outside_appends_nothing_and_gives_nan() {
    for device in gpus() {
        let mut step = Step::new([2, 1, 64], &[3, 4, 5], DType::BF16, KvFormat::Fp8, false);
        step.places[1] = (1, 300);
        step.places[2] = (9, 5);
        let (apart, fused) = (step.run(&device, false), step.run(&device, true));
        assert!(fused.out[..128].iter().all(|x| x.is_finite()));
        assert!(fused.out[128..].iter().all(|x| x.is_nan()));
        assert!(fused.cached == apart.cached);
    }
}

/// For mutations: a token whose parts several blocks share, and one that has a block of its own.
pub(super) fn appended(device: &Device) {
    for (positions, kv) in [
        (&[299][..], KvFormat::Auto),
        (&[0, 1, 17, 40, 63, 64, 100, 130, 255], KvFormat::Int8),
    ] {
        let step = Step::new([4, 1, 64], positions, DType::BF16, kv, true);
        // By kernels that are right.
        let truth = step.run(&kernel_device(&super::build::kernels(), 0), false);
        let got = step.run(device, true);
        assert_eq!(got.out, truth.out);
        assert!(got.cached == truth.cached);
    }
}
