//! The whole run: layer after layer is read, watched at work, scaled, rounded, written, and passed by the calibration
//! tokens in its new form, so that later layers are quantised for the inputs that they will have.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::assign::{Assignment, Kept};
use super::awq;
use super::calibration::{Samples, Statistics};
use super::checkpoint::CheckpointWriter;
use super::decoder::{Decoder, DeviceLayer};
use super::gptq::{DAMPENING, Propagation};
use super::grid::{self, Form, Grid, dequantise, grids, of_least_error, of_range};
use super::layer::{HostLayer, MODULES, Matrix, Site, module, read};
use super::linalg::Quadratic;
use super::report::{LayerReport, ModuleReport};
use super::rtn;
use super::transform::{self, Moved};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::model::{HostSliceMut, Model};
use crate::scheme::{DType, PackedWeight, Variant, WeightScheme};
use crate::units::Clock;

/// What is to be quantised, how, and for which text.
pub struct Quantisation<'a> {
    /// The model.
    pub model: &'a Model,
    /// What its linear layers become.
    pub variant: &'a Variant,
    /// The layers that do not.
    pub kept: &'a Kept,
    /// What calibrated methods read.
    pub samples: Option<&'a Samples>,
    /// Where the model reads it.
    pub device: &'a Device,
    /// The type of activations there.
    pub act: DType,
    /// What times the layers.
    pub clock: &'a dyn Clock,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress<'a> {
    /// The layer at hand.
    pub layer: usize,
    /// All of them.
    pub layers: usize,
    /// The share of the whole that is done.
    pub share: f64,
    /// A layer that has just been written.
    pub finished: Option<&'a LayerReport>,
}

