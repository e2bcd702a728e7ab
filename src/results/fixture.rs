//! Synthetic records for tests: plausible figures from a fixed generator, one of everything that can happen.

use std::collections::BTreeMap;

use super::environment::{Ceilings, Cpu, Device, Environment};

use super::record::{
    Amount, Body, Cell, Check, Divergence, Energy, EnergyUse, Failure, Load, Loaded, Memory, Model,
    Perplexity, QualityTask, Record, Scheme, Segment, Speed, Subject, Text, Trial, Verification,
};
use super::study::Study;
use crate::units::{Bytes, Joules, Seconds, Watts};

/// Deterministic noise in −1..1 (SplitMix64).
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// A variant as the fixture imagines it, relative to bf16.
#[derive(Debug, Clone)]
pub(super) struct Imagined {
    pub(super) model: &'static str,
    pub(super) tokenizer: &'static str,
    pub(super) name: &'static str,
    pub(super) scheme: Scheme,
    /// Added to the mean loss, in nats.
    pub(super) loss: f64,
    /// Decode speed against the base.
    pub(super) faster: f64,
    pub(super) weight_bytes: u64,
}

pub(super) fn scheme(bits: usize, group: Option<usize>, method: &str, activations: &str) -> Scheme {
    Scheme {
        bits,
        group_size: group,
        symmetric: (bits < 16).then_some(true),
        activations: activations.to_owned(),
        method: method.to_owned(),
        scale_dtype: (bits < 16).then(|| "f16".to_owned()),
    }
}

pub(super) fn imagined(
    name: &'static str,
    scheme: Scheme,
    loss: f64,
    faster: f64,
    weight_bytes: u64,
) -> Imagined {
    Imagined {
        model: "Qwen/Qwen3-0.6B",
        tokenizer: "blake3:t0",
        name,
        scheme,
        loss,
        faster,
        weight_bytes,
    }
}

/// The variants of the usual study.
pub(super) fn usual() -> Vec<Imagined> {
    vec![
        imagined(
            "bf16",
            scheme(16, None, "none", "float"),
            0.0,
            1.0,
            1_192_099_840,
        ),
        imagined(
            "int8",
            scheme(8, None, "rtn", "float"),
            0.0011,
            1.42,
            752_418_304,
        ),
        imagined(
            "w8a8",
            scheme(8, None, "rtn", "int8-per-token"),
            0.0105,
            1.36,
            752_418_304,
        ),
        imagined(
            "w4a16",
            scheme(4, Some(128), "rtn", "float"),
            0.093,
            1.83,
            537_001_984,
        ),
        imagined(
            "w4a16:g64",
            scheme(4, Some(64), "rtn", "float"),
            0.061,
            1.77,
            550_109_184,
        ),
    ]
}

pub(super) fn subject_of(variant: &Imagined) -> Subject {
    Subject {
        model: Model {
            name: variant.model.to_owned(),
            revision: Some("c1899de289a04d12100db370d81485cdf75e47ca".to_owned()),
            digest: format!("blake3:{}", variant.model.len()),
            tokenizer_digest: variant.tokenizer.to_owned(),
            parameters: Some(596_049_920),
        },
        variant: variant.name.to_owned(),
        scheme: variant.scheme.clone(),
        activation_dtype: "bf16".to_owned(),
        engine: "candlepower".to_owned(),
        device: "NVIDIA H100 80GB HBM3".to_owned(),
        tool_version: "0.1.0".to_owned(),
    }
}

pub(super) fn subject(model: &'static str, variant: &'static str) -> Subject {
    subject_of(&Imagined {
        model,
        ..imagined(
            variant,
            scheme(16, None, "none", "float"),
            0.0,
            1.0,
            1 << 20,
        )
    })
}

pub(super) fn cell(batch: usize) -> Cell {
    Cell {
        batch,
        prompt: 512,
        generate: 128,
        depth: 0,
    }
}

pub(super) fn loaded(variant: &Imagined) -> Loaded {
    let group = variant
        .scheme
        .group_size
        .map_or("row".to_owned(), |g| g.to_string());
    let quantised = variant.scheme.bits < 16;
    Loaded {
        weight_bytes: Bytes(variant.weight_bytes),
        linear_bytes: Bytes(variant.weight_bytes.saturating_sub(311_164_928)),
        groups_used: quantised
            .then_some((group, 196))
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        load: Load {
            time: Seconds(if quantised { 6.41 } else { 1.27 }),
            read: Bytes(1_503_300_328),
            peak_host: Some(Bytes(1_711_276_032)),
        },
        verification: Verification {
            checks: vec![
                Check {
                    name: "logits are finite".to_owned(),
                    passed: true,
                    detail: "151936 × 32 positions".to_owned(),
                },
                Check {
                    name: "logits agree with the reference".to_owned(),
                    passed: true,
                    detail: "relative error 0.0021 ≤ 0.02".to_owned(),
                },
            ],
        },
    }
}

