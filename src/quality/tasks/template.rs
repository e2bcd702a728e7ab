//! Jinja templates over one document, rendered as Jinja2 renders them for lm_eval: undefined names are errors, a last line
//! break stays, values are printed as Python prints them, and strings, lists and dictionaries have Python's methods.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::Map;

use super::pattern::Pattern;
use super::python;

/// One row of a data set.
pub type Row = Map<String, serde_json::Value>;

/// Renders templates.
pub(super) struct Templates(Environment<'static>);

impl Templates {
    pub(super) fn new() -> Self {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        // The usual delimiters are always valid.
        if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
            env.set_syntax(syntax);
        }
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_formatter(|out, _, value| {
            if value.is_undefined() {
                return Err(Error::new(
                    ErrorKind::UndefinedError,
                    "it is not in the row",
                ));
            }
            std::fmt::Write::write_str(out, &python::text(value)).map_err(Error::from)
        });
        env.set_unknown_method_callback(|_, value, method, args| call(value, method, args));
        env.add_filter("regex_replace", regex_replace);
        env.add_filter("trim", trim);
        Self(env)
    }

    /// Renders `source` over a row.
    ///
    /// # Errors
    /// What the template does wrong, and in which of its lines.
    pub(super) fn render(&self, source: &str, row: &Row) -> Result<String, String> {
        if !source.contains('{') {
            return Ok(source.to_owned());
        }
        self.0.render_str(source, python::items(row)).map_err(|e| {
            let detail = e.detail().map_or_else(String::new, |d| format!(": {d}"));
            let line = e
                .line()
                .map_or_else(String::new, |n| format!(" (line {n} of the template)"));
            format!("{}{detail}{line}", e.kind())
        })
    }
}

fn regex_replace(
    text: &str,
    pattern: &str,
    by: &str,
    count: Option<usize>,
) -> Result<String, Error> {
    let pattern = Pattern::new(pattern).map_err(wrong)?;
    Ok(pattern.replace(text, by, count.unwrap_or(0)))
}

fn trim(text: &Value, chars: Option<&str>) -> String {
    let text = python::text(text);
    stripped(&text, chars, true, true).to_owned()
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// `str.strip` and its halves.
fn stripped<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let inside = |c: char| chars.map_or_else(|| python::is_space(c), |chars| chars.contains(c));
    let text = if left {
        text.trim_start_matches(inside)
    } else {
        text
    };
    if right {
        text.trim_end_matches(inside)
    } else {
        text
    }
}

/// A method that Python's values have.
fn call(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => of_string(value.as_str().unwrap_or_default(), method, args),
        ValueKind::Seq | ValueKind::Iterable => of_list(value, method, args),
        ValueKind::Map => of_dictionary(value, method, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_string(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let with = |test: fn(&str, &str) -> bool| -> Result<Value, Error> {
        let (candidates,): (Value,) = from_args(args)?;
        Ok(match candidates.as_str() {
            Some(one) => test(text, one),
            None => {
                let mut each = candidates.try_iter()?;
                each.any(|one| one.as_str().is_some_and(|one| test(text, one)))
            }
        }
        .into())
    };
    let place = |found: Option<usize>| found.map(|at| text[..at].chars().count() as i64);
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            stripped(text, chars, method != "rstrip", method != "lstrip").into()
        }
        "lower" => text.to_lowercase().into(),
        "upper" => text.to_uppercase().into(),
        "capitalize" => capitalized(text).into(),
        "title" => titled(text).into(),
        "replace" => {
            let (from, to, most): (&str, &str, Option<i64>) = from_args(args)?;
            match most.and_then(|n| usize::try_from(n).ok()) {
                Some(most) => text.replacen(from, to, most),
                None => text.replace(from, to),
            }
            .into()
        }
        "split" | "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            let most = most.and_then(|n| usize::try_from(n).ok());
            split(text, separator, most, method == "rsplit")?
        }
        "splitlines" => Value::from_iter(text.lines().map(Value::from)),
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            let items: Vec<String> = items.try_iter()?.map(|item| python::text(&item)).collect();
            items.join(text).into()
        }
        "startswith" => with(|text, one| text.starts_with(one))?,
        "endswith" => with(|text, one| text.ends_with(one))?,
        "find" | "rfind" | "index" => {
            let (what,): (&str,) = from_args(args)?;
            let found = if method == "rfind" {
                text.rfind(what)
            } else {
                text.find(what)
            };
            match place(found) {
                Some(place) => place.into(),
                None if method != "index" => (-1).into(),
                None => return Err(wrong(format!("'{what}' is not in the text"))),
            }
        }
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            text.matches(what).count().into()
        }
        "isdigit" => python::is_digits(text).into(),
        "isupper" => {
            (text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)).into()
        }
        "islower" => {
            (text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)).into()
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

