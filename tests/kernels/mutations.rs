//! Proof that the tests of this crate can fail: kernels with one thing wrong each, and the test that has to notice. It
//! first passes with the same kernels unchanged, compiled alike, so that it is the change that it fails of.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candlepower::kernels::Device;
use candlepower::kernels::attention::Queries;
use candlepower::scheme::{CodeFormat, DType, KvFormat};

use super::build::{Mutation, mutated};
use super::{
    BESIDE, Form, append, attention, check_product, fused, kernel_device, logits, matrix, streamed,
};

/// Of blocks and threads.
const ORDERS: [u64; 3] = [0, 1, 77];

/// A test and the kernels that it runs on.
struct Check<'a> {
    /// Their sources.
    stems: &'a [&'a str],
    /// What leaves kernels out that the test does not need, for less to compile.
    only: &'a [Mutation],
    test: fn(&Device),
}

impl Check<'_> {
    /// Fails unless the test passes as things are, and fails once `from` is replaced by `to`, in every order.
    fn notices(&self, file: &'static str, [from, to]: [&'static str; 2]) {
        self.passes(&self.compiled(Mutation {
            file,
            from,
            to: from,
        }));
        let changed = self.compiled(Mutation { file, from, to });
        for order in ORDERS {
            let device = kernel_device(&changed, order);
            let outcome = catch_unwind(AssertUnwindSafe(|| (self.test)(&device)));
            assert!(
                outcome.is_err(),
                "{file}: nothing notices `{to}` in the place of `{from}`, order {order}"
            );
        }
    }

    fn compiled(&self, change: Mutation) -> PathBuf {
        let mutations: Vec<Mutation> = self.only.iter().copied().chain([change]).collect();
        mutated(self.stems, &mutations)
    }

    /// Runs the test with unchanged kernels, which the folder's name tells from all others: once for all that may be
    /// changed in them.
    fn passes(&self, whole: &Path) {
        static PASSED: Mutex<BTreeSet<(PathBuf, usize)>> = Mutex::new(BTreeSet::new());
        let passed = || PASSED.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (whole.to_owned(), self.test as usize);
        if passed().contains(&key) {
            return;
        }
        for order in ORDERS {
            (self.test)(&kernel_device(whole, order));
        }
        passed().insert(key);
    }
}

/// As [`Check::notices`], of a test that takes all kernels of one source.
fn is_noticed(stem: &str, file: &'static str, change: [&'static str; 2], test: fn(&Device)) {
    let check = Check {
        stems: &[stem],
        only: &[],
        test,
    };
    check.notices(file, change);
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
    is_noticed("linear_any", "linear_any.cu", change, many);
}

#[test]
fn a_barrier_left_out_is_noticed() {
    let change = [
        "__syncthreads(); // the tiles may still be read from the step before",
        "",
    ];
    is_noticed("linear_any", "linear_any.cu", change, many);
    is_noticed(
        "attention",
        "attention.cu",
        ["__syncthreads();", ""],
        |device| {
            let tokens = attention::TOKENS[2];
            let (act, kv) = (DType::F32, KvFormat::Auto);
            attention::attend(device, [6, 2, 16], tokens, act, Queries::Runs, kv);
        },
    );
}

#[test]
fn the_scale_of_another_group_is_noticed() {
    let change = ["column / args.group;", "0;"];
    is_noticed("linear_any", "common/weight.cuh", change, many);
}

#[test]
fn a_feature_left_out_is_noticed() {
    let change = [
        "if (n >= features) return;",
        "if (n + 1 >= features) return;",
    ];
    is_noticed("linear_any", "linear_any.cu", change, few);
}

/// As [`Check::notices`], of a streaming product, for one storage alone.
fn is_noticed_streaming(file: &'static str, change: [&'static str; 2]) {
    let only = |file| Mutation {
        file,
        from: "#include \"common/storages.cuh\"",
        to: "using int4_bf16 = NibbleTiles<bf16, bf16, false>;\nPACKED(int4_bf16)",
    };
    let check = Check {
        stems: &[
            "linear_few",
            "linear_tile",
            "linear_wgmma",
            "dequantize",
            "repack",
        ],
        only: &[
            only("linear_few.cu"),
            only("linear_tile.cu"),
            only("linear_wgmma.cu"),
            only("dequantize.cu"),
        ],
        test: streamed::int4_in_parts,
    };
    check.notices(file, change);
}

#[test]
fn a_tile_left_out_is_noticed() {
    let change = ["at.item + blocks", "at.item + 2 * blocks"];
    is_noticed_streaming("common/few.cuh", change);
    let change = ["if (r < here) source.copy", "if (r + 1 < here) source.copy"];
    is_noticed_streaming("common/block_of_tiles.cuh", change);
}

