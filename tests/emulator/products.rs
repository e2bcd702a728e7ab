//! Products of a warpgroup against plain loops: they are there after the wait that covers them, and not before.

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::library::{Library, ORDERS, Shape, args};

const ROWS: usize = 64;
const TOKENS: usize = 64;
/// Bytes of a row in both instructions.
const BYTES: usize = 64;

/// Bytes in words, as kernels take them.
fn words(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|&word| u32::from_le_bytes(word)).collect()
}

/// Rows and tokens of small numbers, and their product with what d begins with.
struct Case {
    rows: Vec<u32>,
    tokens: Vec<u32>,
    start: Vec<f64>,
    product: Vec<f64>,
}

/// `encode` gives the bytes of a small whole number.
fn case(encode: impl Fn(i8) -> Vec<u8>, seed: u64) -> Case {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let depth = BYTES / encode(0).len();
    let mut numbers =
        |count: usize| -> Vec<i8> { (0..count).map(|_| random.random_range(-9..=9)).collect() };
    let (a, b) = (numbers(ROWS * depth), numbers(TOKENS * depth));
    let start: Vec<f64> = numbers(ROWS * TOKENS).into_iter().map(f64::from).collect();
    let product = (0..ROWS * TOKENS)
        .map(|i| {
            let (row, token) = (i / TOKENS, i % TOKENS);
            let terms =
                (0..depth).map(|k| f64::from(a[row * depth + k]) * f64::from(b[token * depth + k]));
            terms.sum()
        })
        .collect();
    let packed =
        |numbers: &[i8]| words(&numbers.iter().flat_map(|&x| encode(x)).collect::<Vec<_>>());
    Case {
        rows: packed(&a),
        tokens: packed(&b),
        start,
        product,
    }
}

/// Of how many orders the result was right.
fn right_floats(library: &Library, name: &str, encode: impl Fn(i8) -> Vec<u8>) -> usize {
    let case = case(encode, 3);
    let right = |order: &u64| {
        [0_u32, 1].iter().all(|&add| {
            let mut d: Vec<f32> = case.start.iter().map(|&x| x as f32).collect();
            let shape = Shape {
                shared: 4096,
                order: *order,
                ..Shape::block(128)
            };
            let args = args![&case.rows[..], &case.tokens[..], &mut d[..], add];
            let ran = library.launch(name, shape, args);
            let expected = case.product.iter().zip(&case.start);
            ran.is_ok()
                && d.iter()
                    .zip(expected)
                    .all(|(&d, (p, s))| f64::from(d) == p + f64::from(add) * s)
        })
    };
    ORDERS.iter().filter(|order| right(order)).count()
}

fn right_integers(library: &Library) -> usize {
    let case = case(|x| vec![x.cast_unsigned()], 4);
    let right = |order: &u64| {
        let mut d: Vec<i32> = case.start.iter().map(|&x| x as i32).collect();
        let shape = Shape {
            shared: 4096,
            order: *order,
            ..Shape::block(128)
        };
        let args = args![&case.rows[..], &case.tokens[..], &mut d[..], 1_u32];
        let ran = library.launch("product_s8", shape, args);
        let expected = case.product.iter().zip(&case.start);
        ran.is_ok()
            && d.iter()
                .zip(expected)
                .all(|(&d, (p, s))| f64::from(d) == p + s)
    };
    ORDERS.iter().filter(|order| right(order)).count()
}

fn of_bf16(x: i8) -> Vec<u8> {
    bf16::from_f32(f32::from(x)).to_le_bytes().to_vec()
}

fn of_f16(x: i8) -> Vec<u8> {
    f16::from_f32(f32::from(x)).to_le_bytes().to_vec()
}

#[test]
fn products_equal_plain_loops() {
    let library = Library::open("products");
    assert_eq!(
        right_floats(&library, "product_bf16", of_bf16),
        ORDERS.len()
    );
    assert_eq!(right_floats(&library, "product_f16", of_f16), ORDERS.len());
    assert_eq!(right_integers(&library), ORDERS.len());
}

#[test]
fn what_is_missing_or_too_early_is_noticed() {
    // No fence, no commit, no wait, a register and shared memory written before the wait.
    for missing in [
        "LEAVE_OUT=1",
        "LEAVE_OUT=2",
        "LEAVE_OUT=3",
        "LEAVE_OUT=4",
        "LEAVE_OUT=5",
    ] {
        let library = Library::with("products", &[missing]);
        assert_eq!(
            right_floats(&library, "product_bf16", of_bf16),
            0,
            "{missing}"
        );
        assert_eq!(right_integers(&library), 0, "{missing}");
    }
}