/// Told of progress; what it returns stops the run.
pub type Watch<'a> = &'a mut dyn FnMut(Progress<'_>) -> Result<()>;

/// The type of all that is not quantised, and of scales: the model's own 16-bit type, as for variants that are made on
/// loading.
pub fn plain_dtype(model: &Model) -> DType {
    match model.config.dtype {
        DType::F32 => DType::BF16,
        dtype => dtype,
    }
}

/// Bytes of embeddings or a head that are read at a time.
const TABLE_PIECE: usize = 16 << 20;

impl Quantisation<'_> {
    /// Writes the quantised model to `out`, all of it or nothing.
    ///
    /// # Errors
    /// If something stands there (unless it is a checkpoint of this program and `replace` is set), a group fits no layer,
    /// calibration text is missing, a weight is not finite, or reading or writing fails. What `watch` returns stops the
    /// run.
    pub fn write(&self, out: &Path, replace: bool, watch: Watch<'_>) -> Result<Vec<LayerReport>> {
        let dtype = plain_dtype(self.model);
        let assignment = self.assignment(dtype)?;
        let mut decoder = match (self.variant.method.is_calibrated(), self.samples) {
            (false, _) => None,
            (true, None) => return Err(no_calibration(self.variant)),
            (true, Some(samples)) => {
                if samples.length > self.model.config.max_positions {
                    return Err(Error::Config(format!(
                        "--calibration-length {} is more than the {} positions of {}",
                        samples.length, self.model.config.max_positions, self.model.name
                    )));
                }
                Some(Decoder::new(self.model, samples, self.device, self.act)?)
            }
        };
        let mut writer = CheckpointWriter::begin(out, self.model, &assignment, replace)?;
        self.table(&mut writer, "model.embed_tokens.weight", dtype)?;
        let layers = self.model.config.layers;
        let mut reports = Vec::new();
        for index in 0..layers {
            let begin = self.clock.now();
            let mut steps = Steps {
                layer: index,
                layers,
                done: 0,
                all: 8 + decoder.as_ref().map_or(0, |d| 2 * d.chunks()),
                watch: &mut *watch,
            };
            let mut layer = HostLayer::read(self.model, index)?;
            steps.step()?;
            let modules = self.layer(
                &assignment,
                &mut layer,
                &mut decoder,
                &mut writer,
                &mut steps,
            )?;
            let report = LayerReport {
                layer: index,
                seconds: (self.clock.now() - begin).0,
                modules,
            };
            watch(Progress {
                layer: index,
                layers,
                share: (index + 1) as f64 / layers as f64,
                finished: Some(&report),
            })?;
            reports.push(report);
        }
        writer.plain(
            "model.norm.weight",
            &read(self.model, "model.norm.weight")?,
            dtype,
        )?;
        if !self.model.config.tied {
            self.table(&mut writer, "lm_head.weight", dtype)?;
        }
        writer.finish(self.model, &self.document(&reports))?;
        Ok(reports)
    }

    /// The form of every linear layer, checked.
    pub(super) fn assignment(&self, dtype: DType) -> Result<Assignment<'_>> {
        let assignment = Assignment {
            config: &self.model.config,
            variant: self.variant,
            kept: self.kept,
            dtype,
        };
        if !matches!(
            self.variant.weights,
            WeightScheme::Int8 | WeightScheme::Int4 { .. }
        ) {
            return Err(Error::Usage(format!(
                "'{}' is no scheme to quantise to: expected int8, w8a8 or w4a16, with options",
                self.variant
            )));
        }
        assignment.check()?;
        Ok(assignment)
    }

    /// What stands beside the weights.
    fn document(&self, reports: &[LayerReport]) -> serde_json::Value {
        json!({
            "tool": concat!("candlepower ", env!("CARGO_PKG_VERSION")),
            "source": self.model.name,
            "scheme": self.variant.name,
            "method": self.variant.method_name(),
            "calibration": self.samples.filter(|_| self.variant.method.is_calibrated()).map(|samples| json!({
                "samples": samples.rows.len(),
                "length": samples.length,
                "digest": samples.digest(),
                "activations": self.act.name(),
            })),
            "layers": reports,
        })
    }

    /// Quantises and writes one layer.
    fn layer(
        &self,
        assignment: &Assignment<'_>,
        layer: &mut HostLayer,
        decoder: &mut Option<Decoder<'_>>,
        writer: &mut CheckpointWriter,
        steps: &mut Steps<'_>,
    ) -> Result<Vec<ModuleReport>> {
        let (index, dtype) = (layer.index, assignment.dtype);
        let forms = assignment.forms(index)?;
        let statistics = match decoder {
            None => None,
            Some(decoder) => {
                let on_device = DeviceLayer::new(self.device, self.act, layer)?;
                Some(decoder.observe(&on_device, &mut || steps.step())?)
            }
        };
        let done = rounded(layer, statistics, &forms, self.variant, dtype, &mut || {
            steps.step()
        })?;
        self.put(writer, layer, &done, assignment)?;
        if let Some(decoder) = decoder
            && index + 1 < assignment.config.layers
        {
            for (matrix, (packed, _)) in layer.matrices.iter_mut().zip(&done) {
                if let Some(packed) = packed {
                    matrix.weights = dequantise(packed);
                }
            }
            let on_device = DeviceLayer::new(self.device, self.act, layer)?;
            decoder.advance(&on_device, &mut || steps.step())?;
        }
        Ok(done.into_iter().map(|(_, report)| report).collect())
    }

    fn put(
        &self,
        writer: &mut CheckpointWriter,
        layer: &HostLayer,
        done: &[(Option<PackedWeight>, ModuleReport)],
        assignment: &Assignment<'_>,
    ) -> Result<()> {
        let (index, dtype) = (layer.index, assignment.dtype);
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        writer.plain(&name("input_layernorm"), &layer.attention_norm, dtype)?;
        writer.plain(&name("post_attention_layernorm"), &layer.mlp_norm, dtype)?;
        if let Some([q, k]) = &layer.head_norms {
            writer.plain(&name("self_attn.q_norm"), q, dtype)?;
            writer.plain(&name("self_attn.k_norm"), k, dtype)?;
        }
        for (member, (packed, _)) in done.iter().enumerate() {
            let matrix = &layer.matrices[member];
            let module = module(index, member);
            match packed {
                Some(packed) => writer.packed(&module, packed, &assignment.format())?,
                None => writer.plain(&format!("{module}.weight"), &matrix.weights, dtype)?,
            }
            if let Some(bias) = &matrix.bias {
                writer.plain(&format!("{module}.bias"), bias, dtype)?;
            }
        }
        Ok(())
    }

    /// Copies an embedding or a head, a piece at a time.
    fn table(&self, writer: &mut CheckpointWriter, name: &str, dtype: DType) -> Result<()> {
        let shape = self.model.weights.shape(name)?;
        let (rows, width) = (shape[0], shape[1]);
        let at_once = (TABLE_PIECE / width.max(1)).clamp(1, rows);
        for first in (0..rows).step_by(at_once) {
            let last = (first + at_once).min(rows);
            let mut piece = vec![0.0; (last - first) * width];
            let slice = HostSliceMut::F32(&mut piece);
            self.model.weights.read_rows(name, first..last, slice)?;
            writer.rows(name, first * width, &piece, dtype)?;
        }
        Ok(())
    }
}

