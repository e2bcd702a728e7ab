//! Tasks scored with one variant: data first, then the weights; what was answered is kept beside the log until all is.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::finite::explained;
use super::plan::{EngineKind, TaskPlan, check_variants};
use super::quantise::{Quantising, describe_method};
use super::runner::{Runner, activation_dtype};
use super::{bench, facts};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::{Interrupt, SystemClock};
use crate::model::{Model, Tokenizer};
use crate::quality::tasks::{Answer, Encoder, Limit, LogLikelihood, Provenance, SuiteScore, Work};
use crate::quant::Samples;
use crate::scheme::{DType, KvFormat, Variant};
use crate::units::Clock;

/// What is scored, with what.
pub struct Evaluation<'a> {
    /// The model.
    pub model: &'a Model,
    /// What its weights are turned into, one after the other.
    pub variants: &'a [Variant],
    /// The type of activations; the device's default where `None`.
    pub act: Option<DType>,
    /// How the KV cache is held.
    pub kv: KvFormat,
    /// Where it runs.
    pub device: &'a Device,
    /// How variants are made that are not made on loading.
    pub quantising: &'a Quantising,
    /// Tokens of one forward pass; the device's default where `None`.
    pub chunk: Option<usize>,
    /// What is asked, and how.
    pub tasks: &'a TaskPlan,
    /// Where the log of all documents goes.
    pub log: Option<SampleLog<'a>>,
}

/// A log of what was said to every document.
#[derive(Debug, Clone, Copy)]
pub struct SampleLog<'a> {
    /// The file.
    pub path: &'a Path,
    /// Whether it holds the documents' texts.
    pub texts: bool,
    /// Whether it takes the place of a file that is there.
    pub replace: bool,
}

