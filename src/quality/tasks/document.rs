//! From the rows of a data set to what is asked of the model: contexts with their examples, continuations, right answers.
//! The rules are lm_eval's (`ConfigurableTask.fewshot_context`, `build_qa_turn`, `construct_requests`).

use std::sync::Arc;

use serde_json::{Map, Value};

use super::metric::{Kind, Output};
use super::python;
use super::random::Random;
use super::rows::Rows;
use super::task::{Field, Prompt, Sampler, Task};
use super::template::{Row, Templates};
use crate::error::{Error, Result};

/// The seed of the examples, lm_eval's `fewshot_seed`.
pub const EXAMPLE_SEED: u32 = 1234;

/// How many documents of a task are scored: the first ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// This many.
    Count(usize),
    /// This share, rounded up.
    Share(f64),
}

impl Limit {
    /// How many of `n` documents.
    pub fn of(self, n: usize) -> usize {
        match self {
            Self::Count(count) => count.min(n),
            Self::Share(share) => ((n as f64 * share).ceil() as usize).min(n),
        }
    }
}

/// What is asked of the model once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it is given.
    pub context: Arc<str>,
    /// What is scored after it; empty where the model itself goes on.
    pub continuation: String,
}

/// The right answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Gold {
    /// The numbers of choices, each of them right.
    Choices(Vec<usize>),
    /// Texts, each of them right.
    Texts(Vec<String>),
    /// For each choice, whether it is true.
    Truths(Vec<bool>),
    /// The continuation itself.
    Continuation,
}

/// One document of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its place in the split.
    pub id: usize,
    /// The requests; of choices, one each in their order, and then those without a context if their mutual information is
    /// wanted.
    pub requests: Vec<Request>,
    /// The bare choices, whose lengths `acc_norm` and `acc_bytes` divide by.
    pub choices: Vec<String>,
    /// What is right.
    pub gold: Gold,
}

/// The documents of a task, and of how many they are the first.
#[derive(Debug, Clone, PartialEq)]
pub struct Documents {
    /// Those within the limit.
    pub documents: Vec<Document>,
    /// All of the split.
    pub of: usize,
}

impl Documents {
    /// Reads a task's rows and makes requests of them.
    ///
    /// # Errors
    /// If data cannot be had, a template fails, or an answer is none of the choices; each with the task, the document and
    /// the key of the definition.
    pub fn prepare(task: &Task, shots: usize, limit: Option<Limit>) -> Result<Self> {
        let mut rows = Rows::of(task);
        let scored = rows.split(&task.split)?;
        let of = scored.len();
        let count = limit.map_or(of, |limit| limit.of(of));
        if count == 0 {
            return Err(Error::Usage(format!(
                "--limit leaves no document of {}",
                task.name
            )));
        }
        let scored: Vec<Row> = scored[..count].to_vec();
        let pool: Vec<Row> = match (shots, &task.examples.split, &task.examples.rows) {
            (0, ..) => Vec::new(),
            (_, Some(split), _) => rows.split(split)?.to_vec(),
            (_, None, Some(own)) => own.clone(),
            (_, None, None) => rows.split(&task.examples.usual_split)?.to_vec(),
        };
        let writer = Writer {
            task,
            templates: Templates::new(),
            columns: &scored[0],
        };
        let mut drawer = Drawer {
            random: Random::new(EXAMPLE_SEED),
            pool: &pool,
            // Where examples come from what is scored, a document is no example of itself.
            apart: task.examples.split == task.test_split,
            task,
            shots,
        };
        let documents = scored.iter().enumerate().map(|(id, row)| {
            let examples = drawer.draw(id, row)?;
            writer
                .document(id, row, &examples)
                .map_err(|what| task.fault(id, what))
        });
        Ok(Self {
            documents: documents.collect::<Result<_>>()?,
            of,
        })
    }
}

/// Draws examples for one document after the other.
struct Drawer<'a> {
    random: Random,
    pool: &'a [Row],
    apart: bool,
    task: &'a Task,
    shots: usize,
}