/// What is said where a method has no text to look at.
pub fn no_calibration(variant: &Variant) -> Error {
    Error::Usage(format!(
        "'{variant}' needs a text to calibrate on, other than the one that is scored: give --calibrate FILE"
    ))
}

/// Counts the steps of a layer.
struct Steps<'a> {
    layer: usize,
    layers: usize,
    done: usize,
    all: usize,
    watch: Watch<'a>,
}

impl Steps<'_> {
    fn step(&mut self) -> Result<()> {
        self.done += 1;
        let within = self.done as f64 / self.all as f64;
        (self.watch)(Progress {
            layer: self.layer,
            layers: self.layers,
            share: (self.layer as f64 + within.min(1.0)) / self.layers as f64,
            finished: None,
        })
    }
}

/// The linear layers of `layer` as `variant` has them, in the order of [`MODULES`], and what came of each; `None` for one
/// that has no form. The layer itself ends scaled, its weights not yet rounded.
pub(super) fn rounded(
    layer: &mut HostLayer,
    mut statistics: Option<[Statistics; 4]>,
    forms: &[Option<Form>; 4],
    variant: &Variant,
    dtype: DType,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<(Option<PackedWeight>, ModuleReport)>> {
    let before = nearest_errors(layer, statistics.as_ref(), forms)?;
    let moved = match &mut statistics {
        None => [Moved::default(); 4],
        Some(statistics) => transform::scale(layer, statistics, forms, variant.method, dtype)?,
    };
    let mut done = Vec::with_capacity(MODULES.len());
    for site in Site::ALL {
        let at = site.index();
        let statistics = statistics.as_mut().map(|all| &mut all[at]);
        let mut round = Rounding::new(variant, forms[at], statistics.as_deref())?;
        for member in site.members() {
            let matrix = &layer.matrices[member];
            let mut report = ModuleReport {
                module: module(layer.index, member),
                shape: [matrix.n, matrix.k],
                bits: forms[at].map_or(dtype.size() * 8, |form| form.format.bits()),
                group: forms[at].map(|form| form.group),
                error_of: if statistics.is_some() {
                    "outputs"
                } else {
                    "weights"
                },
                error_rtn: before[member],
                error: None,
                awq_ratio: moved[at].awq_ratio,
                smoothquant_strength: moved[at].smoothquant_strength,
                clipped: None,
                dampening: None,
            };
            let packed = match forms[at] {
                None => None,
                Some(form) => Some(round.matrix(matrix, member, form, &mut report)?),
            };
            done.push((packed, report));
            step()?;
        }
        // The Gram matrix of this site is not needed any more.
        if let Some(statistics) = statistics {
            statistics.gram = Vec::new();
        }
    }
    Ok(done)
}

/// Rounds the matrices of one site.
struct Rounding<'a> {
    variant: &'a Variant,
    statistics: Option<&'a Statistics>,
    gram: Option<Quadratic<'a>>,
    propagation: Option<Propagation>,
}

