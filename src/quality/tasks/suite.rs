//! Tasks by name: those in the binary, YAML files, and JSON Lines files whose columns say what they are.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::rows;
use super::task::Task;
use super::yaml;
use crate::error::{Error, Result};

/// The definitions in the binary.
const FILES: &[(&str, &str)] = &[
    ("arc_challenge", include_str!("builtin/arc_challenge.yaml")),
    ("arc_easy", include_str!("builtin/arc_easy.yaml")),
    ("gsm8k", include_str!("builtin/gsm8k.yaml")),
    ("hellaswag", include_str!("builtin/hellaswag.yaml")),
    (
        "lambada_openai",
        include_str!("builtin/lambada_openai.yaml"),
    ),
    ("openbookqa", include_str!("builtin/openbookqa.yaml")),
    ("piqa", include_str!("builtin/piqa.yaml")),
    (
        "truthfulqa_mc1",
        include_str!("builtin/truthfulqa_mc1.yaml"),
    ),
    (
        "truthfulqa_mc2",
        include_str!("builtin/truthfulqa_mc2.yaml"),
    ),
    ("winogrande", include_str!("builtin/winogrande.yaml")),
];
/// What every subject of MMLU shares, and the subjects by area.
const MMLU: &str = include_str!("builtin/mmlu.yaml");
const MMLU_SUBJECTS: &str = include_str!("builtin/mmlu_subjects.yaml");
/// The definitions of JSON Lines files, by the columns that such a file has.
const BY_COLUMNS: &[(&[&str], &str)] = &[
    (
        &["query", "choices", "gold"],
        include_str!("builtin/rows_choices.yaml"),
    ),
    (
        &["context_options", "continuation", "gold"],
        include_str!("builtin/rows_contexts.yaml"),
    ),
    (
        &["context", "continuation"],
        include_str!("builtin/rows_continuation.yaml"),
    ),
    (
        &["prompt", "reference"],
        include_str!("builtin/rows_reference.yaml"),
    ),
    (&["question", "answer"], include_str!("builtin/gsm8k.yaml")),
];
/// How deep files may include each other.
const DEPTH: usize = 16;

/// The tasks that were asked for, each once.
#[derive(Debug, Clone, Default)]
pub struct Suite {
    /// In the order in which they were named.
    pub tasks: Vec<Task>,
    /// Names that stand for several tasks.
    pub groups: Vec<Group>,
}

/// Tasks that are reported as one figure: the mean over their documents.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// What it is called in tables.
    pub alias: Option<String>,
    /// The version of its definition.
    pub version: Value,
    /// The names of its tasks, those of its own groups among them.
    pub tasks: Vec<String>,
    /// What it was made of by name: tasks and groups.
    pub members: Vec<String>,
    /// Whether a document counts the same whatever its task; else a task does.
    pub by_size: bool,
    /// The metrics that are taken together.
    pub metrics: Vec<String>,
}

impl Group {
    /// The first metric that is taken together over its tasks and of which more is better; `None` of a group that only
    /// names tasks, which has no figure.
    pub fn main_metric<'a>(&self, tasks: impl IntoIterator<Item = &'a Task>) -> Option<&str> {
        let own = tasks.into_iter().filter(|t| self.tasks.contains(&t.name));
        let own: Vec<&Task> = own.collect();
        let has = |task: &Task, name: &str| {
            let metrics = &task.metrics;
            let is_metric = metrics
                .iter()
                .any(|metric| metric.name() == name && metric.higher_is_better());
            is_metric && task.filters.iter().any(|filter| filter.name == "none")
        };
        let mut metrics = self.metrics.iter().map(String::as_str);
        metrics.find(|name| own.iter().any(|task| has(task, name)))
    }
}

impl Suite {
    /// Finds what is named: a task or group in the binary, a `.yaml` file, or a `.jsonl` file.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that nothing has, with those that are near; [`Error::Data`] for a file that is wrong.
    pub fn find(names: &[String]) -> Result<Self> {
        let mut suite = Self::default();
        for name in names {
            suite.add(Path::new(""), name, 0)?;
        }
        match suite.tasks.is_empty() {
            true => Err(Error::Usage("no task is named: give --tasks".into())),
            false => Ok(suite),
        }
    }

    /// The names in the binary.
    pub fn known() -> Vec<String> {
        let mut names: Vec<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        names.push("mmlu".into());
        for (area, subjects) in areas() {
            names.push(format!("mmlu_{area}"));
            names.extend(subjects.iter().map(|subject| format!("mmlu_{subject}")));
        }
        names
    }

