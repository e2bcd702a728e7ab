//! What is done to a generated text before it is scored.

use std::collections::BTreeMap;

use serde_json::Value;

use super::keys::Keys;
use super::pattern::Pattern;
use super::python;
use crate::error::Result;

/// A named chain of steps.
#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    /// The name that metrics of its results carry.
    pub(super) name: String,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    /// One of the matches of a pattern.
    Regex {
        pattern: Pattern,
        /// Which match; from the end if negative.
        select: i64,
        fallback: String,
    },
    Strip,
    Lower,
    Upper,
    Map {
        table: BTreeMap<String, String>,
        default: String,
    },
}

impl Pipeline {
    /// The chain that changes nothing.
    pub(super) fn plain() -> Self {
        Self {
            name: "none".into(),
            steps: Vec::new(),
        }
    }

    pub(super) fn new(name: String, steps: Vec<Keys>) -> Result<Self> {
        let steps = steps.into_iter().map(step).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            name,
            steps: steps.into_iter().flatten().collect(),
        })
    }

    /// What the chain makes of a text.
    pub(super) fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for step in &self.steps {
            text = step.apply(text);
        }
        text
    }
}

fn step(mut keys: Keys) -> Result<Option<Step>> {
    let function = keys.required("function")?;
    let step = match function.as_str() {
        // There is one answer to each request.
        "take_first" | "majority_vote" => None,
        "take_first_k" => {
            if keys.count("k")? != Some(1) {
                return Err(keys.fault("k", "there is one answer to each request"));
            }
            None
        }
        "remove_whitespace" => Some(Step::Strip),
        "lowercase" => Some(Step::Lower),
        "uppercase" => Some(Step::Upper),
        "regex" => {
            let source = keys.text("regex_pattern")?;
            let source = source.unwrap_or_else(|| r"#### (\-?[0-9\.\,]+)".to_owned());
            let pattern = Pattern::new(&source).map_err(|e| keys.fault("regex_pattern", e))?;
            let select = match keys.take("group_select")? {
                None => 0,
                Some(value) => value
                    .as_i64()
                    .ok_or_else(|| keys.fault("group_select", "expected a whole number"))?,
            };
            let fallback = keys.text("fallback")?.unwrap_or_else(|| "[invalid]".into());
            Some(Step::Regex {
                pattern,
                select,
                fallback,
            })
        }
        "map" => {
            let table = match keys.take("mapping_dict")? {
                Some(Value::Object(map)) => map
                    .into_iter()
                    .map(|(key, value)| (key, plain(&value)))
                    .collect(),
                _ => return Err(keys.fault("mapping_dict", "expected a mapping")),
            };
            let default = keys
                .take("default_value")?
                .map_or_else(String::new, |v| plain(&v));
            Some(Step::Map { table, default })
        }
        other => {
            return Err(keys.fault("function", format!("the filter '{other}' is not supported")));
        }
    };
    keys.finish()?;
    Ok(step)
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

impl Step {
    fn apply(&self, text: String) -> String {
        match self {
            Self::Regex {
                pattern,
                select,
                fallback,
            } => {
                let found = pattern.find_all(&text);
                let place = if *select < 0 {
                    found.len().checked_sub(select.unsigned_abs() as usize)
                } else {
                    Some(*select as usize)
                };
                let groups = place.and_then(|place| found.get(place));
                // Of several groups the first that took part counts.
                let chosen = groups.and_then(|groups| match groups.as_slice() {
                    [one] => Some(one),
                    many => many.iter().find(|group| !group.is_empty()),
                });
                chosen.map_or_else(|| fallback.clone(), |text| python::strip(text).to_owned())
            }
            Self::Strip => python::strip(&text).to_owned(),
            Self::Lower => text.to_lowercase(),
            Self::Upper => text.to_uppercase(),
            Self::Map { table, default } => table.get(&text).unwrap_or(default).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn pipeline(steps: Value) -> Result<Pipeline> {
        let steps = steps.as_array().unwrap().iter();
        let keys = steps.map(|step| Keys::of(Path::new("t.yaml"), "x", step.clone()).unwrap());
        Pipeline::new("x".into(), keys.collect())
    }

    #[test]
    fn the_answers_of_gsm8k_are_found() {
        let strict = pipeline(json!([
            {"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"}, {"function": "take_first"}
        ]))
        .unwrap();
        let flexible = pipeline(json!([
            {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"},
            {"function": "take_first"},
        ]))
        .unwrap();
        let text = "She sells 9 eggs, $18 a day.\n#### 18\nOr 20";
        assert_eq!(strict.apply(text), "18");
        assert_eq!(flexible.apply(text), "20");
        assert_eq!(strict.apply("18"), "[invalid]");
        assert_eq!(flexible.apply("it is 7"), "7");
        assert_eq!(flexible.apply("none"), "[invalid]");
    }

    #[test]
    fn other_steps_run_in_order_and_unknown_ones_are_named() {
        let chain = pipeline(json!([
            {"function": "remove_whitespace"}, {"function": "lowercase"},
            {"function": "map", "mapping_dict": {"yes": 1}, "default_value": "?"},
        ]))
        .unwrap();
        assert_eq!(chain.apply(" YES\n"), "1");
        assert_eq!(chain.apply("no"), "?");
        assert_eq!(Pipeline::plain().apply(" a "), " a ");
        for (steps, said) in [
            (json!([{"function": "format_span"}]), "'format_span'"),
            (json!([{"function": "regex", "pattern": "a"}]), "pattern"),
            (
                json!([{"function": "regex", "regex_pattern": "("}]),
                "regex_pattern",
            ),
        ] {
            let error = pipeline(steps).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