impl SampleLog<'_> {
    /// Makes sure, before anything is computed, that the log can be written when all is done: what is in its place is not
    /// lost, and its folder is there, made if need be.
    fn prepare(&self) -> Result<()> {
        let refused = |why| Err(Error::Usage(format!("{} {why}", self.path.display())));
        match std::fs::metadata(self.path) {
            Ok(found) if !found.is_file() => refused("is no file: give another --log-samples"),
            Ok(_) if !self.replace => {
                refused("is there already: give another --log-samples, or --force to replace it")
            }
            _ => std::fs::create_dir_all(folder_of(self.path))
                .map_err(|e| Error::writing(folder_of(self.path), "cannot create the folder", e)),
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// What came of a variant.
pub struct Evaluated {
    /// The figures and every document.
    pub score: SuiteScore,
    /// Where they come from.
    pub from: Provenance,
    /// Documents that had been answered before.
    pub resumed: usize,
}

/// Scores tasks. `progress` is told what is done and the share of the whole.
///
/// With a log, every answer is also appended to a file beside it, `LOG.part`; a run that was stopped goes on from there,
/// and the log itself appears when all is done.
///
/// # Errors
/// If the log is there already or has no place, or if data, templates or the model are at fault; then no log is written.
pub fn evaluate(
    wish: &Evaluation<'_>,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(&str, f64),
) -> Result<Vec<Evaluated>> {
    check_variants(wish.variants)?;
    if let Some(log) = &wish.log {
        log.prepare()?;
    }
    let clock = SystemClock::new();
    let model = wish.model;
    let tokenizer = tokenizer(model)?;
    let act = activation_dtype(wish.act, wish.device, model);
    let max_length = max_length(model, wish.tasks.max_length)?;
    let samples = wish.quantising.samples(model, wish.variants, None)?;
    let samples = samples.as_ref();
    let encoder = Encoder::new(tokenizer, wish.tasks.add_bos, max_length)?;
    let mut works = Vec::new();
    for task in &wish.tasks.suite.tasks {
        interrupt.check()?;
        progress(&format!("{}: reading documents", task.name), 0.0);
        works.push(Work::prepare(
            task,
            wish.tasks.shots,
            wish.tasks.limit,
            &encoder,
        )?);
    }
    let mut journal = wish.log.map(|log| Journal::open(log.path));
    let mut all = Vec::new();
    for (number, variant) in wish.variants.iter().enumerate() {
        let mut works = works.clone();
        let mut resumed = 0;
        if let Some(journal) = &mut journal {
            let identity = identity(wish, variant, samples, act, &works)?;
            resumed = journal.recall(&identity, &mut works);
        }
        let mut of_all = |what: &str, share: f64| {
            let before = number as f64;
            progress(what, (before + share) / wish.variants.len() as f64);
        };
        let begin = clock.now();
        let job = Job {
            wish,
            variant,
            samples,
            act,
            tokenizer,
            interrupt,
        };
        job.ask(&mut works, journal.as_mut(), &mut of_all)
            .map_err(|error| explained(error, model, act))?;
        all.push(Evaluated {
            score: Work::finish(&wish.tasks.suite, &works)?,
            from: Provenance {
                model: model.name.clone(),
                variant: variant.name.clone(),
                dtype: act.name().to_owned(),
                kv_cache: wish.kv.name().to_owned(),
                device: wish.device.kind().to_owned(),
                parameters: Some(model.config.parameters()),
                max_length,
                limit: wish.tasks.limit.map(|limit| match limit {
                    Limit::Count(count) => count as f64,
                    Limit::Share(share) => share,
                }),
                seconds: (clock.now() - begin).0,
            },
            resumed,
        });
    }
    if let (Some(journal), Some(log)) = (journal, wish.log) {
        write_log(log, &all, &works)?;
        journal.remove();
    }
    Ok(all)
}

/// The tokenizer that tasks are read with.
///
/// # Errors
/// [`Error::Config`] if the model has none.
pub(super) fn tokenizer(model: &Model) -> Result<&Tokenizer> {
    model.tokenizer.as_ref().ok_or_else(|| {
        Error::Config(format!(
            "{} has no tokenizer, so no task can be scored: give --tokenizer FILE",
            model.name
        ))
    })
}

/// Tokens that a model reads at most at once: what was asked for, or its context.
///
/// # Errors
/// [`Error::Config`] if that is longer than its context.
pub(super) fn max_length(model: &Model, wish: Option<usize>) -> Result<usize> {
    let most = model.config.max_positions;
    match wish {
        Some(length) if length > most => Err(Error::Config(format!(
            "--max-length {length} exceeds the context of {}, which is {most}",
            model.name
        ))),
        Some(length) => Ok(length),
        None => Ok(most),
    }
}

/// One variant at work.
struct Job<'a> {
    wish: &'a Evaluation<'a>,
    variant: &'a Variant,
    samples: Option<&'a Samples>,
    act: DType,
    tokenizer: &'a Tokenizer,
    interrupt: &'a Interrupt,
}

impl Job<'_> {
    /// Asks about every document that has no answer.
    fn ask(
        &self,
        works: &mut [Work],
        mut journal: Option<&mut Journal>,
        progress: &mut dyn FnMut(&str, f64),
    ) -> Result<()> {
        let total: usize = works.iter().map(Work::open_tokens).sum();
        if works.iter().all(|work| work.open() == 0) {
            return Ok(());
        }
        let (wish, interrupt) = (self.wish, self.interrupt);
        let name = &self.variant.name;
        let source = wish.quantising.source(
            wish.model,
            self.variant,
            self.samples,
            wish.device,
            self.act,
            &mut |at| {
                let share = 100.0 * at.share;
                progress(&format!("{name}: quantising {share:.0}%"), 0.0);
                interrupt.check()
            },
        )?;
        let mut runner = Runner::load(
            EngineKind::Candlepower,
            source.model(),
            source.variant(),
            self.act,
            wish.kv,
            wish.device,
            &interrupt.flag(),
            &mut |done, all| {
                let share = 100.0 * done as f64 / all.max(1) as f64;
                progress(&format!("{name}: loading {share:.0}%"), 0.0);
                interrupt.check()
            },
        )?;
        let chunk = bench::chunk_for(wish.chunk, wish.device);
        let mut done_tokens = 0;
        for work in works.iter_mut().filter(|work| work.open() > 0) {
            let engine = runner.own_for_scoring(work.limits(chunk))?;
            let task = work.task.name.clone();
            let all = work.documents.len();
            let mut done = all - work.open();
            work.run(engine, self.tokenizer, |document, answer, tokens| {
                if let Some(journal) = journal.as_deref_mut() {
                    journal.note(&task, document.id, answer)?;
                }
                done += 1;
                done_tokens += tokens;
                let share = done_tokens as f64 / total.max(1) as f64;
                progress(&format!("{name}: {task} {done} of {all}"), share);
                interrupt.check()
            })?;
        }
        Ok(())
    }
}

/// A hash of all that decides what a model answers.
fn identity(
    wish: &Evaluation<'_>,
    variant: &Variant,
    samples: Option<&Samples>,
    act: DType,
    works: &[Work],
) -> Result<String> {
    let model = facts::model(wish.model)?;
    let asked: Vec<_> = works
        .iter()
        .map(|work| (&work.task.name, &work.task.definition, work.digest()))
        .collect();
    let all = serde_json::json!({
        "model": model.digest, "tokenizer": model.tokenizer_digest, "variant": variant.name,
        "method": describe_method(variant, samples), "act": act.name(),
        "kv": wish.kv.name(), "device": wish.device.kind(), "asked": asked, "version": env!("CARGO_PKG_VERSION"),
    });
    Ok(blake3::hash(all.to_string().as_bytes()).to_hex()[..32].to_owned())
}

/// The answers of a run that is not done.
struct Journal {
    path: PathBuf,
    /// Opened when there is something to write down.
    file: Option<File>,
    /// Whether what is there ends in the middle of a line.
    torn: bool,
    /// What is written down now belongs to.
    key: String,
    /// By key, task and document.
    known: HashMap<(String, String, usize), Answer>,
}

/// One line of it.
#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    task: String,
    doc_id: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    loglikelihood: Vec<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    is_greedy: Vec<bool>,
}