pub(super) fn quality_task() -> QualityTask {
    QualityTask {
        protocol: "gptq".to_owned(),
        context: 2048,
        text: Text {
            name: "wikitext-2-raw-v1/test".to_owned(),
            digest: "blake3:5f2d6e0c1b7a4d3e".to_owned(),
        },
    }
}

pub(super) fn perplexity(variant: &Imagined) -> Perplexity {
    let mut text = Noise::new(7);
    let mut own = Noise::new(variant.name.len() as u64 * 31 + variant.scheme.bits as u64);
    let segments = (0..146)
        .map(|_| {
            let base = 3.04 + 0.22 * text.next();
            let loss = variant.loss * (1.0 + 0.35 * own.next());
            Segment {
                nll: (base + loss) * 2047.0,
                tokens: 2047,
            }
        })
        .collect();
    Perplexity {
        segments,
        tokens_total: 299_078,
        bytes_scored: Some(1_290_590),
        divergence: (variant.loss > 0.0).then(|| Divergence {
            mean_kl: variant.loss * 1.1,
            stderr: Some(variant.loss * 0.01),
            top1_agreement: 1.0 - variant.loss.min(0.9),
            tokens: 298_862,
        }),
    }
}

pub(super) fn speed(variant: &Imagined, cell: Cell) -> Speed {
    let mut noise = Noise::new((cell.batch * 97 + variant.name.len()) as u64);
    let batch = cell.batch as f64;
    let step = (0.9e-3 / variant.faster) * (1.0 + batch / 48.0) + 0.25e-3;
    let prefill = 2.6e-6 * (batch * cell.prompt as f64) / variant.faster.powf(0.2) + 1.4e-3;
    let trials: Vec<Trial> = (0..12)
        .map(|_| {
            let drift = 1.0 + 0.01 * noise.next();
            let itl: Vec<Seconds> = (1..cell.generate)
                .map(|i| {
                    let spike = if noise.next() > 0.985 { 1.3 } else { 1.0 };
                    let length = 1.0 + 4e-4 * i as f64;
                    Seconds(step * drift * length * spike * (1.0 + 0.015 * noise.next()))
                })
                .collect();
            let decode: Seconds = itl.iter().copied().sum();
            let prefill = Seconds(prefill * drift * (1.0 + 0.02 * noise.next()));
            let ttft = prefill + Seconds(0.12e-3);
            Trial {
                ttft,
                prefill,
                decode,
                e2e: ttft + decode,
                itl,
            }
        })
        .collect();
    let memory = memory(variant, cell);
    let energy = energy(&trials, cell);
    Speed {
        trials,
        warmup_trials: 3,
        stop_reason: Some("time".to_owned()),
        memory,
        energy,
    }
}

fn memory(variant: &Imagined, cell: Cell) -> Memory {
    let kv = (cell.batch * (cell.depth + cell.prompt + cell.generate)) as u64 * 28 * 2 * 1024 * 2;
    let amount = |predicted: u64, measured: u64| Amount {
        predicted: Some(Bytes(predicted)),
        measured: Some(Bytes(measured)),
    };
    let scratch = 64 << 20;
    let all = variant.weight_bytes + kv + scratch;
    Memory {
        weights: amount(variant.weight_bytes, variant.weight_bytes),
        kv: amount(kv, kv),
        activations: amount(scratch, scratch + (3 << 20)),
        total: amount(all, all + (512 << 20)),
    }
}

fn energy(trials: &[Trial], cell: Cell) -> Energy {
    let decode_time: Seconds = trials.iter().map(|t| t.decode).sum();
    let prefill_time: Seconds = trials.iter().map(|t| t.prefill).sum();
    let rows = (cell.batch * trials.len()) as u64;
    Energy::Measured(EnergyUse {
        prefill: Joules(prefill_time.0 * 505.0),
        decode: Joules(decode_time.0 * 318.0),
        prefill_time,
        decode_time,
        prompt_tokens: rows * cell.prompt as u64,
        generated_tokens: rows * (cell.generate as u64 - 1),
        mean_power: Some(Watts(327.0)),
        idle_power: Some(Watts(118.0)),
        sm_clock_mhz: Some(1965.0),
        memory_clock_mhz: Some(2619.0),
        temperature_c: Some(47.0),
        throttle_reasons: vec![],
    })
}

/// Every record of these variants over these batch sizes.
pub(super) fn records_of(variants: &[Imagined], batches: &[usize]) -> Vec<Record> {
    let mut records = Vec::new();
    for variant in variants {
        let subject = subject_of(variant);
        let loaded = Some(loaded(variant));
        let quality = Body::Quality {
            task: quality_task(),
            outcome: Ok(perplexity(variant)),
        };
        records.push(Record::new(subject.clone(), loaded.clone(), quality));
        for &batch in batches {
            let cell = cell(batch);
            let body = Body::Speed {
                cell,
                outcome: Ok(speed(variant, cell)),
            };
            records.push(Record::new(subject.clone(), loaded.clone(), body));
        }
    }
    records
}

