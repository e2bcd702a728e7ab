//! `candlepower eval`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::args::{CalibrationFlags, EngineFlags, KvFlag, ModelFlags};
use super::progress::{Progress, say};
use super::tasks::TaskFlags;
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::model::Model;
use crate::quality::tasks::{Figure, Suite, SuiteScore, layout};
use crate::results::recovery::Recoveries;
use crate::scheme::Variant;
use crate::stats::Interval;
use crate::study::{Evaluated, Evaluation, evaluate, recoveries};

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
    /// bf16, f16, f32, int8, w8a8, w4a16 (with :g64 or :g32); of several, the first is the base of the others
    #[arg(
        long,
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
    cache: KvFlag,
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let tasks = args.how.plan(Suite::find(&args.tasks)?);
    let device = args.device.open()?;
    let model = Model::open(&args.from.spec(&args.model))?;
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
        log: args
            .log_samples
            .as_deref()
            .map(|path| (path, args.log_texts)),
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
        let mut documents: Vec<Value> = found
            .iter()
            .map(|one| layout(&one.score, &one.from))
            .collect();
        return super::print_json(&match documents.len() {
            1 => documents.remove(0),
            _ => json!({
                "variants": documents,
                "recovery": against.iter().map(|(one, base, found)| found.layout(one, base)).collect::<Vec<_>>(),
            }),
        })
        .map(|()| ExitCode::SUCCESS);
    }
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
        super::print(&format!("{title}\n\n{}\n", laid_out(&figures(&one.score))))?;
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
        super::print(&format!("{title}\n\n{}\n", laid_out(&recovery_rows(found))))?;
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

/// One line for each task: what is left of the base's figure, and whether chance explains the rest.
fn recovery_rows(found: &Recoveries) -> Vec<Vec<String>> {
    let head = [
        "task",
        "metric",
        "base",
        "value",
        "recovery ± CI",
        "difference [95 % CI]",
        "won : lost",
        "p (McNemar)",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let none = || "–".to_owned();
    rows.extend(found.tasks.iter().map(|task| {
        let interval = task.difference.interval;
        let metric = match task.filter.as_str() {
            "none" => task.metric.clone(),
            filter => format!("{},{filter}", task.metric),
        };
        vec![
            task.name.clone(),
            metric,
            format!("{:.4}", task.base),
            format!("{:.4}", task.value),
            task.ratio
                .map_or_else(none, |ratio| percent(ratio, task.ratio_interval)),
            interval.map_or_else(
                || format!("{:+.4}", task.difference.mean),
                |i| {
                    format!(
                        "{:+.4} [{:+.4}, {:+.4}]",
                        task.difference.mean, i.low, i.high
                    )
                },
            ),
            task.discordant
                .map_or_else(none, |(won, lost)| format!("{won} : {lost}")),
            task.p_value.map_or_else(none, |p| format!("{p:.3}")),
        ]
    }));
    rows
}

/// One line for each figure, as lm_eval prints them.
fn figures(score: &SuiteScore) -> Vec<Vec<String>> {
    let head = [
        "task",
        "filter",
        "metric",
        "documents",
        "shots",
        "value",
        "± se",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut add = |name: &str, documents: String, shots: String, figures: &[Figure]| {
        for (place, figure) in figures.iter().enumerate() {
            let first = |text: &str| {
                if place == 0 {
                    text.to_owned()
                } else {
                    String::new()
                }
            };
            rows.push(vec![
                first(name),
                figure.filter.clone(),
                figure.metric.clone(),
                first(&documents),
                first(&shots),
                format!("{:.4}", figure.value),
                figure
                    .stderr
                    .map_or_else(|| "–".to_owned(), |e| format!("{e:.4}")),
            ]);
        }
    };
    for group in &score.groups {
        add(
            &group.group.name,
            group.documents.to_string(),
            String::new(),
            &group.figures,
        );
    }
    for task in &score.tasks {
        let documents = match task.samples.len() {
            all if all == task.of => all.to_string(),
            some => format!("{some} of {}", task.of),
        };
        add(
            &task.task.name,
            documents,
            task.shots.to_string(),
            &task.figures,
        );
    }
    rows
}

/// Rows under each other: words on the left of their columns, numbers on the right. The first row names the columns.
fn laid_out(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let words = |column: usize| {
        rows[0]
            .get(column)
            .is_some_and(|name| ["task", "filter", "metric"].contains(&name.as_str()))
    };
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let space = " ".repeat(widths[column] - cell.chars().count());
            if words(column) {
                format!(" {cell}{space}")
            } else {
                format!(" {space}{cell}")
            }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}
