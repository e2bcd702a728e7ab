//! Flags that several commands share, and what they become.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::list::Numbers;
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::Interrupt;
use crate::measure::trial::{StopRule, Until, WarmUp};
use crate::model::{Model, ModelSpec, WeightsChoice};
use crate::quality::{Protocol, Rule, TextFormat};
use crate::results::environment::Ceilings;
use crate::results::record::Cell;
use crate::scheme::{DType, KvFormat, Variant};
use crate::study::{
    BasePlan, Calibration, DeviceChoice, Effort, EnergyPlan, EngineKind, QualityPlan, Quantising,
    Switches, ceilings, notice, open_device,
};
use crate::units::Seconds;

/// Context of a perplexity with the embedded model, whose text is short.
const TINY_CONTEXT: usize = 256;
/// How long a cell is repeated at most for what noise may never allow, unless a limit is given.
const LONGEST_UNTIL: Seconds = Seconds(60.0);
/// Tokens of a base that are kept one by one.
const TOP_K: usize = 256;

#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelFlags {
    /// `dummy` makes weights up from a seed, with the true shapes: any preset can be timed without a download
    #[arg(long, value_enum, default_value_t = WeightsFlag::Stored)]
    pub(super) weights: WeightsFlag,
    /// Seed of dummy weights
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(super) weights_seed: u64,
    /// Branch, tag or commit of a hub model
    #[arg(long, value_name = "REV")]
    pub(super) revision: Option<String>,
    /// A tokenizer.json to use instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub(super) tokenizer: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum WeightsFlag {
    /// The model's own.
    Stored,
    /// Made up from a seed.
    Dummy,
}

impl ModelFlags {
    /// Opens a model and says on standard error what becomes of it in `variant`, if that is not plain to see.
    pub(super) fn open(&self, source: &str, variant: &Variant) -> Result<Model> {
        let model = Model::open(&self.spec(source))?;
        if let Some(notice) = notice(&model, variant)? {
            super::progress::say(&notice);
        }
        Ok(model)
    }

    pub(super) fn spec(&self, source: &str) -> ModelSpec {
        ModelSpec {
            source: source.to_owned(),
            revision: self.revision.clone(),
            weights: match self.weights {
                WeightsFlag::Stored => WeightsChoice::AsStored,
                WeightsFlag::Dummy => WeightsChoice::Dummy {
                    seed: self.weights_seed,
                },
            },
            tokenizer: self.tokenizer.clone(),
        }
    }
}

#[derive(Args)]
#[command(next_help_heading = "Calibration")]
pub(super) struct CalibrationFlags {
    /// Text that gptq, awq and smoothquant look at, never the one that is scored: a file, or wikitext2 (the training split,
    /// from the hub)
    #[arg(long, value_name = "FILE")]
    pub(super) calibrate: Option<PathBuf>,
    /// Runs of tokens that are taken from it
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = parse_positive)]
    pub(super) calibration_samples: usize,
    /// Tokens of each
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = parse_positive)]
    pub(super) calibration_length: usize,
    /// Chooses the runs
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(super) calibration_seed: u64,
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
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(super) chunk: Option<usize>,
    /// Whether a GPU does several ops in one launch where that should be faster, with the same results, or op by op
    /// [default: on]
    #[arg(long, value_enum, value_name = "on|off")]
    fuse: Option<Switch>,
}

/// How one variant's KV cache is held.
#[derive(Args)]
#[command(next_help_heading = "Device")]
pub(super) struct KvFlag {
    /// How the KV cache is held: auto (in the type of the activations), int8 or fp8, with a scale for each head and position
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
        self.with_switches(self.device.open()?)
    }

    /// Opens the device.
    pub(super) fn open_quietly(&self) -> Result<Device> {
        self.with_switches(self.device.open_quietly()?.0)
    }

    fn with_switches(&self, device: Device) -> Result<Device> {
        match (self.fuse(), &device) {
            (Some(enabled), Device::Gpu(gpu)) => gpu.set_fused(enabled),
            (Some(_), Device::Cpu) => {
                return Err(Error::Usage(
                    "--fuse is for a GPU: on the CPU there are no launches".into(),
                ));
            }
            (None, _) => {}
        }
        Ok(device)
    }

    pub(super) fn fuse(&self) -> Option<bool> {
        self.fuse.map(|switch| switch == Switch::On)
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

pub(super) fn parse_positive(s: &str) -> Result<usize, String> {
    match s.parse() {
        Ok(0) | Err(_) => Err("expected a whole number above 0".into()),
        Ok(n) => Ok(n),
    }
}

/// A share from a percentage.
pub(super) fn parse_percent(s: &str) -> Result<f64, String> {
    match s.trim_end_matches('%').trim_end().parse::<f64>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x / 100.0),
        _ => Err("expected a percentage, such as 2% or 0.5%".into()),
    }
}