impl Line {
    fn answer(self) -> Answer {
        match self.text {
            Some(text) => Answer::Text(text),
            None => Answer::LogLikelihoods(
                self.loglikelihood
                    .into_iter()
                    .zip(self.is_greedy)
                    .map(|(sum, greedy)| LogLikelihood { sum, greedy })
                    .collect(),
            ),
        }
    }
}

impl Journal {
    /// Reads the answers in `LOG.part`, where there is one; a line that was torn is skipped.
    fn open(log: &Path) -> Self {
        let mut path = log.as_os_str().to_owned();
        path.push(".part");
        let path = PathBuf::from(path);
        let mut known = HashMap::new();
        let mut torn = false;
        if let Ok(file) = File::open(&path) {
            for line in BufReader::new(file)
                .split(b'\n')
                .map_while(std::io::Result::ok)
            {
                let line = serde_json::from_slice::<Line>(&line);
                torn = line.is_err();
                if let Ok(line) = line {
                    let place = (line.key.clone(), line.task.clone(), line.doc_id);
                    known.insert(place, line.answer());
                }
            }
        }
        Self {
            path,
            file: None,
            torn,
            key: String::new(),
            known,
        }
    }

    /// From now on everything belongs to the run of this key; hands what is known of it to its documents, and gives how
    /// many there are.
    fn recall(&mut self, key: &str, works: &mut [Work]) -> usize {
        self.key = key.to_owned();
        let known = self.known.iter().filter(|((of, ..), _)| of == key);
        known
            .filter_map(|((_, task, document), answer)| {
                let work = works.iter_mut().find(|work| work.task.name == *task)?;
                work.recall(*document, answer.clone()).then_some(())
            })
            .count()
    }

    fn note(&mut self, task: &str, document: usize, answer: &Answer) -> Result<()> {
        let mut line = Line {
            key: self.key.clone(),
            task: task.to_owned(),
            doc_id: document,
            text: None,
            loglikelihood: Vec::new(),
            is_greedy: Vec::new(),
        };
        match answer {
            Answer::Text(text) => line.text = Some(text.clone()),
            Answer::LogLikelihoods(found) => {
                line.loglikelihood = found.iter().map(|l| l.sum).collect();
                line.is_greedy = found.iter().map(|l| l.greedy).collect();
            }
        }
        let mut text = serde_json::to_string(&line)
            .map_err(|e| Error::Internal(format!("cannot write JSON: {e}")))?;
        text.push('\n');
        let io = |e| Error::writing(&self.path, "cannot write", e);
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            let file = options.create(true).append(true).open(&self.path);
            self.file = Some(file.map_err(io)?);
            if self.torn {
                text.insert(0, '\n');
            }
        }
        match &mut self.file {
            Some(file) => file.write_all(text.as_bytes()).map_err(io),
            None => Ok(()),
        }
    }

    fn remove(self) {
        // What is left behind is only read by the same run again.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes one line for each document of each variant, in their order; whole or not at all.
fn write_log(log: SampleLog<'_>, all: &[Evaluated], works: &[Work]) -> Result<()> {
    let SampleLog { path, texts, .. } = log;
    let io = |e| Error::writing(path, "cannot write", e);
    let mut builder = tempfile::Builder::new();
    // Read by whoever may read what this user writes, where a temporary file is for nobody else.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder_of(path)).map_err(io)?;
    for Evaluated { score, from, .. } in all {
        for (task, work) in score.tasks.iter().zip(works) {
            for (sample, document) in task.samples.iter().zip(&work.documents) {
                let mut line = sample.line(&task.task.name, texts.then_some(document));
                if all.len() > 1 {
                    line.insert("variant".into(), from.variant.as_str().into());
                }
                writeln!(file, "{}", serde_json::Value::Object(line)).map_err(io)?;
            }
        }
    }
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_keeps_the_answers_of_its_own_run() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.jsonl");
        let answers = [
            Answer::LogLikelihoods(vec![LogLikelihood {
                sum: -0.1,
                greedy: true,
            }]),
            Answer::Text("so".into()),
        ];
        let mut journal = Journal::open(&log);
        assert_eq!(journal.recall("a", &mut []), 0);
        journal.note("t", 0, &answers[0]).unwrap();
        journal.note("t", 1, &answers[1]).unwrap();
        journal.recall("b", &mut []);
        journal.note("t", 1, &answers[0]).unwrap();
        // A line that was cut off in the middle.
        let path = folder.path().join("log.jsonl.part");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"key\": \"a\", ").unwrap();
        let mut again = Journal::open(&log);
        assert_eq!(again.known.len(), 3);
        let of =
            |key: &str, document| again.known[&(key.to_owned(), "t".to_owned(), document)].clone();
        assert_eq!(
            (of("a", 0), of("a", 1), of("b", 1)),
            (answers[0].clone(), answers[1].clone(), answers[0].clone())
        );
        again.recall("a", &mut []);
        again.note("t", 3, &answers[1]).unwrap();
        let last = Journal::open(&log);
        assert_eq!(last.known.len(), 4);
        last.remove();
        assert!(!path.exists());
    }
}
