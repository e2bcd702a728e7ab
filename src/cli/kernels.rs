//! `candlepower kernels`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::args::DeviceFlags;
use super::list::Numbers;
use super::parse;
use super::progress::{Progress, say, width};
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::measure::trial::{StopRule, WarmUp};
use crate::model::{ModelSpec, WeightsChoice};
use crate::results::microbench::record::Store;
use crate::results::microbench::{Microbench, export, table};
use crate::scheme::{DType, KvFormat, Variant};
use crate::study::microbench::{self, MicrobenchPlan, OPS, OpEntry};
use crate::study::{self, Effort};
use crate::units::Seconds;

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower kernels
  candlepower kernels --model llama-3.1-8b --m 1-64*2 --variants bf16,int8,w4a16 --out OUT
  candlepower kernels --shape 28672,4096 --shape 4096,14336 --m 1,16 --json
  candlepower kernels --op all --model qwen3-0.6b --m 1,8
  candlepower kernels --op attention,attention_prefill --model llama-3.1-8b --m 1,8,64 --context 512,2048 --kv-cache auto,int8,fp8
  candlepower kernels --shape 136,384 --m 1-17,200 --verify-only")]
pub(super) struct Args {
    /// What is run: linear, quantize, norm, silu_mul, argmax, rope, attention, append_attend, attention_prefill, or all
    #[arg(long, default_value = "linear", value_delimiter = ',', value_name = "LIST", value_parser = parse_op)]
    op: Vec<Ops>,
    /// Models whose shapes are taken: presets, or whatever else other commands take [default: tiny]
    #[arg(long, value_delimiter = ',', value_name = "MODEL")]
    model: Vec<String>,
    /// A product's output and input features, instead of a model's; may be repeated
    #[arg(long, value_name = "N,K", value_parser = parse_shape, conflicts_with = "model")]
    shape: Vec<[usize; 2]>,
    /// Tokens, the rows of the input (of attention_prefill, prompts); lists and ranges as in 1,2,4 or 1-64*2, of which each
    /// number counts once
    #[arg(long, default_value = "1-128*2", value_name = "LIST", value_parser = Numbers::above_zero)]
    m: Numbers,
    /// bf16, f16, f32, int8, w8a8, w4a16 (with :g64 or :g32)
    #[arg(
        long,
        default_value = "bf16,int8,w8a8,w4a16",
        value_delimiter = ',',
        value_name = "LIST"
    )]
    variants: Vec<Variant>,
    /// Type of the activations: f32, f16 or bf16 [default: f32 on the CPU, that of the variant, or bf16, on a GPU]
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<DType>,
    /// Positions of the cache that rope and attention see, and tokens of a prompt [default: 1024]
    #[arg(long, value_name = "LIST", value_parser = Numbers::above_zero)]
    context: Option<Numbers>,
    /// How the KV cache is held for rope and attention: auto (in the type of the activations), int8, fp8
    #[arg(
        long = "kv-cache",
        default_value = "auto",
        value_delimiter = ',',
        value_name = "LIST"
    )]
    kv: Vec<KvFormat>,
    /// Folder of the results; a second run with the same folder goes on where the first ended
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Writes one row per cell to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Measures cells anew that are on record
    #[arg(long, requires = "out")]
    force: bool,
    /// Checks every cell against plain sums in f64 and times none
    #[arg(long)]
    verify_only: bool,
    /// Prints JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Leaves the measured ceilings out, and what is said in terms of them
    #[arg(long)]
    no_ceilings: bool,
    #[command(flatten)]
    device: DeviceFlags,
    /// At least this many samples of each time
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = parse::positive, help_heading = "Timing")]
    trials: usize,
    /// And at least for this long, in seconds
    #[arg(long, default_value = "0.1", value_name = "SECONDS", value_parser = parse::seconds, help_heading = "Timing")]
    min_time: Seconds,
    /// But no longer than this, in seconds, whatever the number of samples
    #[arg(long, default_value = "6", value_name = "SECONDS", value_parser = parse::some_seconds, help_heading = "Timing")]
    max_time: Seconds,
    /// Samples that are thrown away before the first counted one
    #[arg(long, default_value_t = 2, value_name = "N", help_heading = "Timing")]
    warmup: usize,
    /// Seed of the data and of the elements that are compared
    #[arg(long, default_value_t = 42, value_name = "N", help_heading = "Timing")]
    seed: u64,
}

