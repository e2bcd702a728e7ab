//! One task, as a YAML file in lm_eval's keys defines it. Keys that would change a score and are not supported are errors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::filter::Pipeline;
use super::keys::Keys;
use super::metric::{Metric, Output};
use super::template::Row;
use crate::error::{Error, Result};

/// Tokens that a generation makes at most where a task does not say.
const GENERATED: usize = 256;

/// A task that is ready to be given documents.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// What it is called in tables.
    pub alias: Option<String>,
    /// The version of its definition.
    pub version: Value,
    /// The definition as it was read, with what it includes.
    pub definition: Map<String, Value>,
    /// What is asked of the model.
    pub output: Output,
    /// What is computed of the answers.
    pub metrics: Vec<Metric>,
    /// How often examples go before a document, where the definition says.
    pub shots: Option<usize>,
    pub(super) path: PathBuf,
    pub(super) source: Source,
    /// The split that is scored.
    pub(super) split: String,
    /// The split that the definition calls its test split; which examples are drawn depends on it.
    pub(super) test_split: Option<String>,
    pub(super) prompt: Prompt,
    pub(super) examples: Examples,
    pub(super) description: Option<String>,
    pub(super) generation: Generation,
    pub(super) filters: Vec<Pipeline>,
    /// Whether a document's score is the share of probability on its true choices.
    pub(super) share_of_true: bool,
}

/// Where the documents are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    /// `json`, `parquet`, or a repository of the hub.
    pub(super) path: String,
    /// The configuration within a repository.
    pub(super) name: Option<String>,
    /// The files of each split, where they are local.
    pub(super) files: BTreeMap<String, Vec<String>>,
    /// The key of a JSON file that holds the rows.
    pub(super) field: Option<String>,
    /// The revision of a repository.
    pub(super) revision: Option<String>,
}

/// How a row becomes a text, an index or a list.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Field {
    /// The column of that name, or a template.
    Text(String),
    /// The same for every row.
    Fixed(Value),
}

/// How a row becomes a question with its answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prompt {
    pub(super) text: Field,
    pub(super) target: Field,
    pub(super) choices: Option<Field>,
    /// Between a question and its answer.
    pub(super) target_delimiter: String,
    /// After an example.
    pub(super) example_delimiter: String,
    /// How every answer begins.
    pub(super) answer_prefix: Option<String>,
}

/// How examples are chosen.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Sampler {
    /// By chance, from one seed for the whole task.
    Random,
    /// The first ones.
    First,
}

/// The answered questions that go before a document.
#[derive(Debug, Clone)]
pub(super) struct Examples {
    pub(super) sampler: Sampler,
    /// The split that was named for them.
    pub(super) split: Option<String>,
    /// Where none was named: the training split, the validation split, or the test split.
    pub(super) usual_split: String,
    /// Rows that the definition itself holds.
    pub(super) rows: Option<Vec<Row>>,
    pub(super) prompt: Prompt,
}

/// How far a generation goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Generation {
    /// Texts that end it.
    pub(super) until: Vec<String>,
    /// Tokens at most.
    pub(super) tokens: usize,
}

