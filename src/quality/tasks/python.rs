//! What of Python shows through in task definitions: how values are written (`str`, `repr`), how literals are read back
//! (`ast.literal_eval`), and which characters are white space.

use minijinja::value::{Value as Item, ValueKind};
use serde_json::{Map, Number, Value};

/// What `str.isspace` and `str.strip` take for white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip` without arguments.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.isdigit` for ASCII: other digits make no index.
pub(super) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// A JSON value as templates see it.
fn item(value: &Value) -> Item {
    match value {
        Value::Null => Item::from(()),
        Value::Bool(flag) => Item::from(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(n), _) => Item::from(n),
            (None, Some(n)) => Item::from(n),
            (None, None) => Item::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Item::from(text.as_str()),
        Value::Array(values) => Item::from(values.iter().map(item).collect::<Vec<_>>()),
        Value::Object(map) => items(map),
    }
}

/// A JSON object as templates see it.
pub(super) fn items(map: &Map<String, Value>) -> Item {
    Item::from_pairs(map.iter().map(|(key, value)| (key.as_str(), item(value))))
}

/// `str(value)`: what a template prints.
pub(super) fn text(value: &Item) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => repr(value),
    }
}

/// `repr(value)`.
fn repr(value: &Item) -> String {
    let list = |open: &str, close: &str| {
        let items: Vec<String> = value
            .try_iter()
            .map(|items| items.map(|item| repr(&item)).collect())
            .unwrap_or_default();
        format!("{open}{}{close}", items.join(", "))
    };
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => list("[", "]"),
        ValueKind::Map => {
            let entry = |key: Item| {
                let inner = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr(&key), repr(&inner))
            };
            let entries: Vec<String> = value
                .try_iter()
                .map(|keys| keys.map(entry).collect())
                .unwrap_or_default();
            format!("{{{}}}", entries.join(", "))
        }
        _ => value.to_string(),
    }
}