impl<'a> Drawer<'a> {
    fn draw(&mut self, id: usize, row: &Row) -> Result<Vec<&'a Row>> {
        let few = || {
            self.task.fault(
                id,
                format!(
                    "{} examples are wanted, of {} rows",
                    self.shots,
                    self.pool.len()
                ),
            )
        };
        let other = |example: &&Row| !self.apart || *example != row;
        if self.shots == 0 {
            return Ok(Vec::new());
        }
        let pool = self.pool;
        let drawn = |random: &mut Random, count: usize| random.sample(pool.len(), count);
        let examples: Vec<&Row> = match self.task.examples.sampler {
            Sampler::First => pool.iter().filter(other).take(self.shots).collect(),
            Sampler::Random => {
                let count = self.shots + usize::from(self.apart);
                let places = drawn(&mut self.random, count).ok_or_else(few)?;
                let chosen = places.into_iter().map(|place| &pool[place]);
                chosen.filter(other).take(self.shots).collect()
            }
        };
        if examples.len() == self.shots {
            return Ok(examples);
        }
        // Copies of the document took places of the draw: it is repeated without any.
        let rest: Vec<&Row> = pool.iter().filter(other).collect();
        let places = match self.task.examples.sampler {
            Sampler::First => None,
            Sampler::Random => self.random.sample(rest.len(), self.shots),
        };
        let places = places.ok_or_else(few)?;
        Ok(places.into_iter().map(|place| rest[place]).collect())
    }
}

/// What a key of the definition gives for a row.
enum Given {
    Number(i64),
    Text(String),
    List(Vec<Value>),
}

impl Given {
    fn of(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Ok(Self::Text(text.clone())),
            Value::Array(items) => Ok(Self::List(items.clone())),
            Value::Bool(flag) => Ok(Self::Number(i64::from(*flag))),
            Value::Number(number) if number.as_i64().is_some() => {
                Ok(Self::Number(number.as_i64().unwrap_or_default()))
            }
            other => Err(format!("gives {other}, which is no text, number or list")),
        }
    }
}

/// Makes requests of rows.
struct Writer<'a> {
    task: &'a Task,
    templates: Templates,
    columns: &'a Row,
}