impl<'a> Rounding<'a> {
    fn new(
        variant: &'a Variant,
        form: Option<Form>,
        statistics: Option<&'a Statistics>,
    ) -> Result<Self> {
        let statistics = statistics.filter(|_| form.is_some());
        let gram = statistics.map(|s| Quadratic::new(&s.gram, s.k));
        let propagation = statistics
            .filter(|_| variant.method.has_gptq())
            .map(|s| Propagation::new(&s.gram, s.k, DAMPENING))
            .transpose()?;
        Ok(Self {
            variant,
            statistics,
            gram,
            propagation,
        })
    }

    fn matrix(
        &mut self,
        matrix: &Matrix,
        member: usize,
        form: Form,
        report: &mut ModuleReport,
    ) -> Result<PackedWeight> {
        let (shape, weights) = ([matrix.n, matrix.k], &matrix.weights);
        let packed = if !self.variant.mse
            && form.symmetric
            && !self.variant.method.has_awq()
            && self.propagation.is_none()
        {
            rtn::by_op(weights, shape, form)?
        } else {
            let (grids, clipped) = self.grids(matrix, member, form);
            report.clipped = clipped;
            match &self.propagation {
                None => rtn::to_nearest(weights, shape, &grids, form),
                Some(propagation) => {
                    report.dampening = Some(propagation.dampening);
                    propagation.round(weights, matrix.n, &grids, form)
                }
            }
        };
        packed
            .check()
            .map_err(|what| Error::Config(format!("{}: {what}", report.module)))?;
        report.error = Some(share_of(self.gram, weights, &dequantise(&packed)));
        Ok(packed)
    }

    /// The grids of a matrix, and the share of them that were made smaller than the range.
    fn grids(&self, matrix: &Matrix, member: usize, form: Form) -> (Vec<Grid>, Option<f64>) {
        let (weights, k) = (&matrix.weights, matrix.k);
        let whole = |group: &[f32]| of_range(group, form);
        let smaller = match self.statistics {
            // Queries and keys meet in a product, where a clipped outlier costs more than its own output says.
            Some(statistics) if self.variant.method.has_awq() && awq::clips(form) && member > 1 => {
                awq::clipped(matrix, statistics, form)
            }
            _ if self.variant.mse => grids(weights, k, form, |group| of_least_error(group, form)),
            _ => return (grids(weights, k, form, whole), None),
        };
        let all = grids(weights, k, form, whole);
        let changed = all.iter().zip(&smaller).filter(|(a, b)| a != b).count();
        let share = changed as f64 / all.len().max(1) as f64;
        (smaller, Some(share))
    }
}

/// The error of rounding every matrix to nearest over whole ranges, as a share.
fn nearest_errors(
    layer: &HostLayer,
    statistics: Option<&[Statistics; 4]>,
    forms: &[Option<Form>; 4],
) -> Result<[Option<f64>; 7]> {
    let mut errors = [None; 7];
    for site in Site::ALL {
        let Some(form) = forms[site.index()] else {
            continue;
        };
        let gram = statistics.map(|all| &all[site.index()]);
        let gram = gram.map(|s| Quadratic::new(&s.gram, s.k));
        for member in site.members() {
            let matrix = &layer.matrices[member];
            let grids = grids(&matrix.weights, matrix.k, form, |group| {
                of_range(group, form)
            });
            let rounded = nearest(&matrix.weights, &grids, form);
            errors[member] = Some(share_of(gram, &matrix.weights, &rounded));
        }
    }
    Ok(errors)
}

