//! Ops that work row by row: rounding activations, norm, gated activation, the most likely token.

use std::collections::BTreeMap;

use super::bench::{Bed, Bench, Facts, Families, Family, Identity, Made, NO_LIBRARY, Rotated};
use super::judge::{Judge, Judgement, mixed, numbers, poison, spread, unit, whole};
use super::ops::{OpEntry, Sizes};
use crate::error::Result;
use crate::kernels::fill::Filling;
use crate::kernels::norm::RmsNorm;
use crate::kernels::quantize::QuantizeAct;
use crate::kernels::sample::Argmax;
use crate::kernels::silu_mul::{GateUp, SiluMul};
use crate::kernels::{Buf, BufType, Cost, Device};
use crate::model::ModelConfig;
use crate::scheme::DType;

pub(super) const QUANTIZE: OpEntry = OpEntry {
    name: "quantize",
    what: "activations to eight bits, token by token",
    needs_model: true,
    uses_context: false,
    families: |sizes| Ok(by_width("quantize", sizes, &inputs, quantize)),
};

pub(super) const NORM: OpEntry = OpEntry {
    name: "norm",
    what: "the RMS norm of the residual stream",
    needs_model: true,
    uses_context: false,
    families: |sizes| Ok(by_width("norm", sizes, &|c| vec![c.hidden], norm)),
};

pub(super) const SILU_MUL: OpEntry = OpEntry {
    name: "silu_mul",
    what: "the gated activation of the feed-forward layer",
    needs_model: true,
    uses_context: false,
    families: |sizes| {
        Ok(by_width(
            "silu_mul",
            sizes,
            &|c| vec![c.intermediate],
            silu_mul,
        ))
    },
};

pub(super) const ARGMAX: OpEntry = OpEntry {
    name: "argmax",
    what: "the most likely token",
    needs_model: true,
    uses_context: false,
    families: |sizes| {
        // Logits are f32 whatever the activations.
        Ok(by_width_of(
            "argmax",
            sizes,
            &[DType::F32],
            &|c| vec![c.vocab],
            argmax,
        ))
    },
};

