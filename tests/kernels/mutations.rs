//! Proof that the tests of this crate can fail: kernels with one thing wrong each, and the test that has to notice.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candlepower::kernels::Device;
use candlepower::scheme::{CodeFormat, DType};

use super::build::{Mutation, mutated};
use super::{BESIDE, Form, attention, check_product, kernel_device, logits, matrix};

/// Fails unless `test` fails once `from` in the kernel `stem` is replaced by `to`, in every order of blocks and threads.
fn is_noticed(stem: &str, file: &'static str, [from, to]: [&'static str; 2], test: fn(&Device)) {
    let folder = mutated(&[stem], &[Mutation { file, from, to }]);
    for order in [0, 1, 77] {
        let device = kernel_device(&folder, order);
        let outcome = catch_unwind(AssertUnwindSafe(|| test(&device)));
        assert!(
            outcome.is_err(),
            "{file}: nothing notices `{to}` in the place of `{from}`, order {order}"
        );
    }
}

/// A product of many tokens, with more than one group in a row.
fn many(device: &Device) {
    let form = Form::Packed(CodeFormat::U4, 32, DType::F16);
    let matrix = matrix(device, form, [33, 96], 1);
    check_product(device, &matrix, 17, [DType::F32; 2], BESIDE[0], "mutated");
}

/// The same of one.
fn few(device: &Device) {
    let form = Form::Packed(CodeFormat::I8, 0, DType::F32);
    let matrix = matrix(device, form, [33, 96], 1);
    check_product(device, &matrix, 1, [DType::F32; 2], BESIDE[3], "mutated");
}

#[test]
fn a_step_left_out_is_noticed() {
    let change = ["first_k += DEPTH", "first_k += 2 * DEPTH"];
    is_noticed("linear", "linear.cu", change, many);
}

#[test]
fn a_barrier_left_out_is_noticed() {
    let change = [
        "__syncthreads(); // the tiles may still be read from the step before",
        "",
    ];
    is_noticed("linear", "linear.cu", change, many);
    is_noticed(
        "attention",
        "attention.cu",
        ["__syncthreads();", ""],
        |device| {
            attention::attend(device, [6, 2, 16], attention::TOKENS[2], DType::F32);
        },
    );
}

#[test]
fn the_scale_of_another_group_is_noticed() {
    let change = ["row * groups + col / group", "row * groups"];
    is_noticed("linear", "common/weight.cuh", change, many);
}

#[test]
fn a_feature_left_out_is_noticed() {
    let change = [
        "if (n >= features) return;",
        "if (n + 1 >= features) return;",
    ];
    is_noticed("linear", "linear.cu", change, few);
}

#[test]
fn the_last_of_two_equal_logits_is_noticed() {
    let change = ["index < other.index)", "index > other.index)"];
    is_noticed("sample", "sample.cu", change, logits::the_first_wins);
}