    /// Adds what a name stands for; gives the names of its tasks.
    fn add(&mut self, folder: &Path, name: &str, depth: usize) -> Result<Vec<String>> {
        if depth > DEPTH {
            return Err(Error::Usage(format!("{name}: groups hold each other")));
        }
        let ending = Path::new(name)
            .extension()
            .and_then(|ending| ending.to_str());
        let beside = folder.join(name);
        let path = if beside.exists() {
            beside.as_path()
        } else {
            Path::new(name)
        };
        match ending {
            Some("yaml" | "yml") => {
                let definition = read_definition(path, 0)?;
                let stem = path
                    .file_stem()
                    .map_or_else(String::new, |s| s.to_string_lossy().into_owned());
                self.add_definition(path, &stem, definition, depth)
            }
            Some("jsonl" | "json") => self.add_task(by_columns(path)?),
            _ => match built_in(name, 0)? {
                Some(Found::Task(definition)) => {
                    self.add_task(Task::new(&origin(name), name, definition)?)
                }
                Some(Found::Group(definition)) => {
                    self.add_definition(&origin(name), name, definition, depth)
                }
                None => Err(unknown(name)),
            },
        }
    }

    fn add_definition(
        &mut self,
        path: &Path,
        fallback: &str,
        definition: Map<String, Value>,
        depth: usize,
    ) -> Result<Vec<String>> {
        let is_group = definition.contains_key("group")
            && definition.get("task").is_some_and(|task| !task.is_string());
        if is_group || definition.get("task").is_some_and(Value::is_array) {
            self.add_group(path, definition, depth)
        } else {
            self.add_task(Task::new(path, fallback, definition)?)
        }
    }

    fn add_task(&mut self, task: Task) -> Result<Vec<String>> {
        let name = task.name.clone();
        match self.tasks.iter().find(|other| other.name == name) {
            None => self.tasks.push(task),
            Some(same) if same.definition == task.definition => {}
            Some(_) => {
                return Err(Error::Usage(format!(
                    "two different tasks are called '{name}': give one of them another `task`"
                )));
            }
        }
        Ok(vec![name])
    }

    fn add_group(
        &mut self,
        path: &Path,
        definition: Map<String, Value>,
        depth: usize,
    ) -> Result<Vec<String>> {
        let mut keys = Keys::new(path, "group", definition);
        let name = keys.required("group")?;
        let alias = keys.text("group_alias")?;
        let version = keys.take("metadata")?;
        let version = version
            .and_then(|m| m.get("version").cloned())
            .unwrap_or(Value::Null);
        keys.ignore(&["tag"]);
        let members =
            keys.list("task")?
                .unwrap_or_default()
                .into_iter()
                .map(|member| match member {
                    Value::String(member) => Ok(member),
                    other => Err(keys.fault("task", format!("expected names, found {other}"))),
                });
        let members: Vec<String> = members.collect::<Result<_>>()?;
        let mut metrics = Vec::new();
        let mut by_size = true;
        for one in keys.list("aggregate_metric_list")?.unwrap_or_default() {
            let mut inner = Keys::of(path, "aggregate_metric_list", one)?;
            metrics.push(inner.required("metric")?);
            by_size = inner.flag("weight_by_size")?.unwrap_or(true);
            if inner.text("aggregation")?.is_some_and(|a| a != "mean") {
                return Err(inner.fault("aggregation", "only mean is supported"));
            }
            if inner.texts("filter_list")?.is_some_and(|f| f != ["none"]) {
                return Err(inner.fault("filter_list", "only none is supported"));
            }
            inner.finish()?;
        }
        keys.finish()?;
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        let at = self.groups.len();
        let mut tasks: Vec<String> = Vec::new();
        for member in &members {
            let found = self.add(&folder, member, depth + 1)?;
            tasks.extend(
                found
                    .into_iter()
                    .filter(|name| !tasks.contains(name))
                    .collect::<Vec<_>>(),
            );
        }
        if !self.groups.iter().any(|group| group.name == name) {
            let group = Group {
                name,
                alias,
                version,
                tasks: tasks.clone(),
                members,
                by_size,
                metrics,
            };
            // Before the groups that it holds.
            self.groups.insert(at, group);
        }
        Ok(tasks)
    }
}

/// What a name in the binary stands for.
enum Found {
    Task(Map<String, Value>),
    Group(Map<String, Value>),
}

/// How a definition in the binary is called in messages.
fn origin(name: &str) -> std::path::PathBuf {
    format!("task {name}").into()
}

