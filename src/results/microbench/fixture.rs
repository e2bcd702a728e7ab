//! Synthetic cells for tests: two shapes and three variants over many tokens, by a simple model of a GPU.

use std::collections::BTreeMap;

use super::super::fixture::{Noise, environment};
use super::super::roofline::{Cost, Limits};
use super::document::Microbench;
use super::record::{Measured, Outcome, Peer, Record, Subject, Timing, Verification};

pub(in super::super) const READ_GB_PER_S: f64 = 4300.0;
const TFLOP_PER_S: f64 = 790.0;
const TOKENS: [usize; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// Name, bytes per weight, share of the matrix rate that it reaches.
const VARIANTS: [(&str, f64, f64); 3] = [
    ("bf16", 2.0, 0.92),
    ("int8", 1.0, 0.5),
    ("w4a16", 0.516, 0.55),
];

pub(in super::super) fn records() -> Vec<Record> {
    let mut records = Vec::new();
    for (role, n, k) in [("qkv", 6144, 4096), ("gate_up", 28672, 4096)] {
        for variant in VARIANTS {
            for tokens in TOKENS {
                records.push(record(role, [n, k], variant, tokens));
            }
        }
    }
    records[25].outcome = Outcome::Failed {
        reason: "not timed: element 17 of row 3 is 1.25 instead of 1.31".to_owned(),
    };
    records
}

fn record(
    role: &str,
    [n, k]: [usize; 2],
    (variant, bytes, share): (&str, f64, f64),
    tokens: usize,
) -> Record {
    let subject = Subject {
        op: "linear".to_owned(),
        sizes: BTreeMap::from([("n".to_owned(), n), ("k".to_owned(), k)]),
        tokens,
        variant: variant.to_owned(),
        activation_dtype: "bf16".to_owned(),
        device: "NVIDIA H200".to_owned(),
        threads: None,
        tool_version: "0.1.0".to_owned(),
    };
    let (m, n, k) = (tokens as f64, n as f64, k as f64);
    let cost = Cost {
        read_bytes: n * k * bytes + 2.0 * m * k,
        written_bytes: 2.0 * m * n,
        flops: 2.0 * m * n * k,
    };
    let floor = cost.bytes() / (0.95 * READ_GB_PER_S * 1e9) + 1.5e-6;
    let arithmetic = cost.flops / (share * TFLOP_PER_S * 1e12) + 2e-6;
    let own = (1.08 * floor).max(arithmetic);
    let timing = |seconds: f64, seed: u64| timing(seconds, seed + tokens as u64, cost.bytes());
    let peer = if variant == "bf16" {
        let theirs = (1.15 * floor).max(cost.flops / (0.93 * TFLOP_PER_S * 1e12) + 2e-6);
        Peer::Measured {
            name: "cuBLASLt bf16".to_owned(),
            timing: timing(theirs, 3),
        }
    } else {
        Peer::Unavailable {
            reason: format!("cuBLASLt has no product of {variant} weights"),
        }
    };
    let measured = Measured {
        plan: format!("stripes of 64 rows, {} stages", 4),
        cpu_reference: false,
        timer: "events over graph replays".to_owned(),
        cost,
        limits: Limits {
            read_gb_per_s: Some(READ_GB_PER_S),
            product: Some("bf16".to_owned()),
            product_tflop_per_s: Some(TFLOP_PER_S),
        },
        verification: Verification {
            elements: 4096,
            worst: 0.31,
            whole: 0.0011,
        },
        cold: timing(own, 1),
        warm: timing(0.7 * own, 2),
        read_floor: timing(floor, 4),
        peer,
        cache_bytes: Some(50 << 20),
    };
    let result = Box::new(measured);
    Record::new(
        subject,
        vec![format!("llama-3.1-8b {role}")],
        Outcome::Ok { result },
    )
}

fn timing(seconds: f64, seed: u64, bytes: f64) -> Timing {
    let mut noise = Noise::new(seed);
    Timing {
        samples_s: (0..40)
            .map(|_| seconds * (1.0 + 0.01 * noise.next()))
            .collect(),
        calls: 24,
        copies: 8,
        rotated_bytes: (8.0 * bytes) as u64,
        warmup_samples: 2,
        stop_reason: "enough".to_owned(),
    }
}

pub(in super::super) fn document_of(records: &[Record]) -> Microbench {
    let command = ["candlepower", "kernels", "--model", "llama-3.1-8b"];
    Microbench::from_records(environment(), command.map(str::to_owned).to_vec(), records)
}

pub(in super::super) fn document() -> Microbench {
    document_of(&records())
}
