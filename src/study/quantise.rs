//! Variants that no loading makes: the calibration text, the checkpoint that a quantiser writes of it, and where that is
//! kept for the next time.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::facts;
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::SystemClock;
use crate::model::{Model, ModelSpec, WeightsChoice};
use crate::quality::{Reading, Text, TextFormat};
use crate::quant::{self, Kept, LayerReport, Quantisation, Samples, Sensitivity};
use crate::scheme::{DType, Variant};
use crate::units::Bytes;

/// How variants are made that are not made on loading.
#[derive(Debug, Clone, Default)]
pub struct Quantising {
    /// What calibrated methods read.
    pub calibration: Option<Calibration>,
    /// Where quantised checkpoints are kept; for this run alone where `None`.
    pub cache: Option<PathBuf>,
}

/// A text to calibrate on, and what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibration {
    /// The file, or `wikitext2` for WikiText-2's training split from the hub.
    pub text: PathBuf,
    /// How the file becomes a text.
    pub format: TextFormat,
    /// Runs of tokens.
    pub samples: usize,
    /// Tokens of each.
    pub length: usize,
    /// Chooses the runs.
    pub seed: u64,
}

/// The name that stands for WikiText-2 from the hub, unless a file has it.
const WIKITEXT: &str = "wikitext2";
/// The share of a calibration text's runs of tokens that may occur in the text that is scored: quotations, no more.
const OVERLAP: f64 = 0.05;

impl Calibration {
    /// The runs of tokens that `model` reads.
    ///
    /// # Errors
    /// If the text cannot be read or is too short, the model has no tokenizer, or the text is the one that is scored.
    pub fn samples(&self, model: &Model, scored: Option<&[u32]>) -> Result<Samples> {
        let reading = Reading {
            format: self.format,
            wikitext: TextFormat::Rows,
            field: None,
        };
        let text = if self.text.as_os_str() == WIKITEXT && !self.text.exists() {
            Text::wikitext2_train(&reading)?
        } else {
            Text::read(&self.text, &reading)?
        };
        let tokenizer = model.tokenizer.as_ref().ok_or_else(|| {
            Error::Config(format!(
                "{} has no tokenizer, so no text can be read for calibration: give --tokenizer FILE",
                model.name
            ))
        })?;
        let ids = tokenizer.encode(&text.stream(), true)?;
        let samples = Samples::draw(&ids, self.samples, self.length, self.seed)?;
        let shared = scored.map_or(0.0, |scored| samples.overlap(scored));
        if shared > OVERLAP {
            return Err(Error::Usage(format!(
                "--calibrate {}: {:.0} % of its runs of 16 tokens are in the text that is scored, which would flatter the \
                 calibrated variants: give another text",
                self.text.display(),
                100.0 * shared
            )));
        }
        Ok(samples)
    }
}

/// A model in the variant that it is to be loaded in.
pub(super) enum Source<'a> {
    /// As it is: what the variant asks for happens on loading.
    Given(&'a Model, &'a Variant),
    /// As a checkpoint that was quantised from it.
    Made(Box<Made>),
}

/// A quantised checkpoint.
pub(super) struct Made {
    model: Model,
    variant: Variant,
    /// Where it lies, and whether it lay there before.
    pub(super) folder: PathBuf,
    pub(super) found: bool,
    /// Removes the folder once the checkpoint has been loaded, where nothing is kept.
    _scratch: Option<TempDir>,
}

impl Source<'_> {
    pub(super) fn model(&self) -> &Model {
        match self {
            Self::Given(model, _) => model,
            Self::Made(made) => &made.model,
        }
    }

    pub(super) fn variant(&self) -> &Variant {
        match self {
            Self::Given(_, variant) => variant,
            Self::Made(made) => &made.variant,
        }
    }

    /// The checkpoint that was made or found, in a line for whoever watches.
    pub(super) fn told(&self) -> Option<String> {
        let Self::Made(made) = self else { return None };
        let size = Bytes(made.model.origin.file_bytes);
        Some(match (made.found, &made._scratch) {
            (true, _) => format!("quantised before: {} ({size})", made.folder.display()),
            (false, None) => format!("quantised, kept in {} ({size})", made.folder.display()),
            (false, Some(_)) => format!("quantised, not kept ({size})"),
        })
    }
}

impl Quantising {
    /// Refuses calibrated variants without a text.
    ///
    /// # Errors
    /// [`Error::Usage`] that names variant and flag.
    pub(super) fn check(&self, variants: &[Variant]) -> Result<()> {
        let calibrated = variants.iter().find(|v| v.method.is_calibrated());
        match (calibrated, &self.calibration) {
            (Some(variant), None) => Err(quant::no_calibration(variant)),
            _ => Ok(()),
        }
    }

