//! Products of fragments and loads of matrices against plain loops and the tables of the PTX ISA, "Matrix Fragments for
//! mma.m16n8k16", "... mma.m16n8k32" and "ldmatrix".

use half::{bf16, f16};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::library::{Library, ORDERS, Shape, Vector, args};

const ROWS: usize = 16;
const COLUMNS: usize = 8;

/// For every lane and register the row and column of what it holds first; the rest follows in the same row of A and D,
/// in the same column of B.
fn place_in_a(lane: usize, register: usize, per_word: usize) -> (usize, usize) {
    let (g, t) = (lane / 4, lane % 4);
    let row = if register.is_multiple_of(2) { g } else { g + 8 };
    let column = if register < 2 {
        t * per_word
    } else {
        (t + 4) * per_word
    };
    (row, column)
}

fn place_in_b(lane: usize, register: usize, per_word: usize) -> (usize, usize) {
    ((lane % 4 + 4 * register) * per_word, lane / 4)
}

fn place_in_d(lane: usize, register: usize) -> (usize, usize) {
    let row = if register < 2 { lane / 4 } else { lane / 4 + 8 };
    (row, lane % 4 * 2 + register % 2)
}

/// Registers of all lanes from matrices of elements, each given by its bits.
fn fragments(a: &[u32], b: &[u32], bits: usize) -> (Vec<u32>, Vec<u32>) {
    let per_word = 32 / bits;
    let depth = 8 * per_word;
    let word =
        |element: &dyn Fn(usize) -> u32| (0..per_word).map(|i| element(i) << (bits * i)).sum();
    let mut of_a = Vec::new();
    let mut of_b = Vec::new();
    for lane in 0..32 {
        for register in 0..4 {
            let (row, column) = place_in_a(lane, register, per_word);
            of_a.push(word(&|i| a[row * depth + column + i]));
        }
        for register in 0..2 {
            let (row, column) = place_in_b(lane, register, per_word);
            of_b.push(word(&|i| b[(row + i) * COLUMNS + column]));
        }
    }
    (of_a, of_b)
}

/// Multiplies random matrices of `bits` bits an element in every order. `make` makes an element, `value` gives its value;
/// every element of the result must be within `tolerance` of the sum of magnitudes.
fn check_products(
    name: &str,
    make: impl Fn(&mut ChaCha8Rng) -> u16,
    value: impl Fn(u16) -> f64,
    tolerance: f64,
) {
    let matrices = Library::open("matrices");
    let depth = 16;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for order in ORDERS {
        let a: Vec<u16> = (0..ROWS * depth).map(|_| make(&mut random)).collect();
        let b: Vec<u16> = (0..depth * COLUMNS).map(|_| make(&mut random)).collect();
        let start: Vec<f32> = (0..ROWS * COLUMNS)
            .map(|_| random.random_range(-1.0..1.0))
            .collect();
        let words = |elements: &[u16]| elements.iter().map(|&x| u32::from(x)).collect::<Vec<_>>();
        let (a_words, b_words) = fragments(&words(&a), &words(&b), 16);
        let places: Vec<_> = (0..32 * 4).map(|i| place_in_d(i / 4, i % 4)).collect();
        let mut d: Vec<f32> = places
            .iter()
            .map(|(row, column)| start[row * COLUMNS + column])
            .collect();
        let shape = Shape {
            order,
            ..Shape::warp()
        };
        let args = args![&a_words[..], &b_words[..], &mut d[..]];
        matrices.launch(name, shape, args).unwrap();
        for ((row, column), got) in places.into_iter().zip(d) {
            let first = f64::from(start[row * COLUMNS + column]);
            let products =
                (0..depth).map(|k| value(a[row * depth + k]) * value(b[k * COLUMNS + column]));
            let (sum, size) = products.fold((first, first.abs()), |(sum, size), p| {
                (sum + p, size + p.abs())
            });
            let error = (f64::from(got) - sum).abs();
            assert!(
                error <= tolerance * size,
                "{name}: row {row}, column {column}: {got} instead of {sum}"
            );
        }
    }
}

const F32_UNIT: f64 = 1.0 / (1_u64 << 24) as f64;