impl Writer<'_> {
    fn document(&self, id: usize, row: &Row, examples: &[&Row]) -> Result<Document, String> {
        let prompt = &self.task.prompt;
        let mut before = match &self.task.description {
            Some(description) => self
                .resolved(description, row)
                .map_err(key("description"))?,
            None => String::new(),
        };
        for example in examples {
            self.example(example, &mut before)
                .map_err(|what| format!("an example of it: {what}"))?;
        }
        let prefix = self.prefix(prompt, row)?;
        let question = self.text(prompt, row).map_err(key("doc_to_text"))?;
        let target = self.target(prompt, row).map_err(key("doc_to_target"))?;
        let choices = match &prompt.choices {
            Some(field) => self.choices(field, row).map_err(key("doc_to_choice"))?,
            None => Vec::new(),
        };
        let with = |question: &str, delimiter: &str| -> Arc<str> {
            let mut context = format!("{before}{question}");
            if let Some(prefix) = &prefix {
                if needs_delimiter(question, prefix) {
                    context.push_str(delimiter);
                }
                context.push_str(prefix);
            }
            context.into()
        };
        let delimiter = &prompt.target_delimiter;
        let (contexts, gold_of_text) = match question {
            Given::Text(question) => (vec![with(&question, delimiter)], None),
            // The number of the right one of several contexts.
            Given::Number(gold) if !choices.is_empty() => (
                choices.iter().map(|choice| with(choice, "")).collect(),
                Some(gold),
            ),
            Given::Number(_) | Given::List(_) => {
                return Err("doc_to_text: gives no text".into());
            }
        };
        let request = |context: &Arc<str>, continuation: String| Request {
            context: context.clone(),
            continuation,
        };
        let mut requests: Vec<Request> = match (self.task.output, gold_of_text) {
            (Output::Choices, Some(_)) => {
                let continuation = format!("{delimiter}{}", plain(&target)?);
                contexts
                    .iter()
                    .map(|context| request(context, continuation.clone()))
                    .collect()
            }
            (Output::Choices, None) => {
                let each = choices.iter();
                each.map(|choice| request(&contexts[0], format!("{delimiter}{choice}")))
                    .collect()
            }
            (Output::LogLikelihood, _) => vec![request(&contexts[0], plain(&target)?)],
            (Output::Generated, _) => vec![request(&contexts[0], String::new())],
        };
        let gold = self.gold(gold_of_text, target, &choices, row)?;
        let mutual = |metric: &super::metric::Metric| matches!(metric.kind(), Kind::AccMutualInfo);
        if self.task.metrics.iter().any(mutual) {
            let nothing: Arc<str> = "".into();
            requests.extend(
                choices
                    .iter()
                    .map(|choice| request(&nothing, format!("{delimiter}{choice}"))),
            );
        }
        Ok(Document {
            id,
            requests,
            choices,
            gold,
        })
    }

    /// An answered question, with what follows it.
    fn example(&self, row: &Row, out: &mut String) -> Result<(), String> {
        let prompt = &self.task.examples.prompt;
        let prefix = self.prefix(prompt, row)?;
        let target = self.target(prompt, row).map_err(key("doc_to_target"))?;
        let mut choices = match &prompt.choices {
            Some(field) => self.choices(field, row).map_err(key("doc_to_choice"))?,
            None => Vec::new(),
        };
        let chosen = |choices: &[String], number: i64| {
            let place = usize::try_from(number).ok();
            let found = place.and_then(|place| choices.get(place)).cloned();
            found.ok_or_else(|| format!("the label {number} is none of {} choices", choices.len()))
        };
        let question = match self.text(prompt, row).map_err(key("doc_to_text"))? {
            Given::Text(question) => question,
            Given::Number(number) => chosen(&std::mem::take(&mut choices), number)?,
            Given::List(_) => return Err("doc_to_text: gives no text".into()),
        };
        let answer = match target {
            Given::Number(number) if !choices.is_empty() => chosen(&choices, number)?,
            Given::List(items) => match items.first() {
                Some(Value::String(first)) => first.clone(),
                _ => return Err("doc_to_target: gives no text".into()),
            },
            other => plain(&other)?,
        };
        out.push_str(&question);
        if answer.is_empty() {
            // Nothing is answered, so nothing follows.
            if let Some(prefix) = &prefix {
                if needs_delimiter(&question, prefix) {
                    out.push_str(&prompt.target_delimiter);
                }
                out.push_str(prefix);
            }
            return Ok(());
        }
        match &prefix {
            None => {
                out.push_str(&prompt.target_delimiter);
                out.push_str(&answer);
            }
            Some(prefix) => {
                if needs_delimiter(&question, prefix) {
                    out.push_str(&prompt.target_delimiter);
                }
                out.push_str(prefix);
                if needs_delimiter(prefix, &answer) {
                    out.push(' ');
                }
                out.push_str(&answer);
            }
        }
        out.push_str(&prompt.example_delimiter);
        Ok(())
    }

    fn prefix(&self, prompt: &Prompt, row: &Row) -> Result<Option<String>, String> {
        let prefix = prompt.answer_prefix.as_ref();
        let prefix = prefix.map(|prefix| self.resolved(prefix, row).map_err(key("gen_prefix")));
        Ok(prefix.transpose()?.filter(|prefix| !prefix.is_empty()))
    }

    /// The text of a column, or a template.
    fn resolved(&self, field: &str, row: &Row) -> Result<String, String> {
        match row.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("the column '{field}' holds {other}, no text")),
            None => self.templates.render(field, row),
        }
    }

    fn column<'r>(&self, field: &str, row: &'r Row) -> Result<Option<&'r Value>, String> {
        match (self.columns.contains_key(field), row.get(field)) {
            (false, _) => Ok(None),
            (true, Some(value)) => Ok(Some(value)),
            (true, None) => Err(format!("the row has no column '{field}'")),
        }
    }

    fn text(&self, prompt: &Prompt, row: &Row) -> Result<Given, String> {
        match &prompt.text {
            Field::Fixed(value) => Given::of(value),
            Field::Text(field) => match self.column(field, row)? {
                Some(value) => Given::of(value),
                None => Ok(self.indexed(self.templates.render(field, row)?)),
            },
        }
    }

    fn target(&self, prompt: &Prompt, row: &Row) -> Result<Given, String> {
        let field = match &prompt.target {
            Field::Fixed(value) => return Given::of(value),
            Field::Text(field) => field,
        };
        if let Some(value) = self.column(field, row)? {
            return Given::of(value);
        }
        match self.indexed(self.templates.render(field, row)?) {
            Given::Text(text) if text.starts_with('[') && text.ends_with(']') => {
                match python::literal(&text) {
                    Ok(Value::Array(items)) => Ok(Given::List(items)),
                    _ => Ok(Given::Text(text)),
                }
            }
            other => Ok(other),
        }
    }

    /// Where there are choices, digits are the number of one.
    fn indexed(&self, text: String) -> Given {
        match text.parse() {
            Ok(number) if self.task.prompt.choices.is_some() && python::is_digits(&text) => {
                Given::Number(number)
            }
            _ => Given::Text(text),
        }
    }

    fn choices(&self, field: &Field, row: &Row) -> Result<Vec<String>, String> {
        let value = match field {
            Field::Fixed(value) => value.clone(),
            Field::Text(field) => match self.column(field, row)? {
                Some(value) => value.clone(),
                None => python::literal(
                    self.templates
                        .render(field, row)?
                        .trim_start_matches([' ', '\t']),
                )?,
            },
        };
        let Value::Array(items) = value else {
            return Err(format!("gives {value}, not a list of choices"));
        };
        if items.is_empty() {
            return Err("there are no choices".into());
        }
        let choices = items.into_iter().map(|item| match item {
            Value::String(text) if text.is_empty() => Err("a choice is empty".to_owned()),
            Value::String(text) => Ok(text),
            other => Err(format!("the choice {other} is no text")),
        });
        choices.collect()
    }

    fn gold(
        &self,
        of_text: Option<i64>,
        target: Given,
        choices: &[String],
        row: &Row,
    ) -> Result<Gold, String> {
        if self.task.share_of_true {
            return truths(row, choices.len()).map(Gold::Truths);
        }
        let index = |number: i64| {
            let place = usize::try_from(number)
                .ok()
                .filter(|&place| place < choices.len());
            place.ok_or_else(|| format!("the label {number} is none of {} choices", choices.len()))
        };
        let by_text = |text: &str| {
            let place = choices.iter().position(|choice| choice == text);
            place.ok_or_else(|| format!("the label '{text}' is none of the choices"))
        };
        match (self.task.output, of_text, target) {
            (Output::LogLikelihood, ..) => Ok(Gold::Continuation),
            (Output::Choices, Some(number), _) => Ok(Gold::Choices(vec![index(number)?])),
            (Output::Choices, None, Given::Number(number)) => {
                Ok(Gold::Choices(vec![index(number)?]))
            }
            (Output::Choices, None, Given::Text(text)) => Ok(Gold::Choices(vec![by_text(&text)?])),
            (Output::Choices, None, Given::List(items)) => {
                let places = items.iter().map(|item| match Given::of(item)? {
                    Given::Number(number) => index(number),
                    Given::Text(text) => by_text(&text),
                    Given::List(_) => Err("the labels are lists".into()),
                });
                Ok(Gold::Choices(places.collect::<Result<_, _>>()?))
            }
            (Output::Generated, _, Given::Number(number)) if !choices.is_empty() => {
                Ok(Gold::Texts(vec![choices[index(number)?].clone()]))
            }
            (Output::Generated, _, Given::List(items)) => {
                let texts = items.iter().map(|item| plain(&Given::of(item)?));
                Ok(Gold::Texts(texts.collect::<Result<_, _>>()?))
            }
            (Output::Generated, _, other) => Ok(Gold::Texts(vec![plain(&other)?])),
        }
    }
}