    /// What calibrated variants of `model` read; `None` where none of `variants` is one.
    ///
    /// # Errors
    /// As [`Calibration::samples`], and where there is no text.
    pub(super) fn samples(
        &self,
        model: &Model,
        variants: &[Variant],
        scored: Option<&[u32]>,
    ) -> Result<Option<Samples>> {
        self.check(variants)?;
        match &self.calibration {
            Some(calibration) if variants.iter().any(|v| v.method.is_calibrated()) => {
                calibration.samples(model, scored).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// What is to be loaded for `variant` of `model`: the model itself, or a checkpoint that is quantised from it now or
    /// was before. What `watch` returns stops the quantising.
    ///
    /// # Errors
    /// If a checkpoint is needed and cannot be made or opened.
    pub(super) fn source<'a>(
        &self,
        model: &'a Model,
        variant: &'a Variant,
        samples: Option<&Samples>,
        device: &Device,
        act: DType,
        watch: QuantiseWatch<'_>,
    ) -> Result<Source<'a>> {
        if variant.is_made_on_load() {
            return Ok(Source::Given(model, variant));
        }
        if model.weights.dummy().is_some() {
            return Err(Error::Usage(format!(
                "'{variant}' looks at weights, and those of {} are made up: its speed is that of {}",
                model.name,
                variant.name.split(':').next().unwrap_or_default()
            )));
        }
        let (kept, clock) = (Kept::default(), SystemClock::new());
        let run = Quantisation {
            model,
            variant,
            kept: &kept,
            samples,
            device,
            act,
            clock: &clock,
        };
        let key = quant::content_key(&facts::model(model)?.digest, &run);
        let (folder, scratch) = match &self.cache {
            Some(cache) => (quant::cached_folder(cache, &key), None),
            None => {
                let scratch = tempfile::tempdir().map_err(|e| {
                    Error::writing(std::env::temp_dir(), "cannot create a folder in", e)
                })?;
                (scratch.path().join(&key), Some(scratch))
            }
        };
        let found = folder.join("config.json").is_file();
        if !found {
            run.write(&folder, true, watch)?;
        }
        let spec = ModelSpec {
            source: folder.to_string_lossy().into_owned(),
            revision: None,
            weights: WeightsChoice::AsStored,
            tokenizer: None,
        };
        Ok(Source::Made(Box::new(Made {
            model: Model::open(&spec)?,
            variant: Variant::as_is(),
            folder,
            found,
            _scratch: scratch,
        })))
    }
}

/// The method of a calibrated variant with what it read, so that another text is another point.
pub(super) fn describe_method(variant: &Variant, samples: Option<&Samples>) -> String {
    let name = variant.method_name();
    match samples.filter(|_| variant.method.is_calibrated()) {
        None => name,
        Some(samples) => {
            let digest = samples.digest();
            let short = digest.rsplit(':').next().map_or("", |hash| &hash[..8]);
            let (rows, length) = (samples.rows.len(), samples.length);
            format!("{name}, calibrated on {rows} x {length} tokens {short}")
        }
    }
}

/// Who wants to know how far quantising is: what is done, and the share of it.
pub type QuantiseWatch<'a> = &'a mut dyn FnMut(quant::Progress<'_>) -> Result<()>;

/// A checkpoint to write.
pub struct CheckpointWish<'a> {
    /// The model.
    pub model: &'a Model,
    /// What its linear layers become.
    pub variant: &'a Variant,
    /// The layers that do not.
    pub kept: &'a Kept,
    /// What calibrated methods read.
    pub calibration: Option<&'a Calibration>,
    /// Where the model reads it.
    pub device: &'a Device,
    /// The type of activations there.
    pub act: DType,
}

impl CheckpointWish<'_> {
    /// What quantising each part alone costs, the costliest first.
    ///
    /// # Errors
    /// As [`Quantisation::sensitivity`]; what `watch` returns stops it.
    pub fn sensitivity(&self, watch: QuantiseWatch<'_>) -> Result<Vec<Sensitivity>> {
        let calibration = self
            .calibration
            .ok_or_else(|| quant::no_calibration(self.variant))?;
        let samples = calibration.samples(self.model, None)?;
        let clock = SystemClock::new();
        self.run(Some(&samples), &clock).sensitivity(watch)
    }

    fn run<'a>(&'a self, samples: Option<&'a Samples>, clock: &'a SystemClock) -> Quantisation<'a> {
        Quantisation {
            model: self.model,
            variant: self.variant,
            kept: self.kept,
            samples,
            device: self.device,
            act: self.act,
            clock,
        }
    }

    /// Writes the checkpoint to `out`.
    ///
    /// # Errors
    /// As [`Quantisation::write`]; what `watch` returns stops it.
    pub fn write(
        &self,
        out: &Path,
        replace: bool,
        watch: QuantiseWatch<'_>,
    ) -> Result<Vec<LayerReport>> {
        let samples = match (self.variant.method.is_calibrated(), self.calibration) {
            (true, Some(calibration)) => Some(calibration.samples(self.model, None)?),
            (true, None) => return Err(quant::no_calibration(self.variant)),
            (false, _) => None,
        };
        let clock = SystemClock::new();
        self.run(samples.as_ref(), &clock)
            .write(out, replace, watch)
    }
}
