//! The address of a point: BLAKE3 over canonical JSON (keys sorted, no blanks) of what identifies it.

use serde::Serialize;
use serde_json::Value;

use super::record::{Body, Cell, Key, Model, QualityTask, Record, Subject, TaskQuestion};
use super::wire;

/// What is hashed. The version in front lets the rule change without old addresses being mistaken for new ones.
#[derive(Serialize)]
struct Identity<'a, S, T> {
    rule: u32,
    kind: &'a str,
    subject: S,
    task: T,
}

impl Key {
    /// The address of a perplexity, known before it is measured.
    pub fn of_quality(subject: &Subject, task: &QualityTask) -> Self {
        let subject = wire::Subject::from(subject.clone());
        Self::over("quality", subject, wire::QualityTask::from(task.clone()))
    }

    /// The address of a task, known before it is scored.
    pub fn of_task(subject: &Subject, task: &TaskQuestion) -> Self {
        let subject = wire::Subject::from(subject.clone());
        Self::over("task", subject, wire::TaskQuestion::from(task.clone()))
    }

    /// The address of a cell, known before it is measured.
    pub fn of_speed(subject: &Subject, cell: Cell) -> Self {
        let subject = wire::Subject::from(subject.clone());
        Self::over("speed", subject, wire::Cell::from(cell))
    }

    /// The address of what a record asks, whoever answers: without the device, the version of this program, and the name of
    /// the model, whose content is in it. Records of two runs that share it compare.
    pub fn of_question(record: &Record) -> Self {
        let subject = Subject {
            device: String::new(),
            tool_version: String::new(),
            model: Model {
                name: String::new(),
                revision: None,
                ..record.subject.model.clone()
            },
            ..record.subject.clone()
        };
        match &record.body {
            // What predictions are compared with changes no loss.
            Body::Quality { task, .. } => Self::of_quality(
                &subject,
                &QualityTask {
                    base: None,
                    ..task.clone()
                },
            ),
            // Nor do other tasks that are taken together with one.
            Body::Task { task, .. } => Self::of_task(
                &subject,
                &TaskQuestion {
                    groups: Vec::new(),
                    ..task.clone()
                },
            ),
            Body::Speed { cell, .. } => Self::of_speed(&subject, *cell),
        }
    }

    /// The address of whatever this kind of subject and task identify.
    pub(super) fn over(kind: &str, subject: impl Serialize, task: impl Serialize) -> Self {
        let identity = Identity {
            rule: 1,
            kind,
            subject,
            task,
        };
        let value = serde_json::to_value(identity).expect("plain data becomes JSON");
        let mut text = String::new();
        write_canonical(&value, &mut text);
        let hash = blake3::hash(text.as_bytes()).to_hex();
        // 128 bits: no run has enough points for two of them to meet.
        Self(hash[..32].to_owned())
    }
}

/// Sorts the keys of every object itself: whether `serde_json` does depends on a feature that any dependency may turn on.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (place, (key, inner)) in entries.into_iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(inner, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (place, inner) in items.iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                write_canonical(inner, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Failure, TaskGroup};
    use super::*;
    use crate::results::fixture;

    #[test]
    fn canonical_json_sorts_keys_at_every_level() {
        let value: Value = serde_json::from_str(r#"{"b":[{"z":1,"a":null}],"a":"x\"y"}"#).unwrap();
        let mut text = String::new();
        write_canonical(&value, &mut text);
        assert_eq!(text, r#"{"a":"x\"y","b":[{"a":null,"z":1}]}"#);
    }

    #[test]
    fn a_usual_group_is_written_as_it_was_before_groups_had_rules() {
        let group = TaskGroup {
            name: "mmlu".to_owned(),
            counts: true,
            by_size: true,
            metric: None,
        };
        let written = serde_json::to_value(wire::TaskGroup::from(group.clone())).unwrap();
        assert_eq!(
            written,
            serde_json::json!({ "name": "mmlu", "counts": true })
        );
        let read: wire::TaskGroup = serde_json::from_value(written).unwrap();
        assert_eq!(TaskGroup::from(read), group);
    }

    #[test]
    fn a_key_names_the_point_and_nothing_that_was_measured() {
        let subject = fixture::subject("tiny", "bf16");
        let cell = fixture::cell(1);
        let key = Key::of_speed(&subject, cell);
        assert_eq!(key, Key::of_speed(&subject.clone(), cell));
        assert_eq!(key.to_string().len(), 32);
        let other_device = Subject {
            device: "another".to_owned(),
            ..subject.clone()
        };
        let other_cell = Cell { depth: 1, ..cell };
        assert_ne!(key, Key::of_speed(&other_device, cell));
        assert_ne!(key, Key::of_speed(&subject, other_cell));
        let question = |subject: &Subject, cell| {
            let failure = Failure {
                reason: String::new(),
            };
            let outcome = Err(failure);
            Key::of_question(&Record::new(
                subject.clone(),
                None,
                Body::Speed { cell, outcome },
            ))
        };
        assert_eq!(question(&subject, cell), question(&other_device, cell));
        assert_ne!(question(&subject, cell), question(&subject, other_cell));
    }
}
