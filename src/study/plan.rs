//! What a run is to measure, checked before anything is loaded.

use std::path::PathBuf;

use super::bench::chunk_for;
use super::energy::EnergyPlan;
use super::quantise::Quantising;
use super::runner::check_kv;
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::trial::{StopRule, WarmUp};
use crate::model::ModelSpec;
use crate::quality::tasks::{Limit, Suite};
use crate::quality::{Protocol, Reading, TextFormat};
use crate::results::record::Cell;
use crate::scheme::{DType, KvFormat, Variant};

/// Everything that a run is told.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The models; each one's first variant is its base.
    pub models: Vec<ModelSpec>,
    /// The variants of each.
    pub variants: Vec<Variant>,
    /// The cells of each variant, in the order in which they run.
    pub cells: Vec<Cell>,
    /// The text to score, if any.
    pub quality: Option<QualityPlan>,
    /// The tasks to score, if any.
    pub tasks: Option<TaskPlan>,
    /// How variants are made that are not made on loading.
    pub quantising: Quantising,
    /// The type of activations; the device's default where `None`.
    pub act: Option<DType>,
    /// Formats of the KV cache: every variant runs with each.
    pub kv: Vec<KvFormat>,
    /// What runs the model.
    pub engine: EngineKind,
    /// What the engine does without.
    pub switches: Switches,
    /// Tokens of one step; longer prompts go in chunks. The device's default where `None`.
    pub chunk: Option<usize>,
    /// How often a cell is repeated.
    pub rule: StopRule,
    /// How many turns variants of a model take at each cell, the trials of the rule divided among them; with one, each
    /// variant is timed after the other.
    pub turns: usize,
    /// What runs before the first counted trial of a cell.
    pub warm_up: WarmUp,
    /// How long energy is measured.
    pub energy: EnergyPlan,
    /// Chooses the random prompts.
    pub seed: u64,
    /// Measures points anew that are on record.
    pub force: bool,
}

/// What may be switched off, to see what it is worth. `None` for the device's habit, which is on wherever it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Switches {
    /// Whether decode steps are recorded once and replayed as a CUDA graph.
    pub graphs: Option<bool>,
    /// Whether ops share launches as [`StepPlan`](crate::engine::StepPlan) says.
    pub fuse: Option<bool>,
    /// Whether a kernel may start while the one before it ends (programmatic dependent launch).
    pub overlap: Option<bool>,
    /// Whether decode steps of one sequence are one launch (a persistent kernel); the habit is that they are not.
    pub persistent: Option<bool>,
}

impl Switches {
    /// Each switch with its flag, and how records name an engine where it is not as by habit.
    fn each(&self) -> [(Option<bool>, &'static str, Option<&'static str>); 4] {
        let unlike =
            |switch: Option<bool>, habit: bool, name| (switch == Some(!habit)).then_some(name);
        [
            (
                self.graphs,
                "--graphs",
                unlike(self.graphs, true, "launch by launch"),
            ),
            (self.fuse, "--fuse", unlike(self.fuse, true, "op by op")),
            (
                self.overlap,
                "--pdl",
                unlike(self.overlap, true, "no overlap"),
            ),
            (
                self.persistent,
                "--persistent",
                unlike(self.persistent, false, "one launch"),
            ),
        ]
    }

    /// From everything off to everything as it is by habit, one more at each step: last what counts only once launches are
    /// cheap.
    pub(super) fn ladder() -> Vec<Self> {
        let off = Some(false);
        let steps = [
            (off, off, off),
            (None, off, off),
            (None, None, off),
            (None, None, None),
        ];
        let with = |(graphs, fuse, overlap)| Self {
            graphs,
            fuse,
            overlap,
            persistent: None,
        };
        steps.map(with).to_vec()
    }
}

/// The text to score and how.
#[derive(Debug, Clone)]
pub struct QualityPlan {
    /// A file or a folder, or `None` for the model's own text (that of `tiny`).
    pub text: Option<PathBuf>,
    /// How a file becomes a text.
    pub format: TextFormat,
    /// The field of JSON lines that holds the text.
    pub field: Option<String>,
    /// How the text is cut.
    pub protocol: Protocol,
    /// Whether and how predictions are compared with the base's.
    pub base: Option<BasePlan>,
    /// Whether it is looked at if losses depend on what runs beside a sequence.
    pub under_load: bool,
}

/// The tasks to score and how.
#[derive(Debug, Clone)]
pub struct TaskPlan {
    /// Which.
    pub suite: Suite,
    /// Examples before each document; what a task says where `None`.
    pub shots: Option<usize>,
    /// Documents of each task; all where `None`.
    pub limit: Option<Limit>,
    /// Whether the tokenizer adds its beginning of text; its habit where `None`.
    pub add_bos: Option<bool>,
    /// Tokens that the model reads at most at once; its own limit where `None`.
    pub max_length: Option<usize>,
    /// Whether answers are checked against what else runs.
    pub under_load: bool,
}

/// How the predictions of a base are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasePlan {
    /// Where.
    pub folder: PathBuf,
    /// How many of the most likely tokens are kept one by one, the rest as one; all where `None`.
    pub top_k: Option<usize>,
}

impl QualityPlan {
    /// How files are read.
    pub(super) fn reading(&self) -> Reading {
        Reading {
            format: self.format,
            wikitext: self.protocol.rule.wikitext(),
            field: self.field.clone(),
        }
    }
}

/// What runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// This program's own forward pass.
    Candlepower,
    /// candle-transformers' model of the same weights, the baseline.
    Candle,
    /// candle-transformers' quantised model of a GGUF file.
    CandleGguf,
}

