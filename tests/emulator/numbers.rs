//! Numbers of 16 bits: conversions against the `half` crate, arithmetic against f64, which holds what it is tried on.

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::library::{Library, Shape, args};

fn shape(count: usize) -> Shape {
    Shape {
        blocks: count.div_ceil(256) as u32,
        ..Shape::block(256)
    }
}

/// All bit patterns of 16 bits widened by `kernel`, against `truth`.
fn check_widening(kernel: &str, truth: fn(u16) -> f32) {
    let input: Vec<u16> = (0..=u16::MAX).collect();
    let mut out = vec![0.0_f32; input.len()];
    let args = args![&input[..], &mut out[..], input.len() as u32];
    Library::open("numbers")
        .launch(kernel, shape(input.len()), args)
        .unwrap();
    for (bits, got) in input.into_iter().zip(out) {
        let expected = truth(bits);
        assert!(
            got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
            "{kernel} of {bits:04x}: {got} instead of {expected}"
        );
    }
}

/// Every number of 16 bits, what lies half-way between neighbours, what lies next to both, and random bits, narrowed by
/// `kernel`, against `truth`. NaN must become the one NaN of a GPU.
fn check_narrowing(kernel: &str, widen: fn(u16) -> f32, truth: fn(f32) -> u16) {
    let mut input = Vec::new();
    for bits in 0..=u16::MAX {
        let here = widen(bits);
        let next = widen(bits.wrapping_add(1));
        let half_way = ((f64::from(here) + f64::from(next)) / 2.0) as f32;
        for x in [here, half_way] {
            input.extend([x, x.next_up(), x.next_down()]);
        }
    }
    let mut random = ChaCha8Rng::seed_from_u64(3);
    input.extend((0..1 << 20).map(|_| f32::from_bits(random.random())));
    input.extend([
        65519.996,
        65520.0,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-45,
        -0.0,
    ]);
    let mut out = vec![0_u16; input.len()];
    let args = args![&input[..], &mut out[..], input.len() as u32];
    Library::open("numbers")
        .launch(kernel, shape(input.len()), args)
        .unwrap();
    for (x, got) in input.into_iter().zip(out) {
        let expected = if x.is_nan() { 0x7fff } else { truth(x) };
        assert_eq!(
            got, expected,
            "{kernel} of {x:e}: {got:04x} instead of {expected:04x}"
        );
    }
}

#[test]
fn every_f16_and_bf16_is_widened_exactly() {
    check_widening("widen_f16", |bits| f16::from_bits(bits).to_f32());
    check_widening("widen_bf16", |bits| bf16::from_bits(bits).to_f32());
}

#[test]
fn f32_is_rounded_to_f16_half_to_even() {
    check_narrowing(
        "narrow_f16",
        |bits| f16::from_bits(bits).to_f32(),
        |x| f16::from_f32(x).to_bits(),
    );
}

#[test]
fn f32_is_rounded_to_bf16_half_to_even() {
    check_narrowing(
        "narrow_bf16",
        |bits| bf16::from_bits(bits).to_f32(),
        |x| bf16::from_f32(x).to_bits(),
    );
}

/// Fails unless no neighbour of the number with these bits is nearer to `exact`, nor as near and even.
fn assert_nearest(bits: u16, value: fn(u16) -> f64, exact: f64, what: &str) {
    let neighbours = match bits & 0x7fff {
        0 => [0x0001, 0x8001],
        _ => [bits - 1, bits + 1],
    };
    let distance = |bits| (value(bits) - exact).abs();
    for other in neighbours {
        let nearer = distance(bits) < distance(other);
        let even = distance(bits) == distance(other) && bits.is_multiple_of(2);
        let (got, other) = (value(bits), value(other));
        assert!(
            nearer || even,
            "{what}: {exact:e} became {got:e}, not {other:e}"
        );
    }
}

/// Random pairs of 16-bit numbers of moderate size through `kernel`: a - b and a b + c, whose exact results f64 holds.
fn check_pairs(kernel: &str, make: fn(f32) -> u16, value: fn(u16) -> f64) {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let count = 1 << 16;
    let mut numbers = || -> Vec<u32> {
        let mut half = || {
            let size: i32 = random.random_range(-6..6);
            u32::from(make(
                random.random_range(-1.0_f32..1.0) * 2.0_f32.powi(size),
            ))
        };
        (0..count).map(|_| half() | half() << 16).collect()
    };
    let (a, b, c) = (numbers(), numbers(), numbers());
    let mut out = vec![0_u32; 2 * count];
    let args = args![&a[..], &b[..], &c[..], &mut out[..], count as u32];
    Library::open("numbers")
        .launch(kernel, shape(count), args)
        .unwrap();
    for i in 0..count {
        for half in [0, 16] {
            let [a, b, c] = [a[i], b[i], c[i]].map(|pair| value((pair >> half) as u16));
            let [difference, sum] = [out[2 * i], out[2 * i + 1]].map(|pair| (pair >> half) as u16);
            let what = format!("{kernel} of {a:e}, {b:e}, {c:e}");
            assert_nearest(difference, value, a - b, &what);
            assert_nearest(sum, value, a * b + c, &what);
        }
    }
}

#[test]
fn arithmetic_of_pairs_rounds_once() {
    check_pairs(
        "pairs_f16",
        |x| f16::from_f32(x).to_bits(),
        |x| f16::from_bits(x).to_f64(),
    );
    check_pairs(
        "pairs_bf16",
        |x| bf16::from_f32(x).to_bits(),
        |x| bf16::from_bits(x).to_f64(),
    );
}

/// A product half-way between two numbers, and a third number too small for f64 to hold the sum: it decides all the same.
#[test]
fn what_f64_cannot_hold_decides_a_tie() {
    let bf = |x: f32| u32::from(bf16::from_f32(x).to_bits());
    // 1.0078125 * 1.5 = 1.51171875, half-way between 1.5078125 and 1.515625.
    let (a, b) = (bf(1.007_812_5), bf(1.5));
    let tiny = bf(2.0_f32.powi(-100));
    let minus_tiny = bf(-(2.0_f32.powi(-100)));
    let args_of = |c: u32| ([a], [b], [c]);
    let numbers = Library::open("numbers");
    for (c, expected) in [(minus_tiny, 1.507_812_5), (0, 1.515_625), (tiny, 1.515_625)] {
        let (a, b, c) = args_of(c);
        let mut out = [0_u32; 2];
        let args = args![&a[..], &b[..], &c[..], &mut out[..], 1];
        numbers.launch("pairs_bf16", shape(1), args).unwrap();
        assert_eq!(bf16::from_bits(out[1] as u16).to_f32(), expected);
    }
}

#[test]
fn pieces_of_registers_are_those_of_the_instructions() {
    let mut out = [0_u32; 13];
    let numbers = Library::open("numbers");
    numbers
        .launch("pieces", Shape::block(1), args![&mut out[..]])
        .unwrap();
    let dot = -128 * -128 + -1 + 2 * 127 + 127 * -127 - 5;
    let expected = [
        0x6434_6478,
        0x7722_5500,
        0xff00_ffff,
        0x3e00_3e00,
        0xc000_c000,
        dot as u32,
        0x0044_2266,
        0x0002_0004,
        0x7fff_ffff,
        0x8000_0000,
        0,
        32 << 16 | 31 << 8 | 8,
        0.5_f32.to_bits(),
    ];
    assert_eq!(out, expected);
}