pub(super) fn parse_seconds(s: &str) -> Result<Seconds, String> {
    match s.trim_end_matches('s').parse::<f64>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(Seconds(x)),
        _ => Err("expected seconds, such as 3 or 0.5".into()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum EngineFlag {
    /// This program's own forward pass
    Candlepower,
    /// candle-transformers' model of the same weights
    Candle,
    /// candle-transformers' quantised model of a GGUF file
    CandleGguf,
}

impl EngineFlag {
    pub(super) fn kind(self) -> EngineKind {
        match self {
            Self::Candlepower => EngineKind::Candlepower,
            Self::Candle => EngineKind::Candle,
            Self::CandleGguf => EngineKind::CandleGguf,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    /// As usual
    On,
    /// Without it
    Off,
}

#[derive(Args)]
#[command(next_help_heading = "Speed")]
pub(super) struct SpeedFlags {
    /// Sequences side by side; lists and ranges as in 1,2,4 or 1-64*2
    #[arg(long, default_value = "1,2,4,8", value_name = "LIST")]
    pub(super) batch: Numbers,
    /// Prompt tokens of each
    #[arg(long, default_value = "128", value_name = "LIST")]
    pub(super) prompt: Numbers,
    /// Tokens generated for each
    #[arg(long = "gen", default_value = "64", value_name = "LIST")]
    pub(super) generate: Numbers,
    /// Tokens already in the cache before the prompt
    #[arg(long, default_value = "0", value_name = "LIST")]
    pub(super) depth: Numbers,
    /// How the KV cache is held: auto (in the type of the activations), int8 or fp8, with a scale for each head and position;
    /// every variant runs with each format of the list
    #[arg(
        long = "kv-cache",
        default_value = "auto",
        value_delimiter = ',',
        value_name = "LIST"
    )]
    pub(super) kv: Vec<KvFormat>,
    /// What runs the model
    #[arg(long, value_enum, default_value_t = EngineFlag::Candlepower)]
    pub(super) engine: EngineFlag,
    /// Whether a GPU records each decode step once and replays it as a CUDA graph, or launches kernel by kernel [default: on]
    #[arg(long, value_enum, value_name = "on|off")]
    pub(super) graphs: Option<Switch>,
    /// Whether a kernel may start while the one before it ends (programmatic dependent launch, from compute capability 9
    /// on) [default: on]
    #[arg(long, value_enum, value_name = "on|off")]
    pub(super) pdl: Option<Switch>,
    /// Whether a GPU decodes a token of one sequence in one launch (a persistent kernel), where there is one for the model's
    /// weights and heads [default: off]
    #[arg(long, value_enum, value_name = "on|off")]
    pub(super) persistent: Option<Switch>,
    /// At least this many trials of each cell
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = parse_positive)]
    pub(super) trials: usize,
    /// And at least for this long, in seconds
    #[arg(long, default_value = "3", value_name = "SECONDS", value_parser = parse_seconds)]
    pub(super) min_time: Seconds,
    /// Goes on until half of the 95 % interval of the medians of TTFT and ITL is no more than this share of them
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub(super) precision: Option<f64>,
    /// Goes on until more trials no longer change how noisy TTFT and ITL are; with --precision, until one of the two holds
    #[arg(long)]
    pub(super) until_stable: bool,
    /// But no longer than this, in seconds, whatever the number of trials [default: 60 with --precision or --until-stable]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(super) max_time: Option<Seconds>,
    /// Trials of each cell that run before the first counted one
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(super) warmup: usize,
    /// Length of each of the two windows that energy is measured over on a GPU, in seconds; 0 for none
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = parse_seconds)]
    energy_window: Seconds,
    /// How long the same work runs before each window, in seconds
    #[arg(long, default_value = "3", value_name = "SECONDS", value_parser = parse_seconds)]
    energy_preroll: Seconds,
    /// How long each loaded variant's idle power is watched, in seconds; 0 for not at all
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = parse_seconds)]
    idle_window: Seconds,
    /// Seed of the random prompts
    #[arg(long, default_value_t = 42, value_name = "N")]
    pub(super) seed: u64,
    /// Leaves the measured ceilings out, and the share of them that speeds reach
    #[arg(long)]
    pub(super) no_ceilings: bool,
}