impl EngineKind {
    /// The name on the command line and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Candlepower => "candlepower",
            Self::Candle => "candle",
            Self::CandleGguf => "candle-gguf",
        }
    }
}

/// Which device is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The GPU if this build can use one and there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// Opens the device and says in a word why it is this one.
///
/// # Errors
/// If a GPU is asked for and there is none.
pub fn open_device(choice: DeviceChoice) -> Result<(Device, String)> {
    match choice {
        DeviceChoice::Cpu => Ok((Device::Cpu, "as asked".into())),
        DeviceChoice::Cuda(ordinal) => Ok((Device::cuda(ordinal)?, "as asked".into())),
        DeviceChoice::Auto => match Device::cuda(0) {
            Ok(device) => Ok((device, "the first GPU".into())),
            Err(_) if cfg!(not(feature = "cuda")) => Ok((Device::Cpu, "built without CUDA".into())),
            Err(Error::NoDevice(why)) => Ok((Device::Cpu, why)),
            Err(other) => Err(other),
        },
    }
}

impl Plan {
    /// What runs the model on `device` and how, as records name it: with the tokens of a step where they are not the
    /// device's default. candle's models take a prompt whole.
    pub fn engine_on(&self, device: &Device) -> String {
        let own = self.engine == EngineKind::Candlepower;
        let usual = chunk_for(None, device);
        match self.chunk.filter(|&chunk| own && chunk != usual) {
            Some(chunk) => format!("{}, chunk {chunk}", self.engine_name()),
            None => self.engine_name(),
        }
    }

    /// The engine with its switches, whatever the device.
    pub(super) fn engine_name(&self) -> String {
        let mut name = self.engine.name().to_owned();
        for (_, _, unlike) in self.switches.each() {
            if let Some(unlike) = unlike {
                name = format!("{name}, {unlike}");
            }
        }
        name
    }

    /// Refuses switches that `device` does not have.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the flag.
    pub fn check_device(&self, device: &Device) -> Result<()> {
        let own = self.engine == EngineKind::Candlepower;
        let given = self.switches.each().into_iter().find(|s| s.0.is_some());
        match given {
            Some((_, flag, _)) if !(own && matches!(device, Device::Gpu(_))) => {
                Err(Error::Usage(format!(
                    "{flag} is for candlepower's engine on a GPU: nothing else launches kernels"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what cannot be run whatever the model.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the flag.
    pub fn check(&self) -> Result<()> {
        let usage = |what: &str| Err(Error::Usage(what.to_owned()));
        if self.models.is_empty() {
            return usage("no --model is given");
        }
        if self.variants.is_empty() {
            return usage("no --variants are given");
        }
        check_models(&self.models)?;
        check_variants(&self.variants)?;
        self.quantising.check(&self.variants)?;
        if self.kv.is_empty() {
            return usage("no --kv-cache is given");
        }
        for (i, &kv) in self.kv.iter().enumerate() {
            if self.kv[..i].contains(&kv) {
                return usage(&format!("--kv-cache names '{kv}' twice"));
            }
            check_kv(self.engine, kv)?;
        }
        let batches = self.cells.iter().any(|cell| cell.batch != 1);
        if self.switches.persistent == Some(true) && batches {
            return usage("--persistent on is for --batch 1: several sequences are many launches");
        }
        for cell in &self.cells {
            if cell.batch == 0 || cell.prompt == 0 || cell.generate == 0 {
                return usage("--batch, --prompt and --gen must be at least 1");
            }
        }
        if self.chunk.is_some() && self.engine != EngineKind::Candlepower {
            return usage(&format!(
                "--chunk is for candlepower's engine: --engine {} takes a prompt whole",
                self.engine.name()
            ));
        }
        if self.tasks.is_some() && self.engine != EngineKind::Candlepower {
            return usage(&format!(
                "--tasks is for candlepower's engine: --engine {} has no logits to score",
                self.engine.name()
            ));
        }
        if self.cells.is_empty() && self.quality.is_none() && self.tasks.is_none() {
            return usage("nothing to measure: neither speed nor perplexity nor tasks");
        }
        Ok(())
    }
}

/// Refuses lists that name a model twice, in one way or two.
///
/// # Errors
/// [`Error::Usage`] that names both.
pub(super) fn check_models(models: &[ModelSpec]) -> Result<()> {
    let place = |spec: &ModelSpec| {
        let path = std::fs::canonicalize(&spec.source);
        path.unwrap_or_else(|_| spec.source.to_ascii_lowercase().into())
    };
    for (i, spec) in models.iter().enumerate() {
        let earlier = models[..i].iter().find(|other| place(other) == place(spec));
        if let Some(other) = earlier {
            return Err(twice("--model", &other.source, &spec.source));
        }
    }
    Ok(())
}

/// Refuses lists that name a variant twice, in one way or two.
///
/// # Errors
/// [`Error::Usage`] that names both.
pub(super) fn check_variants(variants: &[Variant]) -> Result<()> {
    match Variant::repeated(variants) {
        Some([one, other]) => Err(twice("--variants", &one.name, &other.name)),
        None => Ok(()),
    }
}

/// That a list names something twice.
fn twice(flag: &str, one: &str, other: &str) -> Error {
    Error::Usage(match one == other {
        true => format!("{flag} names '{one}' twice: give it once"),
        false => format!("{flag}: '{one}' and '{other}' are the same: give one of them"),
    })
}

/// Positions that a cell needs in the cache.
pub(super) fn positions(cell: &Cell) -> usize {
    cell.depth
        .saturating_add(cell.prompt)
        .saturating_add(cell.generate)
}