/// What a name of `--op` stands for.
#[derive(Clone)]
struct Ops(Vec<&'static OpEntry>);

fn parse_op(s: &str) -> Result<Ops, String> {
    if s == "all" {
        return Ok(Ops(OPS.iter().collect()));
    }
    let found = OPS.iter().find(|op| op.name == s);
    found.map(|op| Ops(vec![op])).ok_or_else(|| {
        let names: Vec<&str> = OPS.iter().map(|op| op.name).collect();
        format!("expected {}, or all", names.join(", "))
    })
}

fn parse_shape(s: &str) -> Result<[usize; 2], String> {
    let numbers = s.split_once(',').and_then(|(n, k)| {
        let number = |s: &str| s.trim().parse().ok();
        Some([number(n)?, number(k)?])
    });
    numbers.ok_or_else(|| "expected output and input features, such as 4096,14336".into())
}

impl Args {
    fn plan(&self) -> MicrobenchPlan {
        let mut ops: Vec<&'static OpEntry> = Vec::new();
        for op in self.op.iter().flat_map(|ops| &ops.0) {
            if !ops.iter().any(|other| other.name == op.name) {
                ops.push(op);
            }
        }
        let usual = ["tiny".to_owned()];
        let models = match (self.model.is_empty(), self.shape.is_empty()) {
            (true, true) => &usual[..],
            _ => &self.model,
        };
        MicrobenchPlan {
            ops,
            models: models.iter().map(|source| spec(source)).collect(),
            shapes: self.shape.clone(),
            tokens: self.m.0.clone(),
            variants: self.variants.clone(),
            act: self.dtype,
            contexts: self
                .context
                .as_ref()
                .map_or(Vec::new(), |list| list.0.clone()),
            kv: self.kv.clone(),
            verify_only: self.verify_only,
            rule: StopRule {
                min_trials: self.trials,
                min_time: self.min_time,
                max_time: Some(self.max_time),
                ..StopRule::default()
            },
            warm_up: WarmUp {
                min_trials: self.warmup,
                ..WarmUp::default()
            },
            seed: self.seed,
            force: self.force,
        }
    }
}

/// The model's shape alone.
fn spec(source: &str) -> ModelSpec {
    ModelSpec {
        source: source.to_owned(),
        revision: None,
        weights: WeightsChoice::Dummy { seed: 0 },
        tokenizer: None,
    }
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let plan = args.plan();
    plan.check()?;
    let device = args.device.open()?;
    let mut environment = study::environment(&device);
    // What cannot be opened leaves no folder behind.
    microbench::check_inputs(&plan)?;
    let scratch = tempfile::tempdir()
        .map_err(|e| Error::writing(std::env::temp_dir(), "cannot create a folder in", e))?;
    let dir = args
        .out
        .clone()
        .unwrap_or_else(|| scratch.path().to_owned());
    let mut store = Store::open(&dir)?;
    if !args.no_ceilings && !args.verify_only {
        say("measuring the device's ceilings");
        environment.ceilings = Some(study::ceilings(&device, Effort::Brief, interrupt)?);
    }
    let mut progress = Progress::new();
    let outcome = microbench::run(
        &plan,
        &device,
        &environment,
        &mut store,
        interrupt,
        &mut progress,
    );
    progress.finish();
    let outcome = outcome?;
    let command = std::env::args().collect();
    let document = Microbench::from_records(environment, command, &outcome.records);
    if outcome.interrupted {
        say(if args.out.is_some() {
            "interrupted: what was finished is on record, the same command goes on from there"
        } else {
            "interrupted"
        });
        return Ok(ExitCode::from(Error::Interrupted.exit_code()));
    }
    if let Some(path) = &args.csv {
        export::write_csv(&document, path)?;
    }
    if args.out.is_some() {
        export::write(&document, store.dir())?;
    }
    if args.json {
        super::print_json(&document)?;
    } else {
        say("");
        super::print(&table::microbench(&document, width()))?;
    }
    if let Some(out) = &args.out {
        say(&format!(
            "\nwritten: {} (beside it results.json, kernels.csv and records.jsonl)",
            out.join("kernels.html").display()
        ));
    }
    Ok(ExitCode::from(if outcome.failed > 0 {
        super::SOME_FAILED
    } else {
        0
    }))
}