impl Task {
    /// Takes a definition apart; `path` is where it was read, `fallback` its name where it has none.
    ///
    /// # Errors
    /// [`Error::Data`] that names the key that is missing, has the wrong form or is not supported.
    pub(super) fn new(path: &Path, fallback: &str, definition: Map<String, Value>) -> Result<Self> {
        let name = match definition.get("task") {
            Some(Value::String(name)) => name.clone(),
            _ => fallback.to_owned(),
        };
        let mut keys = Keys::new(path, &name, definition.clone());
        keys.ignore(&[
            "task",
            "tag",
            "group",
            "should_decontaminate",
            "doc_to_decontamination_query",
        ]);
        let alias = keys.text("task_alias")?;
        let version = match keys.take("metadata")? {
            Some(metadata) => metadata.get("version").cloned().unwrap_or(Value::Null),
            None => Value::Null,
        };
        let output = match keys.text("output_type")?.as_deref() {
            Some("multiple_choice") => Output::Choices,
            Some("loglikelihood") => Output::LogLikelihood,
            None | Some("generate_until") => Output::Generated,
            Some("loglikelihood_rolling") => {
                return Err(keys.fault(
                    "output_type",
                    "loglikelihood_rolling is a perplexity: use `candlepower ppl`",
                ));
            }
            Some(other) => {
                return Err(keys.fault(
                    "output_type",
                    format!("'{other}' is none of multiple_choice, loglikelihood, generate_until"),
                ));
            }
        };
        if keys.flag("unsafe_code")? == Some(true) {
            return Err(keys.fault("unsafe_code", "no generated code is run"));
        }
        match keys.count("repeats")? {
            None | Some(1) => {}
            Some(_) => return Err(keys.fault("repeats", "decoding is greedy, repeats are equal")),
        }
        let source = source(&mut keys)?;
        let training = keys.text("training_split")?;
        let validation = keys.text("validation_split")?;
        let test = keys.text("test_split")?;
        let split = test.clone().or_else(|| validation.clone());
        let split = split.ok_or_else(|| {
            keys.fault("test_split", "a test_split or a validation_split is needed")
        })?;
        let prompt = prompt(&mut keys, output)?;
        let usual = training.or(validation).unwrap_or_else(|| split.clone());
        let named = keys.text("fewshot_split")?;
        let examples = examples(&mut keys, &prompt, named, usual)?;
        let share_of_true = share_of_true(&mut keys, output)?;
        let generation = generation(&mut keys, output, &prompt)?;
        let filters = filters(&mut keys, output)?;
        let metrics = metrics(&mut keys, output, share_of_true)?;
        let description = keys.text("description")?;
        let shots = keys.count("num_fewshot")?;
        keys.finish()?;
        Ok(Self {
            name,
            alias,
            version,
            definition,
            output,
            metrics,
            shots,
            path: path.to_owned(),
            source,
            split,
            test_split: test,
            prompt,
            examples,
            description,
            generation,
            filters,
            share_of_true,
        })
    }

    /// The metric and the filter that the task is compared by: its first figure of which more is better.
    pub fn main_measure(&self) -> Option<(&str, &str)> {
        let filter = self.filters.first()?;
        let metric = self.metrics.iter().find(|m| m.higher_is_better())?;
        Some((metric.name(), &filter.name))
    }

    /// How many examples go before each document if `wish` is asked for: a task that says zero keeps to it.
    pub fn shots(&self, wish: Option<usize>) -> usize {
        match (self.shots, wish) {
            (Some(0), _) => 0,
            (_, Some(wish)) => wish,
            (own, None) => own.unwrap_or(0),
        }
    }

    /// A complaint about a document.
    pub(super) fn fault(&self, document: usize, what: impl std::fmt::Display) -> Error {
        Error::data(
            &self.path,
            format!("{}: document {document}: {what}", self.name),
        )
    }
}

fn source(keys: &mut Keys) -> Result<Source> {
    let path = keys.required("dataset_path")?;
    let name = keys.text("dataset_name")?;
    let mut source = Source {
        path,
        name,
        files: BTreeMap::new(),
        field: None,
        revision: None,
    };
    let local = ["json", "parquet"].contains(&source.path.as_str());
    if let Some(inner) = keys.take("dataset_kwargs")? {
        let mut inner = Keys::of(keys.path(), "dataset_kwargs", inner)?;
        inner.ignore(&["trust_remote_code"]);
        if let Some(value) = inner.take("data_files")? {
            source.files = files(&inner, value)?;
        }
        source.field = inner.text("field")?;
        source.revision = inner.text("revision")?;
        inner.finish()?;
    }
    if local && source.files.is_empty() {
        return Err(keys.fault("dataset_kwargs", "data_files is missing"));
    }
    if !local && !source.files.is_empty() {
        return Err(keys.fault(
            "dataset_path",
            format!(
                "'{}' with data_files: only json and parquet files are read",
                source.path
            ),
        ));
    }
    Ok(source)
}

