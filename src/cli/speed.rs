//! What is timed and how often: flags of `study` and `bench`.

use clap::{Args, ValueEnum};

use super::list::Numbers;
use super::parse;
use crate::error::Result;
use crate::kernels::Device;
use crate::measure::Interrupt;
use crate::measure::trial::{StopRule, Until, WarmUp};
use crate::results::environment::Ceilings;
use crate::results::record::Cell;
use crate::scheme::KvFormat;
use crate::study::{Effort, EnergyPlan, EngineKind, ceilings};
use crate::units::Seconds;

/// How long a cell is repeated at most for what noise may never allow, unless a limit is given.
const LONGEST_UNTIL: Seconds = Seconds(60.0);

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

#[derive(Args)]
#[command(next_help_heading = "Speed")]
pub(super) struct SpeedFlags {
    /// Sequences side by side; lists and ranges as in 1,2,4 or 1-64*2, of which each number counts once
    #[arg(long, default_value = "1,2,4,8", value_name = "LIST", value_parser = Numbers::above_zero)]
    batch: Numbers,
    /// Prompt tokens of each
    #[arg(long, default_value = "128", value_name = "LIST", value_parser = Numbers::above_zero)]
    prompt: Numbers,
    /// Tokens generated for each
    #[arg(long = "gen", default_value = "64", value_name = "LIST", value_parser = Numbers::above_zero)]
    generate: Numbers,
    /// Tokens already in the cache before the prompt
    #[arg(long, default_value = "0", value_name = "LIST")]
    depth: Numbers,
    /// How the KV cache is held: auto (in the type of the activations), int8 or fp8, with a scale for each head and
    /// position; every variant runs with each format of the list
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
    /// At least this many trials of each cell; one that heat or the power supply slowed is made again
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = parse::positive)]
    pub(super) trials: usize,
    /// And at least this many seconds of them
    #[arg(long, default_value = "3", value_name = "SECONDS", value_parser = parse::seconds)]
    pub(super) min_time: Seconds,
    /// Goes on until half of the 95 % interval of the medians of TTFT and ITL is no more than this share of them
    #[arg(long, value_name = "PERCENT", value_parser = parse::precision)]
    pub(super) precision: Option<f64>,
    /// Goes on until more trials no longer change how noisy TTFT and ITL are; with --precision, until one of the two holds
    #[arg(long)]
    pub(super) until_stable: bool,
    /// But no longer than this, in seconds, whatever the number of trials [default: 60 with --precision or --until-stable]
    #[arg(long, value_name = "SECONDS", value_parser = parse::some_seconds)]
    pub(super) max_time: Option<Seconds>,
    /// Trials of each cell that run before the first counted one
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(super) warmup: usize,
    /// Length of each of the two windows that energy is measured over on a GPU, in seconds; 0 for none [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
    energy_window: Option<Seconds>,
    /// How long the same work runs before each window, in seconds [default: 3]
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
    energy_preroll: Option<Seconds>,
    /// How long each loaded variant's idle power is watched on a GPU, in seconds; 0 for not at all [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
    idle_window: Option<Seconds>,
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
                        cells.push(Cell {
                            batch,
                            prompt,
                            generate,
                            depth,
                        });
                    }
                }
            }
        }
        cells
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
        let usual = EnergyPlan::default();
        EnergyPlan {
            window: self.energy_window.unwrap_or(usual.window),
            pre_roll: self.energy_preroll.unwrap_or(usual.pre_roll),
            idle: self.idle_window.unwrap_or(usual.idle),
        }
    }

    /// That energy was asked for in so many words and `device` has none to tell, so that one command line serves both.
    pub(super) fn without_energy(&self, device: &Device) -> Option<String> {
        let given = [
            ("--energy-window", self.energy_window),
            ("--energy-preroll", self.energy_preroll),
            ("--idle-window", self.idle_window),
        ];
        let asked = |time: &Option<Seconds>| time.is_some_and(|time| time.0 > 0.0);
        let (flag, _) = given.iter().find(|(_, time)| asked(time))?;
        let on_cpu = matches!(device, Device::Cpu);
        on_cpu.then(|| {
            format!("{flag} has no effect: energy is measured on NVIDIA GPUs only, and this runs on the CPU")
        })
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