#[test]
fn a_wait_of_the_pipeline_left_out_is_noticed() {
    let change = ["copies_wait<DEPTH - 2>();", "copies_wait<DEPTH - 1>();"];
    is_noticed_streaming("common/few.cuh", change);
    is_noticed_streaming("linear_tile.cu", change);
    is_noticed_streaming("linear_wgmma.cu", change);
    let change = [
        "__syncthreads(); // all copies of this stage have arrived",
        "// all copies of this stage have arrived",
    ];
    is_noticed_streaming("linear_tile.cu", change);
}

#[test]
fn the_scale_of_another_tile_or_group_is_noticed() {
    let change = [
        "(static_cast<size_t>(tile + r) * w.groups + group)",
        "(static_cast<size_t>(tile) * w.groups + group)",
    ];
    is_noticed_streaming("common/stream.cuh", change);
    let change = ["return (step * STEP) >> group_log;", "return 0;"];
    is_noticed_streaming("common/stream.cuh", change);
}

#[test]
fn a_part_of_a_sum_left_out_is_noticed() {
    let change = ["s < args.splits; s++", "s + 1 < args.splits; s++"];
    is_noticed_streaming("common/few.cuh", change);
    is_noticed_streaming("common/block_of_tiles.cuh", change);
}

#[test]
fn products_that_run_beside_the_program_are_waited_for() {
    for change in [
        ["warpgroup_wait<0>();", ""],
        ["warpgroup_fence();", ""],
        [
            "__syncthreads(); // the next step has arrived, this one is arranged",
            "// the next step has arrived, this one is arranged",
        ],
        // A group's sum that goes on into the next group.
        [
            "multiply<0, 3>(b, now, part, !at.begins)",
            "multiply<0, 3>(b, now, part, true)",
        ],
        // Half of a step's columns.
        ["multiply<0, 3>(b", "multiply<0, 2>(b"],
        // Of groups of warps in turns: tokens that are arranged of another step than the other group multiplies, half of them
        // not yet, and copies that have not arrived.
        [
            "second != 0 ? next(at.stage) : at.stage, (ODD + second) % 2",
            "at.stage, (ODD + second) % 2",
        ],
        [
            "__syncthreads(); // the step is arranged, and",
            "// the step is arranged, and",
        ],
        [
            "IN_TURNS_PENDING = DEPTH - 3",
            "IN_TURNS_PENDING = DEPTH - 2",
        ],
    ] {
        is_noticed_streaming("linear_wgmma.cu", change);
    }
}

#[test]
fn the_last_of_two_equal_logits_is_noticed() {
    let change = ["index < other.index)", "index > other.index)"];
    is_noticed("sample", "common/best.cuh", change, logits::the_first_wins);
}

#[test]
fn what_shares_a_launch_with_a_product_is_noticed() {
    let only = Mutation {
        file: "linear_fused.cu",
        from: "#include \"common/storages.cuh\"",
        to: "using int4_bf16 = NibbleTiles<bf16, bf16, false>;\nPACKED(int4_bf16)",
    };
    let check = Check {
        stems: &["linear_fused", "repack"],
        only: &[only],
        test: fused::int4_by_the_cpu,
    };
    for change in [
        // A chunk left out of the norm, the gate's own rows in the place of the other's, the best of one block.
        [
            "read(to, values);\n                squares = add_squares(squares, values);",
            "read(to, values);\n                if (first > 0) squares = add_squares(squares, values);",
        ],
        ["scaled(token, row)));", "scaled(token, row % 8)));"],
        ["block < blocks; block += WARP", "block < 1; block += WARP"],
    ] {
        check.notices("common/fused.cuh", change);
    }
}

/// Attention of one token whose keys come in parts, and of prompts side by side.
fn single(device: &Device) {
    single_of(device, KvFormat::Auto);
}

fn coded_single(device: &Device) {
    single_of(device, KvFormat::Int8);
}

fn single_of(device: &Device, kv: KvFormat) {
    let (act, queries) = (DType::BF16, Queries::Single);
    // Three parts of the keys of each head, by two blocks.
    attention::attend(device, [8, 4, 64], &[(1, 299)], act, queries, kv);
}

fn runs(device: &Device) {
    runs_of(device, KvFormat::Auto);
}

/// Those that warpgroups' instructions do not take.
fn coded_runs(device: &Device) {
    runs_of(device, KvFormat::Int8);
}

fn runs_of(device: &Device, kv: KvFormat) {
    let places: Vec<(u32, u32)> = (100..140)
        .map(|p| (0, p))
        .chain((0..9).map(|p| (2, p)))
        .collect();
    let (act, queries) = (DType::BF16, Queries::Runs);
    attention::attend(device, [4, 1, 64], &places, act, queries, kv);
}