fn areas() -> Vec<(String, Vec<String>)> {
    let subjects = yaml::parse(Path::new("mmlu_subjects"), MMLU_SUBJECTS).unwrap_or_default();
    let list = |value: &Value| -> Vec<String> {
        let items = value.as_array().map_or(&[][..], Vec::as_slice);
        items
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    let areas = subjects.as_object().into_iter().flatten();
    areas
        .map(|(area, value)| (area.clone(), list(value)))
        .collect()
}

fn built_in(name: &str, depth: usize) -> Result<Option<Found>> {
    if let Some((_, text)) = FILES.iter().find(|(known, _)| *known == name) {
        return included(&origin(name), text, depth)
            .map(|definition| Some(Found::Task(definition)));
    }
    let Some(part) = name.strip_prefix("mmlu") else {
        return Ok(None);
    };
    let part = part.strip_prefix('_').unwrap_or(part);
    let areas = areas();
    let group = |members: Vec<String>, alias: &str| {
        let definition = json!({
            "group": name, "group_alias": alias, "task": members,
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": true}], "metadata": {"version": 2},
        });
        Found::Group(definition.as_object().cloned().unwrap_or_default())
    };
    if name == "mmlu" {
        let members = areas
            .iter()
            .map(|(area, _)| format!("mmlu_{area}"))
            .collect();
        return Ok(Some(group(members, name)));
    }
    if let Some((area, subjects)) = areas.iter().find(|(area, _)| area == part) {
        let members = subjects
            .iter()
            .map(|subject| format!("mmlu_{subject}"))
            .collect();
        return Ok(Some(group(members, &area.replace('_', " "))));
    }
    if !areas
        .iter()
        .any(|(_, subjects)| subjects.iter().any(|subject| subject == part))
    {
        return Ok(None);
    }
    let mut definition = included(&origin(name), MMLU, depth)?;
    let subject = part.replace('_', " ");
    definition.insert("task".into(), name.into());
    definition.insert("task_alias".into(), subject.as_str().into());
    definition.insert("dataset_name".into(), part.into());
    let description =
        format!("The following are multiple choice questions (with answers) about {subject}.\n\n");
    definition.insert("description".into(), description.into());
    Ok(Some(Found::Task(definition)))
}

fn read_definition(path: &Path, depth: usize) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::reading(path, "cannot read", e))?;
    included(path, &text, depth)
}

/// A definition with what it includes: files beside it, else definitions in the binary. Its own keys win.
fn included(path: &Path, text: &str, depth: usize) -> Result<Map<String, Value>> {
    if depth > DEPTH {
        return Err(Error::data(path, "include: files include each other"));
    }
    let Value::Object(mut own) = yaml::parse(path, text)? else {
        return Err(Error::data(path, "expected a mapping of a task's keys"));
    };
    let Some(included_files) = own.remove("include") else {
        return Ok(own);
    };
    let mut keys = Keys::new(
        path,
        "task",
        std::iter::once(("include".to_owned(), included_files)).collect(),
    );
    let mut merged = Map::new();
    for file in keys.texts("include")?.unwrap_or_default() {
        let beside = path
            .parent()
            .map(|folder| folder.join(&file))
            .unwrap_or_default();
        let stem = file.trim_end_matches(".yaml").trim_end_matches(".yml");
        let base = if beside.is_file() {
            read_definition(&beside, depth + 1)?
        } else if let Some(Found::Task(definition)) = built_in(stem, depth + 1)? {
            definition
        } else {
            return Err(Error::data(path, format!("include: there is no '{file}'")));
        };
        merged.extend(base);
    }
    merged.extend(own);
    Ok(merged)
}

/// The task that a JSON Lines file holds.
fn by_columns(path: &Path) -> Result<Task> {
    let rows = rows::read(path, None)?;
    let first = rows
        .first()
        .ok_or_else(|| Error::data(path, "holds no rows"))?;
    let fits = |columns: &[&str]| columns.iter().all(|column| first.contains_key(*column));
    let Some((_, text)) = BY_COLUMNS.iter().find(|(columns, _)| fits(columns)) else {
        let known: Vec<String> = BY_COLUMNS
            .iter()
            .map(|(columns, _)| format!("{{{}}}", columns.join(", ")))
            .collect();
        let found: Vec<&str> = first.keys().map(String::as_str).collect();
        return Err(Error::data(
            path,
            format!(
                "rows of {{{}}} are no known kind of task, which are {}: write a YAML task for others",
                found.join(", "),
                known.join(", ")
            ),
        ));
    };
    let stem = path
        .file_stem()
        .map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    let mut definition = included(path, text, 0)?;
    for key in ["dataset_name", "training_split", "validation_split", "tag"] {
        definition.remove(key);
    }
    definition.insert("task".into(), stem.as_str().into());
    definition.insert("dataset_path".into(), "json".into());
    definition.insert(
        "dataset_kwargs".into(),
        json!({"data_files": path.to_string_lossy()}),
    );
    definition.insert("test_split".into(), "train".into());
    definition.insert("fewshot_split".into(), "train".into());
    Task::new(path, &stem, definition)
}