#[test]
fn products_of_bf16_are_those_of_a_plain_loop() {
    let make = |random: &mut ChaCha8Rng| bf16::from_f32(random.random_range(-2.0..2.0)).to_bits();
    check_products(
        "multiply_bf16",
        make,
        |x| bf16::from_bits(x).to_f64(),
        F32_UNIT,
    );
}

#[test]
fn products_of_f16_are_those_of_a_plain_loop() {
    let make = |random: &mut ChaCha8Rng| f16::from_f32(random.random_range(-2.0..2.0)).to_bits();
    check_products(
        "multiply_f16",
        make,
        |x| f16::from_bits(x).to_f64(),
        F32_UNIT,
    );
    // Subnormal numbers are not flushed.
    let make = |random: &mut ChaCha8Rng| random.random_range(0..0x400_u16);
    check_products(
        "multiply_f16",
        make,
        |x| f16::from_bits(x).to_f64(),
        F32_UNIT,
    );
}

#[test]
fn products_of_bytes_are_exact() {
    let matrices = Library::open("matrices");
    let depth = 32;
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for order in ORDERS {
        let mut bytes = |count| {
            (0..count)
                .map(|_| random.next_u32() as u8 as i8)
                .collect::<Vec<i8>>()
        };
        let (mut a, mut b) = (bytes(ROWS * depth), bytes(depth * COLUMNS));
        a[..depth].fill(-128);
        (0..depth).for_each(|k| b[k * COLUMNS] = -128);
        let words = |elements: &[i8]| {
            elements
                .iter()
                .map(|&x| u32::from(x as u8))
                .collect::<Vec<_>>()
        };
        let (a_words, b_words) = fragments(&words(&a), &words(&b), 8);
        let mut d = vec![-7_i32; 32 * 4];
        let shape = Shape {
            order,
            ..Shape::warp()
        };
        let args = args![&a_words[..], &b_words[..], &mut d[..]];
        matrices.launch("multiply_s8", shape, args).unwrap();
        for (i, got) in d.into_iter().enumerate() {
            let (row, column) = place_in_d(i / 4, i % 4);
            let sum: i32 = (0..depth)
                .map(|k| i32::from(a[row * depth + k]) * i32::from(b[k * COLUMNS + column]))
                .sum();
            assert_eq!(got, sum - 7, "row {row}, column {column}");
        }
    }
}

#[test]
fn matrices_are_loaded_as_ldmatrix_does() {
    let matrices = Library::open("matrices");
    // Row r holds the numbers 8 r ..= 8 r + 7; lane l points to row 31 - l.
    let rows: Vec<Vector> = (0..32_u32)
        .map(|row| {
            Vector([0, 2, 4, 6].map(|column| (8 * row + column) | (8 * row + column + 1) << 16))
        })
        .collect();
    let row_of: Vec<u32> = (0..32).rev().collect();
    for order in ORDERS {
        let mut out = vec![0_u32; 32 * 4];
        let shape = Shape {
            order,
            ..Shape::warp()
        };
        let args = args![&rows[..], &row_of[..], &mut out[..]];
        matrices.launch("load", shape, args).unwrap();
        for (lane, registers) in out.chunks_exact(4).enumerate() {
            for (matrix, &got) in registers.iter().enumerate() {
                let row = row_of[matrix * 8 + lane / 4];
                let first = 8 * row + 2 * (lane as u32 % 4);
                assert_eq!(
                    got,
                    first | (first + 1) << 16,
                    "lane {lane}, matrix {matrix}"
                );
            }
        }
    }
}

#[test]
fn loads_from_the_wrong_place_are_reported() {
    let matrices = Library::open("matrices");
    let rows = [Vector([0; 4]); 32];
    let warp = Shape::warp();
    matrices.expect_fault(
        "load_misaligned",
        warp,
        args![],
        &["matrices.cu:", "not a multiple of 16"],
    );
    matrices.expect_fault(
        "load_from_global",
        warp,
        args![&rows[..]],
        &["not in the shared memory"],
    );
}

#[test]
fn a_product_of_half_a_warp_is_reported() {
    let mut d = [0.0_f32; 32];
    Library::open("matrices").expect_fault(
        "two_products",
        Shape::warp(),
        args![&mut d[..]],
        &[
            "thread 16, at",
            "mma_16x8x16<f16>",
            "while other lanes of the warp are at",
        ],
    );
}
