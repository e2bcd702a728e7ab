//! `candlepower eval`.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::args::{EngineFlags, ModelFlags, Switch, parse_positive};
use super::progress::{Progress, say};
use crate::error::Result;
use crate::measure::Interrupt;
use crate::model::Model;
use crate::quality::tasks::{Figure, Limit, Suite, SuiteScore, layout};
use crate::scheme::Variant;
use crate::study::{Evaluation, evaluate};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower eval --model Qwen/Qwen3-0.6B --tasks arc_easy,piqa --limit 200
  candlepower eval --model DIR --tasks mmlu --num-fewshot 5 --json
  candlepower eval --model model.gguf --variant f32 --tasks my_task.yaml,questions.jsonl --log-samples log.jsonl

Tasks: arc_challenge, arc_easy, gsm8k, hellaswag, lambada_openai, mmlu (mmlu_stem, mmlu_anatomy, ...), openbookqa, piqa,
truthfulqa_mc1, truthfulqa_mc2, winogrande; a .yaml file in lm_eval's keys; a .jsonl file of {query, choices, gold},
{context_options, continuation, gold}, {context, continuation}, {question, answer} or {prompt, reference}.")]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, or a hub id such as org/name
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    /// bf16, f16, f32, int8, w8a8, w4a16 (with :g64 or :g32)
    #[arg(long, default_value = "bf16", value_name = "VARIANT")]
    variant: Variant,
    /// Tasks by name or file
    #[arg(long, required = true, value_delimiter = ',', value_name = "LIST")]
    tasks: Vec<String>,
    /// The first N documents of each task, or a share below 1 [default: all]
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    limit: Option<Limit>,
    /// Answered examples before each document [default: what the task says, else 0]
    #[arg(long, value_name = "K")]
    num_fewshot: Option<usize>,
    /// Writes a JSON line for each document; a run that was stopped goes on from FILE.part
    #[arg(long, value_name = "FILE")]
    log_samples: Option<PathBuf>,
    /// With the texts of the documents in those lines
    #[arg(long, requires = "log_samples")]
    log_texts: bool,
    /// Whether texts begin with the tokenizer's beginning of text [default: its habit]
    #[arg(long, value_enum, value_name = "on|off")]
    add_bos: Option<Switch>,
    /// Tokens that the model reads at most at once; longer requests lose their beginning [default: its context]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    max_length: Option<usize>,
    /// Prints JSON in the layout of lm_eval's results
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    from: ModelFlags,
    #[command(flatten)]
    device: EngineFlags,
}

fn parse_limit(s: &str) -> Result<Limit, String> {
    match (s.parse::<usize>(), s.parse::<f64>()) {
        (Ok(count), _) if count > 0 => Ok(Limit::Count(count)),
        (Err(_), Ok(share)) if share > 0.0 && share < 1.0 => Ok(Limit::Share(share)),
        _ => Err("expected a number of documents or a share below 1, such as 200 or 0.1".into()),
    }
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let suite = Suite::find(&args.tasks)?;
    let device = args.device.open()?;
    let model = Model::open(&args.from.spec(&args.model))?;
    let wish = Evaluation {
        model: &model,
        variant: &args.variant,
        act: args.device.dtype,
        device: &device,
        chunk: args.device.chunk,
        suite: &suite,
        shots: args.num_fewshot,
        limit: args.limit,
        add_bos: args.add_bos.map(|switch| switch == Switch::On),
        max_length: args.max_length,
        log: args
            .log_samples
            .as_deref()
            .map(|path| (path, args.log_texts)),
    };
    for task in &suite.tasks {
        if let Some(wish) = args.num_fewshot
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
    if found.resumed > 0 {
        say(&format!("{} documents were answered before", found.resumed));
    }
    for task in found.score.tasks.iter().filter(|task| task.truncated > 0) {
        say(&format!(
            "{}: {} requests were longer than {} tokens and lost their beginning",
            task.task.name, task.truncated, found.from.max_length
        ));
    }
    if args.json {
        super::print_json(&layout(&found.score, &found.from))?;
    } else {
        let title = format!(
            "{} {} · activations in {} · {}",
            found.from.model, found.from.variant, found.from.dtype, found.from.device
        );
        super::print(&format!("{title}\n\n{}", table(&found.score)));
    }
    Ok(ExitCode::SUCCESS)
}

/// One line for each figure, as lm_eval prints them.
fn table(score: &SuiteScore) -> String {
    let mut rows = vec![
        [
            "task",
            "documents",
            "shots",
            "filter",
            "metric",
            "value",
            "± se",
        ]
        .map(str::to_owned),
    ];
    let mut add = |name: &str, documents: String, shots: String, figures: &[Figure]| {
        for (place, figure) in figures.iter().enumerate() {
            let first = |text: &str| {
                if place == 0 {
                    text.to_owned()
                } else {
                    String::new()
                }
            };
            rows.push([
                first(name),
                first(&documents),
                first(&shots),
                figure.filter.clone(),
                figure.metric.clone(),
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
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let space = widths[column] - cell.chars().count();
            // Names on the left, numbers on the right.
            let _ = match column {
                0 | 3 | 4 => write!(out, " {cell}{}  ", " ".repeat(space)),
                _ => write!(out, " {}{cell}  ", " ".repeat(space)),
            };
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}
