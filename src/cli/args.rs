//! Flags that several commands share, and what they become.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::parse;
use super::switches::FuseFlag;
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::model::{Model, ModelSpec, WeightsChoice};
use crate::quality::TextFormat;
use crate::scheme::{DType, KvFormat, Variant};
use crate::study::{Calibration, DeviceChoice, Quantising, notice, open_device};

#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelFlags {
    /// `dummy` makes weights up from a seed, with the true shapes: any preset can be timed without a download
    #[arg(long, value_enum, default_value_t = WeightsFlag::Stored)]
    pub(super) weights: WeightsFlag,
    /// Seed of dummy weights [default: 0]
    #[arg(long, value_name = "N")]
    weights_seed: Option<u64>,
    /// Branch, tag or commit of a hub model
    #[arg(long, value_name = "REV")]
    revision: Option<String>,
    /// A tokenizer.json to use instead of the model's own
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum WeightsFlag {
    /// The model's own.
    Stored,
    /// Made up from a seed.
    Dummy,
}

impl ModelFlags {
    /// Opens a model and says on standard error what of it is not used, and what becomes of it in these variants, if that
    /// is not plain to see.
    pub(super) fn open(&self, source: &str, variants: &[Variant]) -> Result<Model> {
        let model = Model::open(&self.spec(source)?)?;
        for remark in &model.remarks {
            super::progress::say(remark);
        }
        for variant in variants {
            if let Some(notice) = notice(&model, variant)? {
                super::progress::say(&notice);
            }
        }
        Ok(model)
    }

    /// What of `source` is opened.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is a seed and nothing is made up from it.
    pub(super) fn spec(&self, source: &str) -> Result<ModelSpec> {
        let weights = match (self.weights, self.weights_seed) {
            (WeightsFlag::Stored, None) => WeightsChoice::AsStored,
            (WeightsFlag::Stored, Some(seed)) => {
                return Err(Error::Usage(format!(
                    "--weights-seed {seed} is for made-up weights: add --weights dummy, or leave it out"
                )));
            }
            (WeightsFlag::Dummy, seed) => WeightsChoice::Dummy {
                seed: seed.unwrap_or_default(),
            },
        };
        Ok(ModelSpec {
            source: source.to_owned(),
            revision: self.revision.clone(),
            weights,
            tokenizer: self.tokenizer.clone(),
        })
    }

    /// A flag of these that was given, which is in vain where no model is opened.
    pub(super) fn given(&self) -> Option<&'static str> {
        first_given(&[
            (self.weights == WeightsFlag::Dummy, "--weights"),
            (self.weights_seed.is_some(), "--weights-seed"),
            (self.revision.is_some(), "--revision"),
            (self.tokenizer.is_some(), "--tokenizer"),
        ])
    }
}

/// The help of a flag that names variants, which ends in what is the flag's own.
pub(super) fn variants_help(own: &str) -> String {
    format!("{}{own}", Variant::NOTATION)
}

/// The first flag of a list that was given.
pub(super) fn first_given(flags: &[(bool, &'static str)]) -> Option<&'static str> {
    let given = flags.iter().find(|(given, _)| *given);
    given.map(|(_, flag)| *flag)
}

#[derive(Args)]
#[command(next_help_heading = "Calibration")]
pub(super) struct CalibrationFlags {
    /// Text that gptq, awq and smoothquant look at, never the one that is scored: a file, or wikitext2 (the training split,
    /// from the hub)
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Runs of tokens that are taken from it
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = parse::positive, requires = "calibrate")]
    calibration_samples: usize,
    /// Tokens of each
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = parse::positive, requires = "calibrate")]
    calibration_length: usize,
    /// Chooses the runs
    #[arg(long, default_value_t = 0, value_name = "N", requires = "calibrate")]
    calibration_seed: u64,
}

impl CalibrationFlags {
    pub(super) fn calibration(&self) -> Option<Calibration> {
        self.calibrate.as_ref().map(|text| Calibration {
            text: text.clone(),
            format: TextFormat::Auto,
            samples: self.calibration_samples,
            length: self.calibration_length,
            seed: self.calibration_seed,
        })
    }