/// The files of each split; without a split they are called `train`, as the datasets library has it.
fn files(keys: &Keys, value: Value) -> Result<BTreeMap<String, Vec<String>>> {
    let splits = match value {
        Value::Object(splits) => splits,
        files => std::iter::once(("train".to_owned(), files)).collect(),
    };
    let names: Vec<String> = splits.keys().cloned().collect();
    let mut splits = Keys::new(keys.path(), "data_files", splits);
    let mut files = BTreeMap::new();
    for name in names {
        if let Some(paths) = splits.texts(&name)? {
            files.insert(name, paths);
        }
    }
    Ok(files)
}

fn field(value: Value) -> Field {
    match value {
        Value::String(text) => Field::Text(text),
        other => Field::Fixed(other),
    }
}

/// Choices: a column, a template, or a list.
fn choices(keys: &Keys, value: Value) -> Result<Field> {
    match value {
        // Its values would be the choices, in an order that this reader does not keep.
        Value::Object(_) => Err(keys.fault(
            "doc_to_choice",
            "write the choices as a list, not as a mapping",
        )),
        other => Ok(field(other)),
    }
}

fn prompt(keys: &mut Keys, output: Output) -> Result<Prompt> {
    let missing = |keys: &Keys, key: &str| keys.fault(key, "is missing");
    let text = keys.take("doc_to_text")?;
    let text = text.ok_or_else(|| missing(keys, "doc_to_text"))?;
    let target = keys.take("doc_to_target")?;
    let target = target.ok_or_else(|| missing(keys, "doc_to_target"))?;
    let choices = match keys.take("doc_to_choice")? {
        Some(value) => Some(choices(keys, value)?),
        None => None,
    };
    if output == Output::Choices && choices.is_none() {
        return Err(missing(keys, "doc_to_choice"));
    }
    Ok(Prompt {
        text: field(text),
        target: field(target),
        choices,
        target_delimiter: keys.text("target_delimiter")?.unwrap_or_else(|| " ".into()),
        example_delimiter: keys
            .text("fewshot_delimiter")?
            .unwrap_or_else(|| "\n\n".into()),
        answer_prefix: keys.text("gen_prefix")?,
    })
}

fn examples(
    keys: &mut Keys,
    prompt: &Prompt,
    split: Option<String>,
    usual_split: String,
) -> Result<Examples> {
    let mut examples = Examples {
        sampler: Sampler::Random,
        split,
        usual_split,
        rows: None,
        prompt: prompt.clone(),
    };
    let Some(inner) = keys.take("fewshot_config")? else {
        return Ok(examples);
    };
    let mut inner = Keys::of(keys.path(), "fewshot_config", inner)?;
    examples.sampler = match inner.text("sampler")?.as_deref() {
        None | Some("default") => Sampler::Random,
        Some("first_n") => Sampler::First,
        Some(other) => {
            return Err(inner.fault(
                "sampler",
                format!("'{other}' is neither default nor first_n"),
            ));
        }
    };
    if let Some(split) = inner.text("split")? {
        examples.split = Some(split);
    }
    if let Some(rows) = inner.list("samples")? {
        let rows = rows.into_iter().map(|row| match row {
            Value::Object(row) => Ok(row),
            other => Err(inner.fault("samples", format!("expected a mapping, found {other}"))),
        });
        examples.rows = Some(rows.collect::<Result<_>>()?);
    }
    let own = &mut examples.prompt;
    if let Some(text) = inner.take("doc_to_text")? {
        own.text = field(text);
    }
    if let Some(target) = inner.take("doc_to_target")? {
        own.target = field(target);
    }
    if let Some(value) = inner.take("doc_to_choice")? {
        own.choices = Some(choices(&inner, value)?);
    }
    if let Some(text) = inner.text("target_delimiter")? {
        own.target_delimiter = text;
    }
    if let Some(text) = inner.text("fewshot_delimiter")? {
        own.example_delimiter = text;
    }
    if let Some(text) = inner.text("gen_prefix")? {
        own.answer_prefix = Some(text);
    }
    inner.finish()?;
    Ok(examples)
}