/// Makes the bench of a width, in a type.
type Make = fn(&Bed<'_>, usize, usize, DType) -> Result<Box<dyn Bench>>;

/// The most rows that are compared.
const ROWS: usize = 16;

/// Widths of all inputs that `w8a8` rounds.
fn inputs(config: &ModelConfig) -> Vec<usize> {
    vec![config.hidden, config.q_rows(), config.intermediate]
}

fn by_width(
    op: &'static str,
    sizes: &Sizes<'_>,
    widths: &dyn Fn(&ModelConfig) -> Vec<usize>,
    make: Make,
) -> Families {
    by_width_of(op, sizes, &sizes.acts(), widths, make)
}

/// A family for every width that some model has, in every type.
fn by_width_of(
    op: &'static str,
    sizes: &Sizes<'_>,
    types: &[DType],
    widths: &dyn Fn(&ModelConfig) -> Vec<usize>,
    make: Make,
) -> Families {
    let mut found: Vec<(usize, Vec<String>)> = Vec::new();
    for model in sizes.models {
        for width in widths(&model.config) {
            let place = found.iter().position(|(known, _)| *known == width);
            let place = place.unwrap_or_else(|| {
                found.push((width, Vec::new()));
                found.len() - 1
            });
            if !found[place].1.contains(&model.name) {
                found[place].1.push(model.name.clone());
            }
        }
    }
    let family = |(width, roles): &(usize, Vec<String>), act: DType| -> Box<dyn Family> {
        let width = *width;
        Box::new(Made {
            identity: Identity {
                op,
                sizes: BTreeMap::from([("width".to_owned(), width)]),
                roles: roles.clone(),
                variant: act.name().to_owned(),
                act: act.name().to_owned(),
            },
            make: move |bed: &Bed<'_>, tokens: usize| make(bed, tokens, width, act),
        })
    };
    found
        .iter()
        .flat_map(|entry| types.iter().map(|&act| family(entry, act)))
        .collect()
}

/// What a set of buffers holds.
struct Set {
    x: Buf,
    /// A weight, where there is one.
    beside: Option<Buf>,
    out: Buf,
    scales: Option<Buf>,
}

/// How to make one.
struct Kinds {
    x: (BufType, usize),
    amplitude: f32,
    beside: Option<(BufType, usize)>,
    out: (BufType, usize),
    scales: Option<(BufType, usize)>,
}

impl Kinds {
    fn bytes(&self) -> u64 {
        let all = [Some(self.x), self.beside, Some(self.out), self.scales];
        all.into_iter()
            .flatten()
            .map(|(kind, count)| (kind.size() * count) as u64)
            .sum()
    }

    fn make(&self, device: &Device, seed: u64) -> Result<Set> {
        let noise = |(kind, count): (BufType, usize), stream, amplitude| -> Result<Buf> {
            let mut buf = device.alloc(kind, count)?;
            Filling::Uniform { stream, amplitude }.run(device, &mut buf, 0, count)?;
            Ok(buf)
        };
        let alloc = |(kind, count): (BufType, usize)| device.alloc(kind, count);
        Ok(Set {
            x: noise(self.x, seed, self.amplitude)?,
            beside: self
                .beside
                .map(|beside| noise(beside, mixed(seed, 1), 1.0))
                .transpose()?,
            out: alloc(self.out)?,
            scales: self.scales.map(alloc).transpose()?,
        })
    }
}

/// A bench of a call and of what one row must give; the judge poisons the outputs, calls, and compares some rows.
fn bench(
    bed: &Bed<'_>,
    kinds: &Kinds,
    cost: Cost,
    rows: usize,
    call: impl Fn(&Device, &mut Set) -> Result<()> + Send + Clone + 'static,
    row: impl Fn(&Device, &Set, usize, &mut Judge) -> Result<()> + Send + 'static,
    limit: f64,
) -> Result<Box<dyn Bench>> {
    let bytes = kinds.bytes();
    let copies = bed.copies(bytes)?;
    let sets = (0..copies)
        .map(|copy| kinds.make(bed.device, mixed(bed.seed, copy as u64)))
        .collect::<Result<Vec<_>>>()?;
    let (device, seed) = (bed.device.clone(), bed.seed);
    let run = {
        let device = device.clone();
        move |set: &mut Set, _: usize| call(&device, set)
    };
    let judge = {
        let run = run.clone();
        move |set: &mut Set| -> Result<Judgement> {
            poison(&device, &mut set.out)?;
            if let Some(scales) = &mut set.scales {
                poison(&device, scales)?;
            }
            run(set, 0)?;
            let mut judge = Judge::default();
            for i in spread(rows, rows.div_ceil(ROWS), seed) {
                row(&device, set, i, &mut judge)?;
            }
            Ok(judge.verdict(limit))
        }
    };
    Ok(Box::new(Rotated {
        facts: Facts {
            cost,
            product: None,
            copies,
            bytes: bytes * copies as u64,
        },
        sets,
        plan: Box::new(|| "row by row".to_owned()),
        call: Box::new(run),
        judge: Box::new(judge),
        library: Err(NO_LIBRARY.to_owned()),
    }))
}

fn norm(bed: &Bed<'_>, rows: usize, width: usize, act: DType) -> Result<Box<dyn Bench>> {
    const EPS: f32 = 1e-6;
    let kind = BufType::Float(act);
    let kinds = Kinds {
        x: (kind, rows * width),
        amplitude: 2.0,
        beside: Some((kind, width)),
        out: (kind, rows * width),
        scales: None,
    };
    let op = RmsNorm {
        rows,
        width,
        eps: EPS,
    };
    let call = move |device: &Device, set: &mut Set| {
        let Set {
            x,
            beside: Some(weight),
            out,
            ..
        } = set
        else {
            unreachable!("a norm has a weight");
        };
        op.run(device, x, weight, out)
    };
    let row = move |device: &Device, set: &Set, i: usize, judge: &mut Judge| {
        let range = i * width..(i + 1) * width;
        let x = numbers(device, &set.x, range.clone())?;
        let out = numbers(device, &set.out, range)?;
        let weight = set.beside.as_ref().map(|w| numbers(device, w, 0..width));
        let weight = weight.transpose()?.unwrap_or_default();
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let factor = 1.0 / (squares / width as f64 + f64::from(EPS)).sqrt();
        for (j, ((x, w), y)) in x.iter().zip(&weight).zip(&out).enumerate() {
            let truth = f64::from(*x) * factor * f64::from(*w);
            // Rounded twice, before and after the weight.
            let tolerance = (2.1 * unit(act) + 2.0_f64.powi(-20)) * truth.abs() + 1e-30;
            judge.element(*y, truth, tolerance, || format!("element {j} of row {i}"));
        }
        Ok(())
    };
    bench(bed, &kinds, op.cost(act), rows, call, row, whole(act))
}

fn silu_mul(bed: &Bed<'_>, rows: usize, width: usize, act: DType) -> Result<Box<dyn Bench>> {
    let kind = BufType::Float(act);
    let kinds = Kinds {
        x: (kind, rows * 2 * width),
        amplitude: 6.0,
        beside: None,
        out: (kind, rows * width),
        scales: None,
    };
    let op = SiluMul {
        rows,
        width,
        layout: GateUp::Halves,
    };
    let call = move |device: &Device, set: &mut Set| op.run(device, &set.x, &mut set.out);
    let row = move |device: &Device, set: &Set, i: usize, judge: &mut Judge| {
        let x = numbers(device, &set.x, i * 2 * width..(i + 1) * 2 * width)?;
        let out = numbers(device, &set.out, i * width..(i + 1) * width)?;
        for (j, y) in out.iter().enumerate() {
            let (gate, up) = (f64::from(x[j]), f64::from(x[j + width]));
            let truth = gate / (1.0 + (-gate).exp()) * up;
            let tolerance = (unit(act) + 2.0_f64.powi(-19)) * truth.abs() + 1e-30;
            judge.element(*y, truth, tolerance, || format!("element {j} of row {i}"));
        }
        Ok(())
    };
    bench(bed, &kinds, op.cost(act), rows, call, row, whole(act))
}

fn argmax(bed: &Bed<'_>, rows: usize, vocab: usize, act: DType) -> Result<Box<dyn Bench>> {
    let kinds = Kinds {
        x: (BufType::Float(act), rows * vocab),
        amplitude: 8.0,
        beside: None,
        out: (BufType::U32, rows),
        scales: None,
    };
    let op = Argmax { rows, vocab };
    let call = move |device: &Device, set: &mut Set| op.run(device, &set.x, &mut set.out);
    let row = move |device: &Device, set: &Set, i: usize, judge: &mut Judge| {
        let x = numbers(device, &set.x, i * vocab..(i + 1) * vocab)?;
        let got: Vec<u32> = device.download(&set.out, i..i + 1)?;
        // The first of the largest.
        let best = (0..vocab).fold(0, |best, j| if x[j] > x[best] { j } else { best });
        judge.element(got[0] as f32, best as f64, 0.5, || format!("row {i}"));
        Ok(())
    };
    bench(bed, &kinds, op.cost(act), rows, call, row, 1e-6)
}

fn quantize(bed: &Bed<'_>, tokens: usize, width: usize, act: DType) -> Result<Box<dyn Bench>> {
    let kinds = Kinds {
        x: (BufType::Float(act), tokens * width),
        amplitude: 3.0,
        beside: None,
        out: (BufType::U8, tokens * width),
        scales: Some((BufType::Float(DType::F32), tokens)),
    };
    let op = QuantizeAct { tokens, width };
    let call = move |device: &Device, set: &mut Set| {
        let Set {
            x,
            out,
            scales: Some(scales),
            ..
        } = set
        else {
            unreachable!("codes have scales");
        };
        op.run(device, x, out, scales)
    };
    let row = move |device: &Device, set: &Set, i: usize, judge: &mut Judge| {
        let range = i * width..(i + 1) * width;
        let x = numbers(device, &set.x, range.clone())?;
        let codes: Vec<u8> = device.download(&set.out, range)?;
        let scales = set.scales.as_ref();
        let scale = scales.map(|s| device.download::<f32>(s, i..i + 1));
        let scale = scale.transpose()?.map_or(f32::NAN, |s| s[0]);
        let largest = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let truth = f64::from(largest) / 127.5;
        let close = 2.0 * unit(DType::F32) * truth;
        judge.element(scale, truth, close, || format!("the scale of row {i}"));
        for (j, (x, code)) in x.iter().zip(&codes).enumerate() {
            let x = f64::from(*x);
            let code = f64::from(code.cast_signed());
            // Half a step; the largest positive number may be a whole one away, for there is no code for it.
            let clamped = x.min(127.0 * truth);
            let half = (0.5 + 1e-4) * truth;
            judge.element((code * truth) as f32, clamped, half, || {
                format!("code {j} of row {i}")
            });
        }
        Ok(())
    };
    bench(bed, &kinds, op.cost(act), tokens, call, row, 0.02)
}