    /// How those of `variants` are made that are not made on loading.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is a text to calibrate on and none of them does.
    pub(super) fn quantising(&self, variants: &[Variant]) -> Result<Quantising> {
        if let (Some(text), false) = (
            &self.calibrate,
            variants.iter().any(|v| v.method.is_calibrated()),
        ) {
            let names: Vec<&str> = variants.iter().map(|v| v.name.as_str()).collect();
            return Err(Error::Usage(format!(
                "--calibrate {}: nothing of {} is calibrated; name a method, as in w4a16:gptq, w4a16:awq or \
                 w8a8:smoothquant, or leave the flag out",
                text.display(),
                names.join(", ")
            )));
        }
        Ok(Quantising {
            calibration: self.calibration(),
            cache: cache_folder(),
        })
    }
}

#[derive(Args)]
#[command(next_help_heading = "Device")]
pub(super) struct DeviceFlags {
    /// auto (a GPU if built for one and present, else the CPU), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE", value_parser = parse_device)]
    pub(super) device: DeviceChoice,
    /// Threads on the CPU [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) threads: Option<u16>,
}

#[derive(Args)]
#[command(next_help_heading = "Device")]
pub(super) struct EngineFlags {
    #[command(flatten)]
    device: DeviceFlags,
    /// Type of the activations: f32, f16 or bf16 [default: f32 on the CPU, the checkpoint's 16-bit type on a GPU]
    #[arg(long, value_name = "DTYPE")]
    pub(super) dtype: Option<DType>,
    /// Tokens of one forward pass; longer prompts go in chunks [default: 512 on the CPU, 8192 on a GPU]
    #[arg(long, value_name = "N", value_parser = parse::positive)]
    pub(super) chunk: Option<usize>,
}

/// How one variant's KV cache is held.
#[derive(Args)]
#[command(next_help_heading = "Device")]
pub(super) struct KvFlag {
    /// How the KV cache is held: auto (in the type of the activations), int8 or fp8, with a scale for each head and
    /// position
    #[arg(long = "kv-cache", default_value_t = KvFormat::Auto, value_name = "FORMAT")]
    pub(super) kv: KvFormat,
}

impl DeviceFlags {
    /// Opens the device and says which it is on standard error.
    pub(super) fn open(&self) -> Result<Device> {
        let (device, why) = self.open_quietly()?;
        super::progress::say(&format!("device: {} ({why})", device.kind()));
        Ok(device)
    }

    /// Opens the device and gives the reason why it is this one.
    fn open_quietly(&self) -> Result<(Device, String)> {
        if let Some(threads) = self.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(usize::from(threads))
                .build_global()
                .map_err(|e| Error::Internal(format!("cannot start {threads} threads: {e}")))?;
        }
        let (device, why) = open_device(self.device)?;
        if let (Device::Gpu(gpu), Some(folder)) = (&device, cache_folder()) {
            gpu.keep_choices(&folder);
        }
        Ok((device, why))
    }
}

impl EngineFlags {
    /// Opens the device and says which it is on standard error.
    pub(super) fn open(&self) -> Result<Device> {
        self.device.open()
    }

    /// Opens the device.
    pub(super) fn open_quietly(&self) -> Result<Device> {
        Ok(self.device.open_quietly()?.0)
    }

    /// Opens the device, says which it is on standard error, and switches it as `fuse` says.
    pub(super) fn open_switched(&self, fuse: &FuseFlag) -> Result<Device> {
        let device = self.open()?;
        fuse.apply(&device)?;
        Ok(device)
    }
}

/// Where what was found out about a device is kept: `CANDLEPOWER_CACHE`, or nowhere if that is empty; else `candlepower`
/// in the user's cache folder.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from);
    if let Some(named) = of("CANDLEPOWER_CACHE") {
        return (!named.as_os_str().is_empty()).then_some(named);
    }
    let own = of("XDG_CACHE_HOME").filter(|folder| folder.is_absolute());
    let caches = own.or_else(|| of("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("candlepower"))
}

fn parse_device(s: &str) -> Result<DeviceChoice, String> {
    match s.split_once(':') {
        None if s == "auto" => Ok(DeviceChoice::Auto),
        None if s == "cpu" => Ok(DeviceChoice::Cpu),
        None if s == "cuda" => Ok(DeviceChoice::Cuda(0)),
        Some(("cuda", n)) => n
            .parse()
            .map(DeviceChoice::Cuda)
            .map_err(|_| format!("'{n}' is no GPU number")),
        _ => Err("expected auto, cpu, cuda or cuda:N".into()),
    }
}