/// The one function of lm_eval's own tasks that is known: the score of `truthfulqa_mc2`.
fn share_of_true(keys: &mut Keys, output: Output) -> Result<bool> {
    match keys.function("process_results")?.as_deref() {
        None => Ok(false),
        Some("utils.process_results_mc2") if output == Output::Choices => Ok(true),
        Some(name) => Err(keys.fault(
            "process_results",
            format!("the function '{name}' is Python, which cannot run here"),
        )),
    }
}

fn generation(keys: &mut Keys, output: Output, prompt: &Prompt) -> Result<Generation> {
    let mut generation = Generation {
        until: vec![prompt.example_delimiter.clone()],
        tokens: GENERATED,
    };
    let Some(inner) = keys.take("generation_kwargs")? else {
        return Ok(generation);
    };
    if output != Output::Generated {
        return Err(keys.fault("generation_kwargs", "only generate_until generates"));
    }
    let mut inner = Keys::of(keys.path(), "generation_kwargs", inner)?;
    if let Some(until) = inner.texts("until")? {
        generation.until = until;
    }
    if inner.flag("do_sample")? == Some(true) {
        return Err(inner.fault("do_sample", "tasks are decoded greedily"));
    }
    if inner.number("temperature")?.is_some_and(|t| t > 0.0) {
        return Err(inner.fault("temperature", "tasks are decoded greedily: leave it at 0"));
    }
    let names = [
        "max_gen_toks",
        "max_new_tokens",
        "max_tokens",
        "max_completion_tokens",
    ];
    let mut most = None;
    for name in names {
        let found = inner.count(name)?;
        most = most.or(found);
    }
    generation.tokens = most.unwrap_or(GENERATED);
    if generation.tokens == 0 {
        return Err(inner.fault("max_gen_toks", "must be above 0"));
    }
    inner.finish()?;
    Ok(generation)
}

fn filters(keys: &mut Keys, output: Output) -> Result<Vec<Pipeline>> {
    let Some(list) = keys.list("filter_list")? else {
        return Ok(vec![Pipeline::plain()]);
    };
    if output != Output::Generated {
        return Err(keys.fault("filter_list", "only what generate_until makes is filtered"));
    }
    let pipelines = list.into_iter().map(|one| {
        let mut inner = Keys::of(keys.path(), "filter_list", one)?;
        let name = inner.required("name")?;
        let steps = inner.list("filter")?.unwrap_or_default();
        let steps = steps
            .into_iter()
            .map(|step| Keys::of(inner.path(), &format!("filter_list: {name}"), step))
            .collect::<Result<Vec<_>>>()?;
        inner.finish()?;
        Pipeline::new(name, steps)
    });
    let pipelines: Vec<Pipeline> = pipelines.collect::<Result<_>>()?;
    if pipelines.is_empty() {
        return Err(keys.fault("filter_list", "is empty"));
    }
    Ok(pipelines)
}

fn metrics(keys: &mut Keys, output: Output, share_of_true: bool) -> Result<Vec<Metric>> {
    let Some(list) = keys.list("metric_list")? else {
        return Ok(Metric::usual(output));
    };
    let metrics = list.into_iter().map(|one| {
        let inner = Keys::of(keys.path(), "metric_list", one)?;
        Metric::new(inner, output)
    });
    let metrics: Vec<Metric> = metrics.collect::<Result<_>>()?;
    let mut seen: Vec<&str> = Vec::new();
    for metric in &metrics {
        if seen.contains(&metric.name()) {
            return Err(keys.fault("metric_list", format!("'{}' comes twice", metric.name())));
        }
        seen.push(metric.name());
    }
    if metrics.is_empty() {
        return Err(keys.fault("metric_list", "is empty"));
    }
    if share_of_true && seen != ["acc"] {
        return Err(keys.fault("metric_list", "process_results_mc2 gives acc alone"));
    }
    Ok(metrics)
}
