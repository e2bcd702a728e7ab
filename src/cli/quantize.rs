//! `candlepower quantize`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args as ClapArgs;
use serde_json::json;

use super::args::{CalibrationFlags, DeviceFlags, ModelFlags};
use super::progress::{Progress, say};
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::quant::{Kept, LayerReport, Place, Sensitivity};
use crate::scheme::{DType, Variant};
use crate::study::{CheckpointWish, activation_dtype};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower quantize --model DIR --scheme w4a16:gptq --calibrate FILE --out OUT
  candlepower quantize --model Qwen/Qwen3-0.6B --scheme w4a16:awq:asym:g64 --calibrate wikitext2 --out OUT
  candlepower quantize --model DIR --scheme w8a8:smoothquant --calibrate FILE --out OUT
  candlepower quantize --model DIR --scheme w4a16:gptq --calibrate FILE --sensitivity
  candlepower quantize --model DIR --scheme w4a16:gptq --calibrate FILE --keep-bits 16 --layers 0,29.down --out OUT
  candlepower quantize --model DIR --scheme w4a16:gptq --calibrate FILE --keep-bits 16 --layers worst:6 --out OUT")]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, or a hub id such as org/name
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    /// int8, w8a8 or w4a16, with rtn, gptq, awq (for inputs as they are) or smoothquant (for w8a8), with asym, mse, g64 or
    /// g32, as in w4a16:gptq:g64
    #[arg(long, value_name = "SCHEME")]
    scheme: Variant,
    /// Folder of the checkpoint
    #[arg(long, value_name = "DIR", required_unless_present = "sensitivity")]
    out: Option<PathBuf>,
    /// Replaces a checkpoint of this program that is there, and nothing else
    #[arg(long, requires = "out")]
    force: bool,
    /// Ranks the parts of all layers by what quantising each alone costs, in divergence of the predictions and in loss
    #[arg(long)]
    sensitivity: bool,
    /// Bits of the layers that --layers names
    #[arg(long, value_name = "BITS", value_parser = ["16", "8"], requires = "layers")]
    keep_bits: Option<String>,
    /// Layers to keep in more bits: decoder layers, or parts of them, as in 0,29.down (parts: qkv, o, gate_up, down), or
    /// worst:N for the N parts that --sensitivity ranks first
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "LIST",
        requires_all = ["keep_bits", "out"]
    )]
    layers: Vec<Choice>,
    /// Prints JSON: what was done to every layer, or the ranks
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    from: ModelFlags,
    #[command(flatten)]
    calibration: CalibrationFlags,
    #[command(flatten)]
    device: DeviceFlags,
    /// Type of activations while the model reads the calibration text [default: f32 on the CPU, the checkpoint's 16-bit
    /// type on a GPU]
    #[arg(long, value_name = "DTYPE", help_heading = "Device")]
    dtype: Option<DType>,
}

/// An entry of `--layers`.
#[derive(Debug, Clone, Copy)]
enum Choice {
    Named(Place),
    Worst(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.strip_prefix("worst:").map(str::parse) {
            Some(Ok(count)) if count > 0 => Ok(Self::Worst(count)),
            Some(_) => Err(format!("'{s}': expected worst: and a number above 0")),
            None => s.parse().map(Self::Named),
        }
    }
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let looks = args.sensitivity || args.layers.iter().any(|c| matches!(c, Choice::Worst(_)));
    let calibration = match looks {
        true => args.calibration.calibration(),
        false => {
            let schemes = std::slice::from_ref(&args.scheme);
            args.calibration.quantising(schemes)?.calibration
        }
    };
    let device = args.device.open()?;
    let model = args
        .from
        .open(&args.model, std::slice::from_ref(&args.scheme))?;
    let act = activation_dtype(args.dtype, &device, &model);
    let nothing = Kept::default();
    let mut wish = CheckpointWish {
        model: &model,
        variant: &args.scheme,
        kept: &nothing,
        calibration: calibration.as_ref(),
        device: &device,
        act,
    };
    let mut places = Vec::new();
    let mut worst = 0;
    for choice in &args.layers {
        match choice {
            Choice::Named(place) => places.push(*place),
            Choice::Worst(count) => worst += count,
        }
    }
    let mut ranks = None;
    if args.sensitivity || worst > 0 {
        let found = ranked(&wish, interrupt)?;
        places.extend(found.iter().take(worst).map(|s| s.place));
        if args.sensitivity && !args.json {
            super::print(&table(&found))?;
        }
        ranks = Some(found);
    }
    let kept = Kept::new(&places, args.keep_bits.as_deref() == Some("8"));
    wish.kept = &kept;
    let mut layers = None;
    if let Some(out) = &args.out {
        let mut progress = Progress::new();
        let reports = wish.write(out, args.force, &mut |at| {
            let what = format!("layer {} of {}", at.layer + 1, at.layers);
            progress.show(&format!("{}: {what}", args.scheme), at.share);
            if let Some(report) = at.finished {
                progress.line(&line(report));
            }
            interrupt.check()
        });
        progress.finish();
        layers = Some(reports?);
        say(&format!("written: {}", out.display()));
    }
    if args.json {
        let ranks = ranks.map(|found| found.iter().map(rank).collect::<Vec<_>>());
        super::print_json(&json!({
            "scheme": args.scheme.name,
            "layers": layers,
            "sensitivity": ranks,
        }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn ranked(wish: &CheckpointWish<'_>, interrupt: &Interrupt) -> Result<Vec<Sensitivity>> {
    if wish.calibration.is_none() {
        return Err(Error::Usage(
            "--sensitivity and --layers worst:N judge the model by a text: give --calibrate FILE"
                .into(),
        ));
    }
    let mut progress = Progress::new();
    let found = wish.sensitivity(&mut |at| {
        let what = format!("sensitivity of layer {} of {}", at.layer + 1, at.layers);
        progress.show(&what, at.share);
        interrupt.check()
    });
    progress.finish();
    found
}

/// What was done to a layer, in a line.
fn line(report: &LayerReport) -> String {
    let what = report.modules.first().map_or("", |m| m.error_of);
    let errors = match report.errors() {
        None => "kept as it is".to_owned(),
        Some((error, nearest)) => format!(
            "error of {what} {:.3} %, {:.3} % rounded to nearest",
            100.0 * error,
            100.0 * nearest
        ),
    };
    format!("layer {}: {errors}, {:.1} s", report.layer, report.seconds)
}

fn rank(found: &Sensitivity) -> serde_json::Value {
    json!({
        "place": found.place.to_string(),
        "divergence_nats": found.divergence,
        "loss_nats": found.loss,
        "parameters": found.parameters,
    })
}

fn table(found: &[Sensitivity]) -> String {
    let mut text =
        "each part quantised alone   KL [nats/token]   loss [nats/token]   parameters\n".to_owned();
    for s in found {
        text += &format!(
            "{:>26}   {:>15.6}   {:>+17.6}   {:>10}\n",
            s.place.to_string(),
            s.divergence,
            s.loss,
            s.parameters
        );
    }
    text
}