/// A variant that never loaded.
pub(super) fn failed(variant: &Imagined, batches: &[usize], reason: &str) -> Vec<Record> {
    let failure = Failure {
        reason: reason.to_owned(),
    };
    let quality = Body::Quality {
        task: quality_task(),
        outcome: Err(failure.clone()),
    };
    let cells = batches.iter().map(|&batch| Body::Speed {
        cell: cell(batch),
        outcome: Err(failure.clone()),
    });
    std::iter::once(quality)
        .chain(cells)
        .map(|body| Record::new(subject_of(variant), None, body))
        .collect()
}

/// A small set with one of everything.
pub(super) fn records() -> Vec<Record> {
    let variants = usual();
    let mut records = records_of(&variants[..2], &[1]);
    records.extend(failed(
        &variants[2],
        &[1],
        "out of memory: 3.1 GiB asked for, 1.2 GiB free",
    ));
    let mut without_energy = speed(&variants[1], cell(4));
    without_energy.energy = Energy::Unavailable {
        reason: "no NVML on this machine".to_owned(),
    };
    let body = Body::Speed {
        cell: cell(4),
        outcome: Ok(without_energy),
    };
    records.push(Record::new(subject_of(&variants[1]), None, body));
    records
}

pub(super) fn environment() -> Environment {
    Environment {
        tool_version: "0.1.0".to_owned(),
        git_commit: Some("3f1c0a9d5be24f7f8b6f0c2f8f1f4b7f0e4a9c11".to_owned()),
        features: vec!["cuda".to_owned(), "hub".to_owned()],
        device: Device {
            name: Some("NVIDIA H100 80GB HBM3".to_owned()),
            kind: Some("cuda".to_owned()),
            memory_bytes: Some(85_520_809_984),
            driver: Some("580.95.05".to_owned()),
            cuda: Some("13.0".to_owned()),
            compute_capability: Some("9.0".to_owned()),
            multiprocessors: Some(132),
            power_limit_watts: Some(700.0),
        },
        cpu: Cpu {
            model: Some("Intel Xeon Platinum 8480+".to_owned()),
            cores: Some(16),
            memory_bytes: Some(128 << 30),
        },
        os: Some("Linux 6.8.0".to_owned()),
        started: Some("2026-11-20T09:14:07Z".to_owned()),
        threads: Some(16),
        ceilings: Some(Ceilings {
            read_gb_per_s: Some(2950.0),
            copy_gb_per_s: Some(2710.0),
            matmul_tflop_per_s: [("bf16".to_owned(), 742.0)].into_iter().collect(),
        }),
        extra: [("candle".to_owned(), "0.11.1".to_owned())]
            .into_iter()
            .collect(),
    }
}

pub(super) fn command() -> Vec<String> {
    "candlepower study Qwen/Qwen3-0.6B --variants bf16,int8,w8a8,w4a16,w4a16:g64 --batch 1,4,16,64 --prompt 512 --generate 128"
        .split(' ')
        .map(str::to_owned)
        .collect()
}

/// The usual study: five variants over four batch sizes.
pub(super) fn study() -> Study {
    Study::from_records(
        environment(),
        command(),
        &records_of(&usual(), &[1, 4, 16, 64]),
    )
}

/// The study of [`records`].
pub(super) fn small_study() -> Study {
    Study::from_records(Environment::default(), vec![], &records())
}

/// What strains a layout: long names, ranges over many decades, nothing but a reason, a failed cell, two tokenizers.
pub(super) fn extreme_study() -> Study {
    let plain = || scheme(16, None, "none", "float");
    let variants = vec![
        imagined("bf16", plain(), 0.0, 1.0, 140 << 30),
        imagined(
            "w4a16:gptq:g32:a-name-that-goes-on-and-on",
            scheme(4, Some(32), "gptq", "float"),
            9.5,
            40.0,
            37 << 30,
        ),
        Imagined {
            model: "an-organisation/another-model-with-a-rather-long-name-70B-instruct",
            tokenizer: "blake3:t1",
            ..imagined("bf16", plain(), 0.2, 0.004, 141 << 30)
        },
    ];
    let mut records = records_of(&variants, &[1, 256]);
    let reason =
        "out of memory: the cache needs 61.0 GiB, 12.5 GiB are free; <lower> the batch & try again";
    records.extend(failed(&variants[0], &[4096], reason).into_iter().skip(1));
    records.extend(failed(
        &imagined(
            "w8a8",
            scheme(8, None, "rtn", "int8-per-token"),
            0.0,
            1.0,
            1,
        ),
        &[1],
        reason,
    ));
    Study::from_records(
        environment(),
        vec!["candlepower".to_owned(), "it's </script> odd".to_owned()],
        &records,
    )
}
