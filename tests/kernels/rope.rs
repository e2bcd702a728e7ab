//! The rotation of heads, and what it writes into the cache.

use candlepower::kernels::Device;
use candlepower::kernels::attention::{Attention, LayerCache, Places, Queries};
use candlepower::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use candlepower::scheme::{DType, KvFormat};

use super::{Noise, TYPES, assert_close, devices, get, put, put_ids, unit};

/// Five tokens of two sequences, out of order, with and without norms of heads.
#[test]
fn rotated_heads_and_the_cache_equal_plain_loops() {
    for device in devices() {
        for act in TYPES {
            for normed in [false, true] {
                rope(&device, act, normed);
            }
        }
    }
}

fn rope(device: &Device, act: DType, normed: bool) {
    let (tokens, heads, kv_heads, head_dim, capacity, slots) = (5, 6, 2, 16, 11, 3);
    let attention = Attention {
        tokens,
        heads,
        kv_heads,
        head_dim,
        capacity,
        kv: KvFormat::Auto,
        scale: 1.0,
        queries: Queries::Runs,
    };
    let slot = [2_u32, 0, 2, 2, 0];
    let position = [0_u32, 10, 3, 1, 7];
    let frequencies: Vec<f32> = (0..head_dim / 2)
        .map(|i| 1.0 / 10.0_f32.powf(i as f32 / 4.0))
        .collect();
    let mut noise = Noise(21);
    let width = (heads + 2 * kv_heads) * head_dim;
    let before = noise.numbers(tokens * width, act);
    let norms = [noise.numbers(head_dim, act), noise.numbers(head_dim, act)];
    let held = norms.each_ref().map(|norm| put(device, norm, act));
    let eps = 1e-6;
    let mut qkv = put(device, &before, act);
    let cached = slots * kv_heads * capacity * head_dim;
    let empty = vec![-3.0; cached];
    let mut cache = LayerCache::plain(put(device, &empty, act), put(device, &empty, act));
    let table = RopeTable::new(device, &frequencies, capacity).unwrap();
    let (slots_held, positions_held) = (put_ids(device, &slot), put_ids(device, &position));
    let places = Places {
        slots: &slots_held,
        positions: &positions_held,
    };
    let head_norms = normed.then_some(HeadNorms {
        q: &held[0],
        k: &held[1],
        eps,
    });
    RopeAppend(attention)
        .run(device, &mut qkv, head_norms, &table, places, &mut cache)
        .unwrap();

    let mut truth: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
    let half = head_dim / 2;
    for t in 0..tokens {
        for head in 0..heads + kv_heads {
            let x = &mut truth[t * width + head * head_dim..][..head_dim];
            if normed {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
                let norm = &norms[usize::from(head >= heads)];
                x.iter_mut()
                    .zip(norm)
                    .for_each(|(x, w)| *x = *x / (mean + f64::from(eps)).sqrt() * f64::from(*w));
            }
            for i in 0..half {
                let angle = f64::from(position[t]) * f64::from(frequencies[i]);
                let (a, b) = (x[i], x[i + half]);
                (x[i], x[i + half]) = (
                    a * angle.cos() - b * angle.sin(),
                    b * angle.cos() + a * angle.sin(),
                );
            }
        }
    }
    let tolerance = |_: usize| 8.0 * unit(act) + 1e-5;
    let what = format!("{act}, norms {normed}, {}", device.kind());
    let got = get(device, &qkv);
    // Values pass through untouched, and the cache holds what the rows hold; everything else of it is as it was.
    assert_close(&got, &truth, tolerance, &what);
    let (mut k, mut v) = (empty.clone(), empty);
    for t in 0..tokens {
        for head in 0..kv_heads {
            let at =
                ((slot[t] as usize * kv_heads + head) * capacity + position[t] as usize) * head_dim;
            let from = |first: usize| &got[t * width + (first + head) * head_dim..][..head_dim];
            k[at..at + head_dim].copy_from_slice(from(heads));
            v[at..at + head_dim].copy_from_slice(from(heads + kv_heads));
        }
    }
    for t in 0..tokens {
        let values = (heads + kv_heads) * head_dim..width;
        assert_eq!(
            got[t * width..][values.clone()],
            before[t * width..][values],
            "{what}"
        );
    }
    assert_eq!(get(device, &cache.k), k, "{what}: keys");
    assert_eq!(get(device, &cache.v), v, "{what}: values");
}

#[test]
fn a_position_beyond_the_cache_is_an_error() {
    let device = Device::Cpu;
    let attention = Attention {
        tokens: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        capacity: 2,
        kv: KvFormat::Auto,
        scale: 1.0,
        queries: Queries::Runs,
    };
    let mut qkv = put(&device, &[0.5; 12], DType::F32);
    let zeros = || put(&device, &[0.0; 8], DType::F32);
    let mut cache = LayerCache::plain(zeros(), zeros());
    let table = RopeTable::new(&device, &[1.0, 0.5], 2).unwrap();
    let (slots, positions) = (put_ids(&device, &[0]), put_ids(&device, &[2]));
    let places = Places {
        slots: &slots,
        positions: &positions,
    };
    assert!(
        RopeAppend(attention)
            .run(&device, &mut qkv, None, &table, places, &mut cache)
            .is_err()
    );
}