impl SpeedFlags {
    /// Every combination, batch innermost.
    pub(super) fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &depth in &self.depth.0 {
            for &prompt in &self.prompt.0 {
                for &generate in &self.generate.0 {
                    for &batch in &self.batch.0 {
                        let cell = Cell {
                            batch,
                            prompt,
                            generate,
                            depth,
                        };
                        if !cells.contains(&cell) {
                            cells.push(cell);
                        }
                    }
                }
            }
        }
        cells
    }

    pub(super) fn switches(&self) -> Switches {
        let state = |switch: Option<Switch>| switch.map(|switch| switch == Switch::On);
        Switches {
            graphs: state(self.graphs),
            fuse: None,
            overlap: state(self.pdl),
            persistent: state(self.persistent),
        }
    }

    /// The device's ceilings, measured now, unless they are not wanted.
    pub(super) fn ceilings(
        &self,
        device: &Device,
        interrupt: &Interrupt,
    ) -> Result<Option<Ceilings>> {
        if self.no_ceilings {
            return Ok(None);
        }
        super::progress::say("measuring the device's ceilings");
        ceilings(device, Effort::Brief, interrupt).map(Some)
    }

    pub(super) fn energy(&self) -> EnergyPlan {
        EnergyPlan {
            window: self.energy_window,
            pre_roll: self.energy_preroll,
            idle: self.idle_window,
        }
    }

    pub(super) fn rule(&self) -> StopRule {
        let until = Until {
            precision: self.precision,
            stable: self.until_stable,
        };
        let may_never_hold = (until != Until::NOTHING).then_some(LONGEST_UNTIL);
        StopRule {
            min_trials: self.trials,
            min_time: self.min_time,
            until,
            max_trials: None,
            max_time: self.max_time.or(may_never_hold),
        }
    }

    pub(super) fn warm_up(&self) -> WarmUp {
        WarmUp {
            min_trials: self.warmup,
            ..WarmUp::default()
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FormatFlag {
    /// Recognised by content
    Auto,
    /// Rows of a raw WikiText file, joined with blank lines
    Rows,
    /// Pages of a raw WikiText file, each a document, as lm_eval writes them
    Pages,
    /// The file as it is
    Plain,
    /// A JSON object a line
    Jsonl,
}

impl FormatFlag {
    fn format(self) -> TextFormat {
        match self {
            Self::Auto => TextFormat::Auto,
            Self::Rows => TextFormat::Rows,
            Self::Pages => TextFormat::Pages,
            Self::Plain => TextFormat::Plain,
            Self::Jsonl => TextFormat::Jsonl,
        }
    }
}

/// The text that `ppl` and `study` score, and how it is cut.
#[derive(Args)]
#[command(next_help_heading = "Quality")]
pub(super) struct TextFlags {
    /// Text to score: a file, a folder, or wikitext2 (from the hub) [default: the text that comes with tiny]
    #[arg(long, value_name = "PATH")]
    text: Option<PathBuf>,
    /// How a file becomes a text
    #[arg(long, value_enum, default_value_t = FormatFlag::Auto)]
    text_format: FormatFlag,
    /// The field of JSON lines that holds the text [default: text]
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// How the text is cut and scored: gptq, llama.cpp, sliding or lm_eval; their figures do not compare
    #[arg(long, value_name = "NAME", default_value_t = Rule::Gptq)]
    protocol: Rule,
    /// Tokens from one window of --protocol sliding to the next [default: half of the context]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    stride: Option<usize>,
    /// Folder that keeps what the base predicts, for variants to be compared with; a file in it serves every later run of
    /// the same base on the same text [default: base-logits in candlepower's cache folder; of a study, in its own folder]
    #[arg(long, value_name = "DIR")]
    base_logits: Option<PathBuf>,
    /// How many of the base's most likely tokens are kept one by one, the rest as one: a number, or all [default: 256]
    #[arg(long, value_name = "K", value_parser = parse_top_k)]
    base_top_k: Option<TopK>,
}

/// A number of tokens, or all.
#[derive(Clone, Copy)]
struct TopK(Option<usize>);

fn parse_top_k(s: &str) -> Result<TopK, String> {
    match s.parse() {
        _ if s == "all" => Ok(TopK(None)),
        Ok(0) | Err(_) => Err("expected a whole number above 0, or all".into()),
        Ok(k) => Ok(TopK(Some(k))),
    }
}

impl TextFlags {
    /// How the predictions of a base are kept, in `usual` unless the flag names another folder.
    pub(super) fn base(&self, usual: Option<PathBuf>) -> Result<BasePlan> {
        let folder = self.base_logits.clone().or(usual).ok_or_else(|| {
            Error::Usage("there is no cache folder for the base: give --base-logits DIR".into())
        })?;
        if folder.exists() && !folder.is_dir() {
            return Err(Error::Usage(format!(
                "--base-logits {} is a file, not a folder",
                folder.display()
            )));
        }
        Ok(BasePlan {
            folder,
            top_k: self.base_top_k.map_or(Some(TOP_K), |k| k.0),
        })
    }

    /// Refuses the flags of a base where there is none, because of `why`.
    pub(super) fn without_base(&self, why: &str) -> Result<()> {
        let given = [
            (self.base_logits.is_some(), "--base-logits"),
            (self.base_top_k.is_some(), "--base-top-k"),
        ];
        match given.iter().find(|(given, _)| *given) {
            Some((_, flag)) => Err(Error::Usage(format!("{flag} is for a comparison: {why}"))),
            None => Ok(()),
        }
    }

    /// What is scored, if `model` decides the usual context.
    pub(super) fn plan(
        &self,
        context: Option<usize>,
        segments: Option<usize>,
        model: &str,
    ) -> Result<QualityPlan> {
        let usual = if model.eq_ignore_ascii_case("tiny") {
            TINY_CONTEXT
        } else {
            self.protocol.usual_context()
        };
        let plan = QualityPlan {
            text: self.text.clone(),
            format: self.text_format.format(),
            field: self.field.clone(),
            protocol: Protocol {
                rule: self.protocol,
                context: context.unwrap_or(usual),
                stride: self.stride,
                segments,
            },
            base: None,
            under_load: false,
        };
        plan.protocol.check()?;
        Ok(plan)
    }
}
