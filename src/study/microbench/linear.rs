//! The product with a weight, in every variant. The inputs of `w8a8` are in eight bits from the start: rounding them is
//! the op `quantize`.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::bench::{Bed, Bench, Facts, Families, Family, Identity, Library, Rotated};
use super::judge::{Judge, Judgement, mixed, numbers, poison, spread, summed, unit, whole};
use super::ops::{OpEntry, Sizes};
use crate::error::{Error, Result};
use crate::kernels::fill::Filling;
use crate::kernels::gpu::LinearKernel;
use crate::kernels::linear::{Input, Linear, LinearWeight, WeightData};
use crate::kernels::quantize::QuantizeRows;
use crate::kernels::{Buf, BufType, Device};
use crate::model::ModelConfig;
use crate::scheme::{Activations, CodeFormat, DType, Variant, WeightScheme};

pub(super) const ENTRY: OpEntry = OpEntry {
    name: "linear",
    what: "the product with a weight",
    needs_model: false,
    uses_context: false,
    families,
};

/// Elements that are filled or quantised at once: 64 MiB as f32.
const PIECE: usize = 16 << 20;

/// The product's own streams of noise.
const WEIGHT: u64 = 1;
const INPUT: u64 = 2;

/// Of so many channels one is compared at least: the smaller where there are few, the larger beyond [`MOST`].
const CHANNELS: [usize; 2] = [32, 128];
/// Channels and tokens that are compared, about, at most.
const MOST: [usize; 2] = [1024, 64];
/// Tokens up to which every one is compared, and of which one is beyond.
const TOKENS: [usize; 2] = [16, 8];

/// The distinct products of a model, with what each is for.
pub(super) fn shapes(config: &ModelConfig) -> Vec<(&'static str, [usize; 2])> {
    vec![
        (
            "qkv",
            [config.q_rows() + 2 * config.kv_rows(), config.hidden],
        ),
        ("o", [config.hidden, config.q_rows()]),
        ("gate_up", [2 * config.intermediate, config.hidden]),
        ("down", [config.hidden, config.intermediate]),
        ("head", [config.vocab, config.hidden]),
    ]
}

fn families(sizes: &Sizes<'_>) -> Result<Families> {
    let mut found: Vec<([usize; 2], Vec<String>)> = Vec::new();
    let mut add = |shape, role: Option<String>| {
        let place = found.iter().position(|(known, _)| *known == shape);
        let place = place.unwrap_or_else(|| {
            found.push((shape, Vec::new()));
            found.len() - 1
        });
        found[place].1.extend(role);
    };
    for &shape in &sizes.plan.shapes {
        add(shape, None);
    }
    for model in sizes.models {
        for (role, shape) in shapes(&model.config) {
            add(shape, Some(format!("{} {role}", model.name)));
        }
    }
    let family = |shape: &[usize; 2], roles: &[String], variant: &Variant| -> Box<dyn Family> {
        let act = sizes.act(variant);
        let [n, k] = *shape;
        Box::new(Product {
            identity: Identity {
                op: ENTRY.name,
                sizes: BTreeMap::from([("n".to_owned(), n), ("k".to_owned(), k)]),
                roles: roles.to_vec(),
                variant: variant.name.clone(),
                act: act.name().to_owned(),
            },
            shape: *shape,
            variant: variant.clone(),
            act,
            weights: Vec::new(),
        })
    };
    Ok(found
        .iter()
        .flat_map(|(shape, roles)| {
            sizes
                .plan
                .variants
                .iter()
                .map(move |variant| family(shape, roles, variant))
        })
        .collect())
}

/// One weight and its copies.
struct Product {
    identity: Identity,
    /// `[n, k]`.
    shape: [usize; 2],
    variant: Variant,
    act: DType,
    /// As many as the fewest tokens want; none before the first bench.
    weights: Vec<LinearWeight>,
}

/// One set of buffers beside the weight.
struct Set {
    input: Numbers,
    out: Buf,
}

/// An input.
enum Numbers {
    Float(Buf),
    Int8 { codes: Buf, scales: Buf },
}

impl Numbers {
    fn input(&self) -> Input<'_> {
        match self {
            Self::Float(x) => Input::Float(x),
            Self::Int8 { codes, scales } => Input::Int8 { codes, scales },
        }
    }
}