const ALL_HEADS: &str = "DEFINE(f16, 64)\nDEFINE(f16, 96)\nDEFINE(f16, 128)\nDEFINE(bf16, 64)\nDEFINE(bf16, 96)\nDEFINE(bf16, 128)";

/// As [`is_noticed`], of attention by matrix instructions: compiled for one type and head size alone, which is quicker.
fn is_noticed_attending(
    stem: &str,
    file: &'static str,
    change: [&'static str; 2],
    test: fn(&Device),
) {
    let (source, all) = match stem {
        "attention_wgmma" => (
            "attention_wgmma.cu",
            "DEFINE(f16, 64)\nDEFINE(f16, 128)\nDEFINE(bf16, 64)\nDEFINE(bf16, 128)",
        ),
        "attention_single" => ("attention_single.cu", ALL_HEADS),
        _ => ("attention_runs.cu", ALL_HEADS),
    };
    let only = Mutation {
        file: source,
        from: all,
        to: "DEFINE(bf16, 64)",
    };
    let check = Check {
        stems: &[stem],
        only: &[only],
        test,
    };
    check.notices(file, change);
}

#[test]
fn a_part_a_wait_a_mask_of_attention_are_noticed() {
    let stem = "attention_single";
    for change in [
        [
            "for (unsigned part = 1; part < parts; part++) {",
            "for (unsigned part = 1; part + 1 < parts; part++) {",
        ],
        ["copies_wait<DEPTH - 2>();", "copies_wait<DEPTH - 1>();"],
        [
            "const unsigned keys = position + 1;",
            "const unsigned keys = position / 2 + 1;",
        ],
        ["__syncthreads(); // all rows are there", ""],
        ["rows.clear();", "if (part == first_part) rows.clear();"],
    ] {
        is_noticed_attending(stem, "common/single.cuh", change, single);
    }
    for (file, change) in [
        (
            "common/flash.cuh",
            ["scale * scales[key] : scale", "scale : scale"],
        ),
        (
            "common/flash.cuh",
            [
                "scales[KEYS + block * 8 + 2 * t() + i]",
                "scales[KEYS + block * 8 + 2 * t()]",
            ],
        ),
        (
            "common/codes.cuh",
            ["odd = pair(codes >> 8);", "odd = pair(codes);"],
        ),
    ] {
        is_noticed_attending(stem, file, change, coded_single);
    }
    for (file, change) in [
        (
            "common/single.cuh",
            ["put_own(stage, position - key,", "put_own(stage, 0 * key,"],
        ),
        (
            "common/single.cuh",
            [
                "__syncthreads(); // the queries are there, and what",
                "// what",
            ],
        ),
        (
            "common/heads.cuh",
            [
                "to[i + half] = from_f32<T>(__fadd_rn(",
                "to[i + half] = from_f32<T>(__fsub_rn(",
            ],
        ),
    ] {
        is_noticed_attending(stem, file, change, append::appended);
    }
    let stem = "attention_runs";
    for change in [
        ["copies_wait<1>();", "copies_wait<2>();"],
        [
            "limits[r] = args.positions[token] + 1;",
            "limits[r] = args.positions[token] + 2;",
        ],
        [
            "__syncthreads(); // everybody's copies of these keys have arrived",
            "",
        ],
    ] {
        is_noticed_attending(stem, "attention_runs.cu", change, coded_runs);
    }
    let slots = ["slot_of[token] == slot", "true"];
    is_noticed_attending(stem, "common/attention.cuh", slots, coded_runs);
    let change = [
        "values[block][i] *= shrink[i / 2];",
        "values[block][i] *= 1.0f;",
    ];
    is_noticed_attending("attention_runs", "common/flash.cuh", change, coded_runs);
}

#[test]
fn a_wait_a_place_a_mask_of_attention_by_warpgroups_are_noticed() {
    let stem = "attention_wgmma";
    for change in [
        ["copies_wait<DEPTH - 3>();", "copies_wait<DEPTH - 2>();"],
        ["warpgroup_wait<1>();", "warpgroup_wait<2>();"],
        [
            "__syncthreads(); // the next keys have arrived, and all are done with the values before these",
            "",
        ],
        [
            "limits[r] = args.positions[token] + 1;",
            "limits[r] = args.positions[token] + 2;",
        ],
        ["values.plus(2 * step * CORE)", "values.plus(step * CORE)"],
        [
            "state.values[i] *= shrink[i / 2 % 2];",
            "state.values[i] *= 1.0f;",
        ],
    ] {
        is_noticed_attending(stem, "attention_wgmma.cu", change, runs);
    }
    let slots = ["slot_of[token] == slot", "true"];
    is_noticed_attending(stem, "common/attention.cuh", slots, runs);
}
