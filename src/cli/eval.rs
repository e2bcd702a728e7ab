//! `candlepower eval`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::args::{CalibrationFlags, EngineFlags, KvFlag, ModelFlags, variants_help};
use super::lines::wrapped;
use super::progress::{Progress, say, width};
use super::switches::FuseFlag;
use super::tasks::TaskFlags;
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::quality::tasks::{Figure, LmEvalResults, Suite, SuiteScore, layout};
use crate::results::recovered::Recovered;
use crate::results::recovery::{Recoveries, Recovery};
use crate::results::tabulated;
use crate::scheme::Variant;
use crate::stats::{Interval, Paired};
use crate::study::{Evaluated, Evaluation, Evaluations, SampleLog, evaluate, recoveries};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower eval --model Qwen/Qwen3-0.6B --tasks arc_easy,piqa --limit 200
  candlepower eval --model DIR --tasks mmlu --num-fewshot 5 --json
  candlepower eval --model DIR --tasks hellaswag,arc_challenge --variants bf16,int8,w4a16
  candlepower eval --model model.gguf --variant f32 --tasks my_task.yaml,questions.jsonl --log-samples log.jsonl

Tasks: arc_challenge, arc_easy, gsm8k, hellaswag, lambada_openai, mmlu (mmlu_stem, mmlu_anatomy, ...), openbookqa, piqa,
truthfulqa_mc1, truthfulqa_mc2, winogrande; a .yaml file in lm_eval's keys; a .jsonl file of {query, choices, gold},
{context_options, continuation, gold}, {context, continuation}, {question, answer} or {prompt, reference}.")]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, or a hub id such as org/name
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    #[arg(
        long,
        help = variants_help("; of several, the first is the base of the others"),
        visible_alias = "variants",
        default_value = "bf16",
        value_delimiter = ',',
        value_name = "LIST"
    )]
    variant: Vec<Variant>,
    /// Tasks by name or file
    #[arg(long, required = true, value_delimiter = ',', value_name = "LIST")]
    tasks: Vec<String>,
    #[command(flatten)]
    how: TaskFlags,
    /// Writes a JSON line for each document; a run that was stopped goes on from FILE.part
    #[arg(long, value_name = "FILE")]
    log_samples: Option<PathBuf>,
    /// With the texts of the documents in those lines
    #[arg(long, requires = "log_samples")]
    log_texts: bool,
    /// Replaces a log that is there
    #[arg(long, requires = "log_samples")]
    force: bool,
    /// Prints JSON in the layout of lm_eval's results
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    from: ModelFlags,
    #[command(flatten)]
    calibration: CalibrationFlags,
    #[command(flatten)]
    device: EngineFlags,
    #[command(flatten)]
    fuse: FuseFlag,
    #[command(flatten)]
    cache: KvFlag,
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let tasks = args.how.plan(Suite::find(&args.tasks)?);
    let device = args.device.open_switched(&args.fuse)?;
    let model = args.from.open(&args.model, &args.variant)?;
    let quantising = args.calibration.quantising(&args.variant)?;
    let wish = Evaluation {
        model: &model,
        variants: &args.variant,
        act: args.device.dtype,
        kv: args.cache.kv,
        device: &device,
        quantising: &quantising,
        chunk: args.device.chunk,
        tasks: &tasks,
        log: args.log_samples.as_deref().map(|path| SampleLog {
            path,
            texts: args.log_texts,
            replace: args.force,
        }),
    };
    for task in &tasks.suite.tasks {
        if let Some(wish) = tasks.shots
            && task.shots(Some(wish)) != wish
        {
            say(&format!(
                "{}: its definition says no examples, and keeps to it",
                task.name
            ));
        }
    }
    let mut progress = Progress::new();
    let found = evaluate(&wish, interrupt, &mut |what, share| {
        progress.show(what, share)
    });
    progress.finish();
    let found = found?;
    notes(&found);
    let against = compared(&found)?;
    if args.json {
        let documents = found.iter().map(|one| layout(&one.score, &one.from));
        let documents: Vec<LmEvalResults> = documents.collect();
        let recovery = against.iter();
        let recovery = recovery.map(|(one, base, found)| Recovered::new(found, one, base));
        match documents.as_slice() {
            [one] => super::print_json(one)?,
            _ => super::print_json(&Evaluations::new(documents, recovery.collect()))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let width = width();
    for one in &found {
        let from = &one.from;
        let cache = match args.cache.kv.codes() {
            Some(_) => format!(" · KV cache in {}", from.kv_cache),
            None => String::new(),
        };
        let title = format!(
            "{} {} · activations in {}{cache} · {}",
            from.model, from.variant, from.dtype, from.device
        );
        let table = tabulated(&FIGURES, &figures(&one.score), width);
        super::print(&format!("{}\n\n{table}\n", wrapped(&title, 2, width)))?;
    }
    for (variant, base, found) in &against {
        let average = found.average.as_ref();
        let average = average
            .and_then(|a| Some((a.ratio?, a.ratio_interval)))
            .map_or_else(
                || "no average".to_owned(),
                |(ratio, interval)| format!("{} on average", percent(ratio, interval)),
            );
        let title = format!("{variant} against {base}: recovery {average}");
        let table = tabulated(&RECOVERY, &recovery_rows(found), width);
        super::print(&format!("{}\n\n{table}\n", wrapped(&title, 2, width)))?;
        for group in &found.left_out {
            say(&format!("{}: {}", group.name, group.reason));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be known beside the figures.
fn notes(found: &[Evaluated]) {
    let resumed: usize = found.iter().map(|one| one.resumed).sum();
    if resumed > 0 {
        say(&format!("{resumed} documents were answered before"));
    }
    let Some(first) = found.first() else { return };
    for task in first.score.tasks.iter().filter(|task| task.truncated > 0) {
        say(&format!(
            "{}: {} requests were longer than {} tokens and lost their beginning",
            task.task.name, task.truncated, first.from.max_length
        ));
    }
}

/// Every variant after the first against it: names and figures.
fn compared(found: &[Evaluated]) -> Result<Vec<(&str, &str, Recoveries)>> {
    let Some((base, others)) = found.split_first() else {
        return Ok(Vec::new());
    };
    let pairs = others.iter().map(|other| {
        let found = recoveries(&base.score, &other.score)
            .ok_or_else(|| Error::Internal("variants scored different documents".into()))?;
        Ok((
            other.from.variant.as_str(),
            base.from.variant.as_str(),
            found,
        ))
    });
    pairs.collect()
}

/// A ratio with half of its interval.
fn percent(ratio: f64, interval: Option<Interval>) -> String {
    let half = interval.map_or_else(String::new, |ends| {
        format!(" ± {:.2}", 50.0 * (ends.high - ends.low))
    });
    format!("{:.2}{half} %", 100.0 * ratio)
}

/// What [`recovery_rows`] has of a task.
const RECOVERY: [&str; 8] = [
    "task",
    "metric",
    "base",
    "value",
    "recovery ± CI",
    "difference [95 % CI]",
    "won : lost",
    "p (McNemar)",
];

/// One line for each task: what is left of the base's figure, and whether chance explains the rest.
fn recovery_rows(found: &Recoveries) -> Vec<Vec<String>> {
    let none = || "–".to_owned();
    let row = |task: &Recovery| {
        let Paired { mean, interval, .. } = task.difference;
        let ends =
            interval.map_or_else(String::new, |i| format!(" [{:+.4}, {:+.4}]", i.low, i.high));
        vec![
            task.name.clone(),
            measure(&task.metric, &task.filter),
            format!("{:.4}", task.base),
            format!("{:.4}", task.value),
            task.ratio
                .map_or_else(none, |ratio| percent(ratio, task.ratio_interval)),
            format!("{mean:+.4}{ends}"),
            task.discordant
                .map_or_else(none, |(won, lost)| format!("{won} : {lost}")),
            task.p_value.map_or_else(none, |p| format!("{p:.3}")),
        ]
    };
    found.tasks.iter().map(row).collect()
}

/// A metric, with the filter behind it where there is one.
fn measure(metric: &str, filter: &str) -> String {
    match filter {
        "none" => metric.to_owned(),
        filter => format!("{metric},{filter}"),
    }
}

/// What [`figures`] has of a metric; of a task or group only beside its first.
const FIGURES: [&str; 6] = ["task", "metric", "value", "± se", "documents", "shots"];

/// One line for each figure.
fn figures(score: &SuiteScore) -> Vec<Vec<String>> {
    let of = |name: &str, documents: String, shots: String, figures: &[Figure]| {
        let row = |(place, figure): (usize, &Figure)| {
            let first = |text: &str| match place {
                0 => text.to_owned(),
                _ => String::new(),
            };
            let error = figure.stderr.map(|e| format!("{e:.4}"));
            vec![
                first(name),
                measure(&figure.metric, &figure.filter),
                format!("{:.4}", figure.value),
                error.unwrap_or_else(|| "–".to_owned()),
                first(&documents),
                first(&shots),
            ]
        };
        figures.iter().enumerate().map(row).collect::<Vec<_>>()
    };
    let groups = score.groups.iter().flat_map(|group| {
        let documents = group.documents.to_string();
        of(&group.group.name, documents, String::new(), &group.figures)
    });
    let tasks = score.tasks.iter().flat_map(|task| {
        let documents = match task.samples.len() {
            all if all == task.of => all.to_string(),
            some => format!("{some} of {}", task.of),
        };
        of(
            &task.task.name,
            documents,
            task.shots.to_string(),
            &task.figures,
        )
    });
    groups.chain(tasks).collect()
}