fn nearest(weights: &[f32], grids: &[Grid], form: Form) -> Vec<f32> {
    use rayon::prelude::*;
    let mut out = vec![0.0; weights.len()];
    out.par_chunks_mut(form.group)
        .zip(weights.par_chunks(form.group))
        .zip(grids)
        .for_each(
            |((out, weights), grid): ((&mut [f32], &[f32]), &grid::Grid)| {
                out.iter_mut()
                    .zip(weights)
                    .for_each(|(q, &w)| *q = grid.rounded(w));
            },
        );
    out
}

/// The squared error of `rounded` as a share of the squares of `weights`; of the outputs where there is a Gram matrix.
fn share_of(gram: Option<Quadratic<'_>>, weights: &[f32], rounded: &[f32]) -> f64 {
    let difference: Vec<f32> = weights.iter().zip(rounded).map(|(w, q)| w - q).collect();
    let size = |rows: &[f32]| match gram {
        Some(gram) => gram.sum(rows),
        None => rows.iter().map(|x| f64::from(x * x)).sum(),
    };
    let (error, whole) = (size(&difference), size(weights));
    if whole > 0.0 { error / whole } else { 0.0 }
}

/// A name for what this would write: the same for the same model, scheme, text and version of this program, whatever it
/// is written to.
pub fn content_key(model_digest: &str, wish: &Quantisation<'_>) -> String {
    let mut hasher = blake3::Hasher::new();
    let calibrated = wish.variant.method.is_calibrated();
    let parts = [
        concat!("candlepower ", env!("CARGO_PKG_VERSION"), " quantised 1").to_owned(),
        model_digest.to_owned(),
        format!("{:?} {:?}", wish.variant.weights, wish.variant.activations),
        format!(
            "{} {}",
            wish.variant.method_name(),
            if wish.variant.symmetric {
                "symmetric"
            } else {
                "asymmetric"
            }
        ),
        wish.kept.describe(),
        match wish.samples {
            Some(samples) if calibrated => {
                format!(
                    "{} {} {}",
                    samples.digest(),
                    wish.act.name(),
                    wish.device.kind()
                )
            }
            _ => String::new(),
        },
    ];
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// The folder of a checkpoint that is written but once for each key.
pub fn cached_folder(cache: &Path, key: &str) -> PathBuf {
    cache.join("quantised").join(key)
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::REPORT;
    use super::*;
    use crate::model::{ModelSpec, WeightsChoice};
    use crate::units::Seconds;

    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Seconds {
            Seconds(0.0)
        }
    }

    fn open(source: &str) -> Model {
        let spec = ModelSpec {
            source: source.to_owned(),
            revision: None,
            weights: WeightsChoice::AsStored,
            tokenizer: None,
        };
        Model::open(&spec).unwrap()
    }

    fn samples(model: &Model) -> Samples {
        let tokenizer = model.tokenizer.as_ref().unwrap();
        let ids = tokenizer.encode(crate::model::tiny_text(), true).unwrap();
        Samples::draw(&ids, 4, 64, 0).unwrap()
    }

    #[test]
    fn what_is_written_reads_back_bit_by_bit() {
        let model = open("tiny");
        let (samples, device, kept) = (samples(&model), Device::Cpu, Kept::default());
        for name in [
            "w4a16:gptq:g64",
            "w4a16:awq:asym:g32",
            "int8:gptq:asym",
            "w8a8:smoothquant",
            "w4a16:mse",
        ] {
            let variant: Variant = name.parse().unwrap();
            let run = Quantisation {
                model: &model,
                variant: &variant,
                kept: &kept,
                samples: Some(&samples),
                device: &device,
                act: DType::F32,
                clock: &Stopped,
            };
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("out");
            let reports = run.write(&out, false, &mut |_| Ok(())).unwrap();
            assert_eq!(reports.len(), model.config.layers);
            assert!(out.join(REPORT).is_file());
            // The first layer once more, by hand.
            let mut layer = HostLayer::read(&model, 0).unwrap();
            let assignment = run.assignment(DType::BF16).unwrap();
            let forms = assignment.forms(0).unwrap();
            let mut step = || Ok(());
            let statistics = variant.method.is_calibrated().then(|| {
                let mut decoder = Decoder::new(&model, &samples, &device, DType::F32).unwrap();
                let on_device = DeviceLayer::new(&device, DType::F32, &layer).unwrap();
                decoder.observe(&on_device, &mut step).unwrap()
            });
            let dtype = DType::BF16;
            let done = rounded(&mut layer, statistics, &forms, &variant, dtype, &mut step).unwrap();
            let read_back = open(out.to_str().unwrap());
            for (member, (packed, report)) in done.iter().enumerate() {
                let weight = format!("{}.weight", module(0, member));
                let found = read_back.weights.read_packed(&weight).unwrap();
                assert_eq!(Some(&found), packed.as_ref(), "{name}: {weight}");
                assert_eq!(report, &reports[0].modules[member]);
            }
            let norm = read(&read_back, "model.layers.0.input_layernorm.weight").unwrap();
            assert_eq!(norm, layer.attention_norm, "{name}");
            let table = "model.embed_tokens.weight";
            assert_eq!(
                read(&read_back, table).unwrap(),
                read(&model, table).unwrap()
            );
        }
    }

    #[test]
    fn scaling_a_layer_changes_nothing_that_it_computes() {
        let model = open("tiny");
        let (samples, device) = (samples(&model), Device::Cpu);
        for name in ["w4a16:awq", "w8a8:smoothquant"] {
            let variant: Variant = name.parse().unwrap();
            let kept = Kept::default();
            let assignment = Assignment {
                config: &model.config,
                variant: &variant,
                kept: &kept,
                dtype: DType::F32,
            };
            let forms = assignment.forms(1).unwrap();
            let through = |layer: &HostLayer| {
                let mut decoder = Decoder::new(&model, &samples, &device, DType::F32).unwrap();
                let on_device = DeviceLayer::new(&device, DType::F32, layer).unwrap();
                let statistics = decoder.observe(&on_device, &mut || Ok(())).unwrap();
                decoder.advance(&on_device, &mut || Ok(())).unwrap();
                (statistics, decoder.stream().concat())
            };
            let mut layer = HostLayer::read(&model, 1).unwrap();
            let (mut statistics, before) = through(&layer);
            let method = variant.method;
            let moved =
                transform::scale(&mut layer, &mut statistics, &forms, method, DType::F32).unwrap();
            assert!(moved.iter().any(|m| *m != Moved::default()), "{name}");
            let (_, after) = through(&layer);
            let largest = before.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            for (a, b) in before.iter().zip(&after) {
                assert!((a - b).abs() < 1e-4 * largest, "{name}: {a} {b}");
            }
        }
    }

    #[test]
    fn keys_tell_apart_what_would_be_written() {
        let model = open("tiny");
        let samples = samples(&model);
        let key = |name: &str, samples: Option<&Samples>| {
            let variant: Variant = name.parse().unwrap();
            let wish = Quantisation {
                model: &model,
                variant: &variant,
                kept: &Kept::default(),
                samples,
                device: &Device::Cpu,
                act: DType::F32,
                clock: &Stopped,
            };
            content_key("digest", &wish)
        };
        let all = [
            "w4a16:gptq",
            "w4a16:gptq:asym",
            "w4a16:gptq:g64",
            "w4a16:awq",
            "int8:gptq",
        ];
        let keys: std::collections::BTreeSet<String> =
            all.iter().map(|name| key(name, Some(&samples))).collect();
        assert_eq!(keys.len(), all.len());
        // What reads no text does not depend on one.
        assert_eq!(key("w4a16:mse", None), key("w4a16:mse", Some(&samples)));
        assert_eq!(
            key("w4a16:gptq", Some(&samples)),
            key("w4a16:gptq:g128", Some(&samples))
        );
    }
}