/// A string between quotes, as `repr` writes it.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `ast.literal_eval`: strings, numbers, `True`, `False`, `None`, lists, tuples and dictionaries.
///
/// # Errors
/// What is no literal, and where.
pub(super) fn literal(text: &str) -> Result<Value, String> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value()?;
    reader.blanks();
    match reader.rest().chars().next() {
        None => Ok(value),
        Some(c) => Err(reader.fault(&format!("'{c}' after the end of a literal"))),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn fault(&self, what: &str) -> String {
        format!("{what} at byte {} of: {}", self.at, shortened(self.text))
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn take(&mut self, c: char) -> bool {
        self.blanks();
        let found = self.rest().starts_with(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn value(&mut self) -> Result<Value, String> {
        self.blanks();
        match self.rest().chars().next() {
            Some('[') => self.list('[', ']'),
            Some('(') => self.list('(', ')'),
            Some('{') => self.dictionary(),
            Some('\'' | '"') => self.strings(),
            Some(c) if c == '-' || c == '+' || c == '.' || c.is_ascii_digit() => self.number(),
            Some(c) if c.is_ascii_alphabetic() => self.name(),
            _ => Err(self.fault("no literal")),
        }
    }

    fn list(&mut self, open: char, close: char) -> Result<Value, String> {
        let mut items = Vec::new();
        let mut commas = 0;
        self.take(open);
        while !self.take(close) {
            if items.len() > commas {
                return Err(self.fault("a comma is missing"));
            }
            items.push(self.value()?);
            commas += usize::from(self.take(','));
        }
        // Parentheses around one value, without a comma, are no tuple.
        if open == '(' && items.len() == 1 && commas == 0 {
            return Ok(items.remove(0));
        }
        Ok(Value::Array(items))
    }

    fn dictionary(&mut self) -> Result<Value, String> {
        let mut entries = Map::new();
        let mut commas = 0;
        self.take('{');
        while !self.take('}') {
            if entries.len() > commas {
                return Err(self.fault("a comma is missing"));
            }
            let key = match self.value()? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            if !self.take(':') {
                return Err(self.fault("a colon is missing"));
            }
            let value = self.value()?;
            entries.insert(key, value);
            commas += usize::from(self.take(','));
        }
        Ok(Value::Object(entries))
    }

    /// Neighbouring strings are one.
    fn strings(&mut self) -> Result<Value, String> {
        let mut out = String::new();
        while self.rest().starts_with(['\'', '"']) {
            self.string(&mut out)?;
            self.blanks();
        }
        Ok(Value::String(out))
    }

    fn string(&mut self, out: &mut String) -> Result<(), String> {
        let mut chars = self.rest().char_indices();
        let quote = chars.next().map_or('\'', |(_, c)| c);
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.at += at + 1;
                    return Ok(());
                }
                '\n' => break,
                '\\' => {
                    let escape = chars.next().map(|(_, c)| c);
                    let plain = match escape {
                        Some('n') => Some('\n'),
                        Some('t') => Some('\t'),
                        Some('r') => Some('\r'),
                        Some('a') => Some('\u{7}'),
                        Some('b') => Some('\u{8}'),
                        Some('f') => Some('\u{c}'),
                        Some('v') => Some('\u{b}'),
                        Some('0') => Some('\0'),
                        Some('\n') => continue,
                        Some(c @ ('\\' | '\'' | '"')) => Some(c),
                        _ => None,
                    };
                    let digits = match escape {
                        Some('x') => 2,
                        Some('u') => 4,
                        Some('U') => 8,
                        _ => 0,
                    };
                    match (plain, digits, escape) {
                        (Some(c), ..) => out.push(c),
                        (None, 0, Some(c)) => out.extend(['\\', c]),
                        (None, 0, None) => break,
                        (None, digits, _) => {
                            let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                            let code = u32::from_str_radix(&hex, 16).ok();
                            let c = code.and_then(char::from_u32);
                            out.push(c.ok_or_else(|| self.fault("a bad escape in a string"))?);
                        }
                    }
                }
                c => out.push(c),
            }
        }
        Err(self.fault("a string without an end"))
    }

    fn number(&mut self) -> Result<Value, String> {
        let rest = self.rest();
        let inside = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
        let end = rest.find(|c| !inside(c)).unwrap_or(rest.len());
        let word = rest[..end].replace('_', "");
        let digits = word.trim_start_matches(['+', '-']);
        let value = if is_digits(digits) && (digits == "0" || !digits.starts_with('0')) {
            word.parse::<i64>().ok().map(Value::from)
        } else if is_digits(digits) {
            None
        } else {
            let number = word.parse::<f64>().ok().filter(|x| x.is_finite());
            number.and_then(Number::from_f64).map(Value::Number)
        };
        let value = value.ok_or_else(|| self.fault("no number"))?;
        self.at += end;
        Ok(value)
    }

    fn name(&mut self) -> Result<Value, String> {
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        let value = match &rest[..end] {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            name => return Err(self.fault(&format!("'{name}' is no literal"))),
        };
        self.at += end;
        Ok(value)
    }
}

/// The beginning of a text, for messages.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_as_python_writes_it_is_read_back() {
        let value = json!(["it's", "\"so\"", "both ' and \"", "a\nb\\c\u{1}é", 3, -2.5, true, null, {"k": ["v"]}]);
        let written = text(&item(&value));
        assert_eq!(
            written,
            r#"["it's", '"so"', 'both \' and "', 'a\nb\\c\x01é', 3, -2.5, True, None, {'k': ['v']}]"#
        );
        assert_eq!(literal(&written).unwrap(), value);
        assert_eq!(text(&Item::from("as it is")), "as it is");
    }

    #[test]
    fn literals_are_read_as_python_reads_them() {
        assert_eq!(literal(" ('a' 'b',) ").unwrap(), json!(["ab"]));
        assert_eq!(literal("(1)").unwrap(), json!(1));
        assert_eq!(literal("[1, 2,]").unwrap(), json!([1, 2]));
        assert_eq!(literal(r"'\u00e9\x41\q'").unwrap(), json!("éA\\q"));
        for bad in [
            "", "[1 2]", "f(x)", "'open", "007", "[1], 2", "{'a' 1}", "nan",
        ] {
            assert!(literal(bad).is_err(), "{bad}");
        }
    }
}