/// `str.split` or `str.rsplit` at a separator, or at runs of white space, `most` times.
fn split(
    text: &str,
    separator: Option<&str>,
    most: Option<usize>,
    from_right: bool,
) -> Result<Value, Error> {
    if separator == Some("") {
        return Err(wrong("the separator of split is empty"));
    }
    let most = most.unwrap_or(usize::MAX);
    let parts: Vec<&str> = match (separator, from_right) {
        (Some(separator), false) => text.splitn(most.saturating_add(1), separator).collect(),
        (Some(separator), true) => {
            let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
        (None, from_right) => {
            let mut parts = Vec::new();
            let mut rest = python::strip(text);
            while !rest.is_empty() {
                let cut = if from_right {
                    rest.rfind(python::is_space)
                } else {
                    rest.find(python::is_space)
                };
                match cut {
                    Some(at) if parts.len() < most => {
                        let (before, after) = rest.split_at(at);
                        let (part, left) = if from_right {
                            (after, before)
                        } else {
                            (before, after)
                        };
                        parts.push(python::strip(part));
                        rest = python::strip(left);
                    }
                    _ => {
                        parts.push(rest);
                        rest = "";
                    }
                }
            }
            if from_right {
                parts.reverse();
            }
            parts
        }
    };
    Ok(Value::from_iter(parts.into_iter().map(Value::from)))
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next();
    let first = first.map_or_else(String::new, |c| c.to_uppercase().collect());
    first + &chars.as_str().to_lowercase()
}

fn titled(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

fn of_list(list: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what,): (Value,) = from_args(args)?;
    let mut items = list.try_iter()?;
    Ok(match method {
        "index" => match items.position(|item| item == what) {
            Some(place) => place.into(),
            None => return Err(wrong(format!("{} is not in the list", python::text(&what)))),
        },
        "count" => items.filter(|item| *item == what).count().into(),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn of_dictionary(map: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (args,): (Rest<Value>,) = from_args(args)?;
    let keys = || map.try_iter();
    let value = |key: &Value| map.get_item(key);
    Ok(match (method, args.as_slice()) {
        ("keys", []) => Value::from_iter(keys()?),
        ("values", []) => {
            Value::from_iter(keys()?.map(|k| value(&k)).collect::<Result<Vec<_>, _>>()?)
        }
        ("items", []) => {
            let pair = |k: Value| Ok::<_, Error>(Value::from(vec![k.clone(), value(&k)?]));
            Value::from_iter(keys()?.map(pair).collect::<Result<Vec<_>, _>>()?)
        }
        ("get", [key, rest @ ..]) if rest.len() < 2 => {
            let found = value(key)?;
            if found.is_undefined() {
                rest.first().cloned().unwrap_or(Value::from(()))
            } else {
                found
            }
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, row: serde_json::Value) -> Result<String, String> {
        Templates::new().render(source, row.as_object().unwrap())
    }

    #[test]
    fn templates_print_what_jinja2_prints() {
        let row = json!({
            "text": "One two  three", "choices": {"label": ["A", "B"], "text": ["it's", "so"]}, "key": " B",
            "label": 1, "yes": true, "none": null, "score": 1.0, "html": "<a>&'",
        });
        let cases = [
            ("{{text.split(' ')[:-1]|join(' ')}}|", "One two |"),
            ("{{' '+text.split(' ')[-1]}}", " three"),
            ("{{choices.label.index(key.lstrip())}}", "1"),
            ("{{choices.text}}", r#"["it's", 'so']"#),
            ("{{[text, label]}}", "['One two  three', 1]"),
            (
                "{{yes}} {{none}} {{score}} {{html}}\n",
                "True None 1.0 <a>&'\n",
            ),
            ("{{ {'1': 0, '2': 1}[label|string] }}", "0"),
            (
                "{{text.split()|length}} {{text.split('w', 1)[1].strip()}}",
                "3 o  three",
            ),
            ("{{text.rsplit(None, 1)[0]}}", "One two"),
            (
                "{{text.capitalize()}} {{text.title()}} {{text.upper()}}",
                "One two  three One Two  Three ONE TWO  THREE",
            ),
            (
                "{{choices.text|map('replace', 's', 'S')|list}}",
                r#"["it'S", 'So']"#,
            ),
            (
                "{{text|regex_replace('t(.)', '<\\\\1>')}}",
                "One <w>o  <h>ree",
            ),
            (
                "{% set a = 'x\\n' %}{{a}}y{% if label == 1 %}!{% endif %}",
                "x\ny!",
            ),
            (
                "{% for k, v in choices.items() %}{{k}}={{v[0]}};{% endfor %}",
                "label=A;text=it's;",
            ),
            ("{{choices.get('no', 'd')}}{{choices.get('no')}}", "dNone"),
            ("plain", "plain"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, row.clone()).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let row = json!({"a": "x", "list": ["b"]});
        for (source, said) in [
            ("{{b}}", "undefined"),
            ("{{list.index('a')}}", "a is not in the list"),
            ("{{a.index('z')}}", "'z' is not in the text"),
            ("{{a.nothing()}}", "method"),
            ("\n{% if %}", "line 2"),
            ("{{a|regex_replace('(', '')}}", "regular expression"),
        ] {
            let error = render(source, row.clone()).unwrap_err();
            assert!(error.contains(said), "{source}: {error}");
        }
    }
}