fn unknown(name: &str) -> Error {
    let known = Suite::known();
    let mut near: Vec<(usize, &String)> = known
        .iter()
        .map(|other| (distance(name, other), other))
        .collect();
    near.sort();
    let most = name.chars().count() / 2;
    let near: Vec<&str> = near
        .iter()
        .filter(|(distance, other)| *distance <= most.min(4) || other.starts_with(name))
        .take(3)
        .map(|(_, other)| other.as_str())
        .collect();
    let advice = if near.is_empty() {
        let names: Vec<&str> = FILES
            .iter()
            .map(|(name, _)| *name)
            .chain(["mmlu"])
            .collect();
        format!("known are {}", names.join(", "))
    } else {
        format!("do you mean {}?", near.join(" or "))
    };
    Error::Usage(format!(
        "there is no task '{name}': {advice} A file is named by its ending, .yaml or .jsonl"
    ))
}

/// Insertions, deletions and replacements between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != *y))
                .min(above + 1)
                .min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(names: &[&str]) -> Result<Suite> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        Suite::find(&names)
    }

    #[test]
    fn every_name_in_the_binary_is_a_task_or_a_group() {
        for name in Suite::known() {
            let suite = find(&[&name]).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(!suite.tasks.is_empty());
        }
        let mmlu = find(&["mmlu", "arc_easy"]).unwrap();
        assert_eq!(mmlu.tasks.len(), 58);
        let groups: Vec<(&str, usize)> = mmlu
            .groups
            .iter()
            .map(|g| (g.name.as_str(), g.tasks.len()))
            .collect();
        assert_eq!(groups[0], ("mmlu", 57));
        assert!(
            groups.contains(&("mmlu_stem", 19)) && groups.contains(&("mmlu_social_sciences", 12))
        );
    }

    #[test]
    fn unknown_names_are_answered_with_near_ones() {
        for (name, near) in [
            ("arc_eazy", "arc_easy"),
            ("mmlu_anatomi", "mmlu_anatomy"),
            ("zzzzzz", "hellaswag"),
        ] {
            let error = find(&[name]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(near), "{error}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn files_include_each_other_and_the_binary() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_string_lossy().into_owned()
        };
        let mine = write(
            "mine.yaml",
            "include: arc_easy.yaml\ntask: mine\ndataset_path: json\ndataset_name: null\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n",
        );
        let group = write("group.yaml", "group: both\ntask: [mine.yaml, piqa]\n");
        let suite = find(&[&mine, &group]).unwrap();
        let names: Vec<&str> = suite.tasks.iter().map(|task| task.name.as_str()).collect();
        assert_eq!(names, ["mine", "piqa"]);
        assert_eq!(suite.groups[0].tasks, ["mine", "piqa"]);

        let other = write("other.yaml", "include: piqa.yaml\ntask: mine\n");
        assert!(
            find(&[&mine, &other])
                .unwrap_err()
                .to_string()
                .contains("'mine'")
        );
        let lost = write("lost.yaml", "include: nowhere.yaml\n");
        assert!(
            find(&[&lost])
                .unwrap_err()
                .to_string()
                .contains("nowhere.yaml")
        );
        let round = write("round.yaml", "include: round.yaml\n");
        assert!(
            find(&[&round])
                .unwrap_err()
                .to_string()
                .contains("include each other")
        );
        for (text, said) in [
            (
                "process_docs: !function utils.f\n",
                "process_docs: the function \"utils.f\"",
            ),
            (
                "doc_to_image: x\n",
                "doc_to_image: this key is not supported",
            ),
            ("repeats: 2\n", "repeats"),
            ("output_type: loglikelihood_rolling\n", "ppl"),
            ("generation_kwargs: {until: a}\n", "generation_kwargs"),
            ("metric_list: [{metric: bleu}]\n", "'bleu'"),
            (
                "fewshot_config: {fewshot_indices: [1]}\n",
                "fewshot_indices",
            ),
        ] {
            let file = write(
                "bad.yaml",
                &format!("include: arc_easy.yaml\ntask: bad\n{text}"),
            );
            let error = find(&[&file]).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
            assert_eq!(error.exit_code(), 65);
        }
    }
}
