//! What a person sees while a run lasts: one live line with the time left on a terminal, plain lines otherwise.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::quality::TextFormat;
use crate::results::Record;
use crate::results::microbench;
use crate::results::record::{Body, Cell};
use crate::study::microbench::MicrobenchWatcher;
use crate::study::{Stage, Watcher};
use crate::units::{Seconds, three_digits};

/// Writes a line to standard error.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// How often a run without a terminal says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Steps of the bar.
const STEPS: u64 = 1000;

/// Shows a run's progress on standard error.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    begin: Instant,
    /// Share of the run that was on record before it began, found as points are resumed.
    resumed: f64,
    last_line: Instant,
    /// What was said of the text: variants share it.
    text: String,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{bar:24.cyan/black} {percent:>3}% {wide_msg}");
            ProgressBar::new(STEPS)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self {
            bar,
            begin: Instant::now(),
            resumed: 0.0,
            last_line: Instant::now(),
            text: String::new(),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Says something above the live line.
    pub(super) fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// Shows `share` of some work called `what`, `overall` of the run.
    pub(super) fn show(&mut self, what: &str, overall: f64) {
        let left = self
            .time_left(overall)
            .map_or_else(String::new, |left| format!(", {} left", rough(left)));
        match &self.bar {
            Some(bar) => {
                bar.set_position((overall.clamp(0.0, 1.0) * STEPS as f64) as u64);
                bar.set_message(format!("{what}{left}"));
            }
            None if self.last_line.elapsed() >= HEARTBEAT => {
                self.last_line = Instant::now();
                say(&format!("{:3.0}%  {what}{left}", overall * 100.0));
            }
            None => {}
        }
    }

    /// From the pace so far, once there is one.
    fn time_left(&self, overall: f64) -> Option<Seconds> {
        let done = overall - self.resumed;
        let elapsed = self.begin.elapsed().as_secs_f64();
        (done > 0.01 && elapsed > 1.0).then(|| Seconds((elapsed / done * (1.0 - overall)).max(0.0)))
    }
}

impl Watcher for Progress {
    fn text(&mut self, model: &str, format: TextFormat, tokens: u64) {
        let text = format!(
            "text: {tokens} tokens for {model}, read as {}",
            format.name()
        );
        if text != self.text {
            self.line(&text);
            self.text = text;
        }
    }

    fn progress(&mut self, variant: &str, stage: &Stage, share: f64, overall: f64) {
        let what = match stage {
            Stage::Quantise => format!("{variant}: quantising {:.0}%", share * 100.0),
            Stage::Load => format!("{variant}: loading {:.0}%", share * 100.0),
            Stage::Verify => format!("{variant}: verifying"),
            Stage::Quality => format!("{variant}: perplexity {:.0}%", share * 100.0),
            Stage::Task(task) => format!("{variant}: {task} {:.0}%", share * 100.0),
            Stage::Speed(cell) => format!("{variant}: {}", cell_name(cell)),
            Stage::Energy => format!("{variant}: energy {:.0}%", share * 100.0),
        };
        self.show(&what, overall);
    }

    fn note(&mut self, variant: &str, what: &str) {
        self.line(&format!("{variant}: {what}"));
    }

    fn point(&mut self, record: &Record, resumed: bool) {
        let mut variant = record.subject.variant.clone();
        if let Some(format) = &record.subject.kv_cache {
            variant = format!("{variant} · kv {format}");
        }
        let line = match (&record.body, record.failure()) {
            (_, Some(reason)) => format!("{variant}: failed: {reason}"),
            (
                Body::Quality {
                    outcome: Ok(found), ..
                },
                _,
            ) => {
                let (nll, tokens) = found
                    .segments
                    .iter()
                    .fold((0.0, 0), |(n, t), s| (n + s.nll, t + s.tokens));
                format!(
                    "{variant}: perplexity {:.4}",
                    (nll / tokens.max(1) as f64).exp()
                )
            }
            (
                Body::Task {
                    task,
                    outcome: Ok(found),
                },
                _,
            ) => {
                let figure = found.main().or(found.figures.first());
                let shown = figure.map_or_else(String::new, |figure| {
                    format!("{} {:.4}, ", figure.metric, figure.value)
                });
                let documents = found.documents.len();
                format!("{variant}: {}: {shown}{documents} documents", task.name)
            }
            (
                Body::Speed {
                    cell,
                    outcome: Ok(speed),
                },
                _,
            ) => {
                let steps: usize = speed.trials.iter().map(|trial| trial.itl.len()).sum();
                let seconds: f64 = speed.trials.iter().map(|trial| trial.decode.0).sum();
                let trials = speed.trials.len();
                let rate = if steps > 0 {
                    let rate = three_digits(cell.batch as f64 * steps as f64 / seconds);
                    format!("{rate} tokens/s decoded")
                } else {
                    let seconds: f64 = speed.trials.iter().map(|trial| trial.prefill.0).sum();
                    let tokens = (cell.batch * cell.prompt * trials) as f64;
                    format!("{} tokens/s prefilled", three_digits(tokens / seconds))
                };
                format!("{variant}: {}: {rate}, {trials} trials", cell_name(cell))
            }
            _ => return,
        };
        let kept = if resumed { " (on record)" } else { "" };
        self.line(&format!("{line}{kept}"));
    }
}

impl MicrobenchWatcher for Progress {
    fn progress(&mut self, subject: &microbench::record::Subject, overall: f64) {
        self.show(&op_name(subject), overall);
    }

    fn cell(&mut self, record: &microbench::Record, resumed: bool, share: f64) {
        let what = match (record.failure(), microbench::table::outcome(record)) {
            (Some(reason), _) => format!("failed: {reason}"),
            (None, found) => found,
        };
        let kept = if resumed { " (on record)" } else { "" };
        self.line(&format!("{}: {what}{kept}", op_name(&record.subject)));
        if resumed {
            self.resumed += share;
        }
    }
}

fn op_name(subject: &microbench::record::Subject) -> String {
    let sizes: Vec<String> = subject
        .sizes
        .iter()
        .map(|(name, size)| format!("{name} {size}"))
        .collect();
    format!(
        "{} {}, {}, M {}",
        subject.op,
        sizes.join(" "),
        subject.variant,
        subject.tokens
    )
}

/// An estimate, without digits that it does not have.
fn rough(left: Seconds) -> String {
    if left.0 < 99.5 {
        format!("{:.0} s", left.0)
    } else {
        left.to_string()
    }
}

fn cell_name(cell: &Cell) -> String {
    let depth = if cell.depth > 0 {
        format!(", depth {}", cell.depth)
    } else {
        String::new()
    };
    format!(
        "batch {}, prompt {}, generate {}{depth}",
        cell.batch, cell.prompt, cell.generate
    )
}

/// Columns of the terminal that a table may fill.
pub(super) fn width() -> usize {
    const USUAL: usize = 100;
    let term = console::Term::stdout();
    let columns = term
        .is_term()
        .then(|| term.size_checked())
        .flatten()
        .map(|(_, columns)| usize::from(columns));
    columns.filter(|&columns| columns >= 40).unwrap_or(USUAL)
}