impl Family for Product {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn prepare<'a>(&'a mut self, bed: &Bed<'_>, tokens: usize) -> Result<Box<dyn Bench + 'a>> {
        let device = bed.device.clone();
        let form = Form::of(&self.variant, self.shape, self.act)?;
        let [n, k] = self.shape;
        let beside = |tokens: usize| {
            let input = match self.variant.activations {
                Activations::Float | Activations::AsIs => tokens * k * self.act.size(),
                Activations::Int8PerToken => tokens * (k + 4),
            };
            (input + tokens * n * self.act.size()) as u64
        };
        let weight = form.bytes() as u64;
        if self.weights.is_empty() {
            let first = form.make(&device, bed.seed, self.act)?;
            // Copied, not made anew: to exceed the cache of a large server they are hundreds.
            for _ in 1..bed.copies(weight + beside(bed.fewest))? {
                self.weights.push(first.duplicate(&device)?);
            }
            self.weights.push(first);
        }
        let bytes = weight + beside(tokens);
        let copies = bed.copies(bytes)?.min(self.weights.len());
        let sets = (0..copies)
            .map(|copy| {
                let seed = mixed(bed.seed, INPUT + copy as u64);
                Ok(Set {
                    input: self.input(&device, tokens, seed)?,
                    out: device.alloc(BufType::Float(self.act), tokens * n)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let product = Linear {
            tokens,
            accumulate: false,
        };
        let cost = product.cost(&self.weights[0], input_type(&sets[0]), self.act);
        let facts = Facts {
            cost,
            product: Some(match self.variant.activations {
                Activations::Float | Activations::AsIs => self.act.name(),
                Activations::Int8PerToken => "int8",
            }),
            copies,
            bytes: bytes * copies as u64,
        };
        let weights = &self.weights;
        let run = {
            let device = device.clone();
            move |set: &mut Set, copy: usize| {
                product.run(
                    &device,
                    set.input.input(),
                    &weights[copy],
                    None,
                    &mut set.out,
                )
            }
        };
        let plan = {
            let (device, input) = (device.clone(), input_type(&sets[0]));
            move || plan_text(&device, &product, input, &weights[0])
        };
        let library = library(&device, &product, input_type(&sets[0]), &weights[0]);
        let judge = {
            let (run, seed) = (run.clone(), bed.seed);
            move |set: &mut Set| {
                poison(&device, &mut set.out)?;
                run(set, 0)?;
                compare(&device, &form, set, tokens, seed)
            }
        };
        Ok(Box::new(Rotated {
            facts,
            sets,
            plan: Box::new(plan),
            call: Box::new(run),
            judge: Box::new(judge),
            library,
        }))
    }
}

impl Product {
    fn input(&self, device: &Device, tokens: usize, seed: u64) -> Result<Numbers> {
        let k = self.shape[1];
        match self.variant.activations {
            Activations::Float | Activations::AsIs => {
                let mut x = device.alloc(BufType::Float(self.act), tokens * k)?;
                let noise = Filling::Uniform {
                    stream: seed,
                    amplitude: 1.0,
                };
                noise.run(device, &mut x, 0, tokens * k)?;
                Ok(Numbers::Float(x))
            }
            Activations::Int8PerToken => {
                let drawn: Vec<u8> = (0..tokens * k)
                    .into_par_iter()
                    .map(|i| (mixed(seed, i as u64) >> 56) as u8)
                    .collect();
                let factors: Vec<f32> = (0..tokens)
                    .map(|t| (1.0 + (t % 7) as f32 / 8.0) / 128.0)
                    .collect();
                let mut codes = device.alloc(BufType::U8, tokens * k)?;
                let mut scales = device.alloc(BufType::Float(DType::F32), tokens)?;
                device.upload(&mut codes, 0, &drawn)?;
                device.upload(&mut scales, 0, &factors)?;
                Ok(Numbers::Int8 { codes, scales })
            }
        }
    }
}

/// The type of an input; `None` for codes.
fn input_type(set: &Set) -> Option<DType> {
    match &set.input {
        Numbers::Float(x) => x.dtype().ok(),
        Numbers::Int8 { .. } => None,
    }
}

/// How the product is computed on this device.
fn plan_text(
    device: &Device,
    product: &Linear,
    input: Option<DType>,
    weight: &LinearWeight,
) -> String {
    let threads = rayon::current_num_threads();
    match device {
        Device::Cpu => product.plan(weight.n, weight.k, threads).to_string(),
        Device::Gpu(_) => {
            let kernels = product.kernels(device, input, weight);
            kernels.first().map(ToString::to_string).unwrap_or_default()
        }
    }
}

/// The GPU's library in the place of our kernels, where it has the same product.
fn library(
    device: &Device,
    product: &Linear,
    input: Option<DType>,
    weight: &LinearWeight,
) -> std::result::Result<Library<'static>, String> {
    let Device::Gpu(gpu) = device else {
        return Err("no library is timed on the CPU".to_owned());
    };
    gpu.force_linear(Some(LinearKernel::Library));
    let first = product.kernels(device, input, weight).first().copied();
    gpu.force_linear(None);
    // Codes go to the library in whole 16-byte rows; weights in other forms than their inputs' do not at all.
    let codes = weight.n.is_multiple_of(16) && weight.k.is_multiple_of(16);
    let name = match (&weight.data, input) {
        (WeightData::Plain(_), Some(dtype)) => Some(format!("cuBLASLt {dtype}")),
        (_, None) if codes => Some("cuBLASLt int8, scaled afterwards".to_owned()),
        _ => None,
    };
    let name = name.filter(|_| first == Some(LinearKernel::Library));
    let name = name.ok_or("cuBLASLt has no product of such weights with such inputs")?;
    let gpu = gpu.clone();
    Ok(Library {
        name,
        take_over: Box::new(move |on| gpu.force_linear(on.then_some(LinearKernel::Library))),
    })
}

/// A weight of made-up numbers, the same on every device.
#[derive(Debug, Clone, Copy)]
struct Form {
    n: usize,
    k: usize,
    /// The type of the numbers, or of those that are quantised, hence of the scales.
    source: DType,
    /// How codes are written and columns per scale, where it is quantised.
    packed: Option<(CodeFormat, usize)>,
}

impl Form {
    fn of(variant: &Variant, [n, k]: [usize; 2], act: DType) -> Result<Self> {
        let halves = if act == DType::F32 { DType::BF16 } else { act };
        let (source, packed) = match variant.weights {
            WeightScheme::Plain(dtype) => (dtype, None),
            WeightScheme::Int8 => (halves, Some((CodeFormat::I8, k))),
            WeightScheme::Int4 { .. } => {
                let group = variant.group_for(&format!("a product of {n} x {k}"), k)?;
                (halves, Some((CodeFormat::U4, group)))
            }
            WeightScheme::AsIs => {
                return Err(Error::Usage(
                    "--variants as-is: single ops have made-up weights, none of a checkpoint"
                        .into(),
                ));
            }
        };
        Ok(Self {
            n,
            k,
            source,
            packed,
        })
    }

    fn bytes(&self) -> usize {
        let row = match self.packed {
            None => self.k * self.source.size(),
            Some((format, group)) => format.row_bytes(self.k) + self.k / group * self.source.size(),
        };
        self.n * row
    }

    /// The numbers of the weight from row `first` on, before any rounding to codes.
    fn noise(&self, seed: u64, first: usize) -> Filling {
        let all = Filling::Uniform {
            stream: mixed(seed, WEIGHT),
            amplitude: (3.0 / self.k as f32).sqrt(),
        };
        all.skip((first * self.k) as u64)
    }

    /// The weight on a device, made as a model's are: filled, or filled piece by piece and quantised there, and brought
    /// into the order that its kernels stream.
    fn make(&self, device: &Device, seed: u64, act: DType) -> Result<LinearWeight> {
        self.rows(device, seed, 0, self.n)?.streamed(device, act)
    }

    /// `count` rows of it from `first` on, as a weight of their own.
    fn rows(&self, device: &Device, seed: u64, first: usize, count: usize) -> Result<LinearWeight> {
        let k = self.k;
        let Some((format, group)) = self.packed else {
            let mut weight = LinearWeight::plain(device, [count, k], self.source)?;
            if let WeightData::Plain(numbers) = &mut weight.data {
                self.noise(seed, first).run(device, numbers, 0, count * k)?;
            }
            return Ok(weight);
        };
        let mut weight = LinearWeight::packed(device, [count, k], format, group, self.source)?;
        let at_once = (PIECE / k).clamp(1, count);
        let mut staging = device.alloc(BufType::Float(self.source), at_once * k)?;
        for start in (0..count).step_by(at_once) {
            let rows = at_once.min(count - start);
            let noise = self.noise(seed, first + start);
            noise.run(device, &mut staging, 0, rows * k)?;
            let op = QuantizeRows {
                rows,
                k,
                format,
                group,
            };
            op.run(device, &staging, &mut weight, start)?;
        }
        Ok(weight)
    }

    /// Row `row` as numbers, made on the host: codes times scales where it is quantised.
    fn truth(&self, seed: u64, row: usize) -> Result<Vec<f64>> {
        let weight = self.rows(&Device::Cpu, seed, row, 1)?;
        match &weight.data {
            WeightData::Plain(w) => Ok(widened(&numbers(&Device::Cpu, w, 0..self.k)?)),
            WeightData::Packed(packed) => {
                let mut codes = vec![0; self.k];
                packed.format.unpack_row(packed.codes.host()?, &mut codes);
                let scales = numbers(&Device::Cpu, &packed.scales, 0..packed.scales.len())?;
                let middle = f64::from(packed.format.middle());
                let value = |code: u8| f64::from(packed.format.value(code)) - middle;
                let parts = codes.chunks(packed.group).zip(scales);
                Ok(parts
                    .flat_map(|(codes, scale)| {
                        codes
                            .iter()
                            .map(move |&code| value(code) * f64::from(scale))
                    })
                    .collect())
            }
            WeightData::Streamed(_) | WeightData::Apart(_) => {
                unreachable!("the CPU streams nothing, and each matrix is one")
            }
        }
    }
}

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Holds what a call left in `set.out` to plain sums in f64: of one channel of every stretch of them, and of every
/// token or one of every few; whatever else these tokens' rows hold must be finite.
fn compare(device: &Device, form: &Form, set: &Set, tokens: usize, seed: u64) -> Result<Judgement> {
    let (n, k) = (form.n, form.k);
    let stride = n.div_ceil(MOST[0]).clamp(CHANNELS[0], CHANNELS[1]);
    let channels = spread(n, stride, mixed(seed, 3));
    let chosen: Vec<usize> = if tokens <= TOKENS[0] {
        (0..tokens).collect()
    } else {
        spread(
            tokens,
            tokens.div_ceil(MOST[1]).max(TOKENS[1]),
            mixed(seed, 4),
        )
    };
    let truths = channels
        .par_iter()
        .map(|&row| form.truth(seed, row))
        .collect::<Result<Vec<_>>>()?;
    let act = set.out.dtype()?;
    // A GPU may round dequantised weights to the type of the activations before a library multiplies them. Those
    // roundings are independent, so together they are off by a small multiple of their root, not by their sum.
    let dequantised = match (device, form.packed, &set.input) {
        (Device::Gpu(_), Some(_), Numbers::Float(_)) => {
            unit(act) * (8.0 / (k as f64).sqrt()).min(1.0)
        }
        _ => 0.0,
    };
    let mut judge = Judge::default();
    for &token in &chosen {
        let x = match &set.input {
            Numbers::Float(x) => widened(&numbers(device, x, token * k..(token + 1) * k)?),
            Numbers::Int8 { codes, scales } => {
                let codes: Vec<u8> = device.download(codes, token * k..(token + 1) * k)?;
                let scale: Vec<f32> = device.download(scales, token..token + 1)?;
                codes
                    .iter()
                    .map(|&q| f64::from(q.cast_signed()) * f64::from(scale[0]))
                    .collect()
            }
        };
        let out = numbers(device, &set.out, token * n..(token + 1) * n)?;
        if let Some(channel) = out.iter().position(|y| !y.is_finite()) {
            judge.fault(format!(
                "channel {channel} of token {token} is {}",
                out[channel]
            ));
        }
        let sums: Vec<(f64, f64)> = truths
            .par_iter()
            .map(|w| {
                w.iter().zip(&x).fold((0.0, 0.0), |(sum, size), (w, x)| {
                    let product = w * x;
                    (sum + product, size + product.abs())
                })
            })
            .collect();
        for (&channel, (truth, size)) in channels.iter().zip(sums) {
            let tolerance = unit(act) * truth.abs() + (summed(k) + dequantised) * size;
            judge.element(out[channel], truth, tolerance, || {
                format!("channel {channel} of token {token}")
            });
        }
    }
    Ok(judge.verdict(whole(act)))
}