/// The labels of `truthfulqa_mc2`.
fn truths(row: &Row, choices: usize) -> Result<Vec<bool>, String> {
    let labels = row
        .get("mc2_targets")
        .and_then(|targets| targets.get("labels"));
    let labels = labels.and_then(Value::as_array);
    let labels = labels.ok_or("the row has no mc2_targets.labels")?;
    if labels.len() != choices {
        return Err(format!("{} labels for {choices} choices", labels.len()));
    }
    Ok(labels
        .iter()
        .map(|label| label.as_i64() == Some(1))
        .collect())
}

/// Puts the key in front of what is wrong with it.
fn key(name: &'static str) -> impl Fn(String) -> String {
    move |what| format!("{name}: {what}")
}

fn plain(given: &Given) -> Result<String, String> {
    match given {
        Given::Text(text) => Ok(text.clone()),
        Given::Number(number) => Ok(number.to_string()),
        Given::List(_) => Err("doc_to_target: gives a list where one text is needed".into()),
    }
}

/// Whether neither side has white space where they meet.
fn needs_delimiter(before: &str, after: &str) -> bool {
    let space = |c: Option<char>| c.is_some_and(python::is_space);
    let joined = space(before.chars().next_back()) || space(after.chars().next());
    !before.is_empty() && !joined
}

/// The texts of a document, for a log that holds them.
pub(super) fn texts(document: &Document) -> Map<String, Value> {
    let requests = document.requests.iter().map(|request| {
        serde_json::json!({"context": &*request.context, "continuation": request.continuation})
    });
    let mut map = Map::new();
    map.insert("requests".into(), requests.collect());
    map
}
