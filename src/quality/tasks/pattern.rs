//! Regular expressions in Python's dialect.

use fancy_regex::Regex;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// Compiles what `re.compile` takes.
    ///
    /// # Errors
    /// What is wrong with the pattern.
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        Regex::new(&translated(pattern))
            .map(Self)
            .map_err(|e| format!("bad regular expression '{pattern}': {e}"))
    }

    /// `re.findall`, each match as its groups: the whole match where the pattern has none, unmatched groups empty.
    pub(super) fn find_all(&self, text: &str) -> Vec<Vec<String>> {
        let found = self.0.captures_iter(text).map_while(Result::ok);
        found
            .map(|captures| {
                let groups = captures.len();
                let group = |i: usize| captures.get(i).map_or("", |m| m.as_str()).to_owned();
                match groups {
                    1 => vec![group(0)],
                    _ => (1..groups).map(group).collect(),
                }
            })
            .collect()
    }

    /// `re.sub`: the first `count` matches are replaced, all where it is 0. `\1` and `\g<name>` stand for groups.
    pub(super) fn replace(&self, text: &str, by: &str, count: usize) -> String {
        let most = if count == 0 { usize::MAX } else { count };
        let mut out = String::with_capacity(text.len());
        let mut end = 0;
        for captures in self.0.captures_iter(text).map_while(Result::ok).take(most) {
            let Some(whole) = captures.get(0) else {
                continue;
            };
            out.push_str(&text[end..whole.start()]);
            expand(by, &mut out, |name| {
                let group = match name.parse() {
                    Ok(number) => captures.get(number),
                    Err(_) => captures.name(name),
                };
                group.map_or("", |m| m.as_str()).to_owned()
            });
            end = whole.end();
        }
        out.push_str(&text[end..]);
        out
    }
}

/// Writes a replacement, with groups put in.
fn expand(by: &str, out: &mut String, group: impl Fn(&str) -> String) {
    let mut rest = by;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let named = after.strip_prefix("g<").and_then(|s| s.split_once('>'));
        rest = if let Some((name, left)) = named {
            out.push_str(&group(name));
            left
        } else if digits > 0 {
            out.push_str(&group(&after[..digits]));
            &after[digits..]
        } else {
            let c = after.chars().next();
            match c {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(c) => out.push(c),
                None => out.push('\\'),
            }
            &after[c.map_or(0, char::len_utf8)..]
        };
    }
    out.push_str(rest);
}

/// Python's dialect in this library's words: `$` also matches before a last line break, `\Z` is the very end, brackets and
/// doubled signs mean nothing in a class, and `{,n}` begins at 0.
fn translated(pattern: &str) -> String {
    let multiline = pattern.starts_with("(?") && {
        let flags = &pattern[2..];
        let end = flags.find(|c: char| !c.is_ascii_alphabetic());
        flags[..end.unwrap_or(flags.len())].contains('m')
    };
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    // Inside a class: how many characters of it there were, for a bracket that comes first is one of them.
    let mut class: Option<usize> = None;
    while let Some(c) = chars.next() {
        match (c, class) {
            ('\\', _) => {
                match chars.next() {
                    Some('Z') => out.push_str("\\z"),
                    Some(escaped) => out.extend(['\\', escaped]),
                    None => out.push('\\'),
                }
                class = class.map(|n| n + 1);
            }
            ('[', None) => {
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                class = Some(0);
            }
            (']', Some(n)) if n > 0 => {
                out.push(']');
                class = None;
            }
            ('[' | ']' | '&' | '~', Some(n)) => {
                out.extend(['\\', c]);
                class = Some(n + 1);
            }
            ('-', Some(n)) if chars.peek() == Some(&'-') => {
                out.push_str("\\-");
                class = Some(n + 1);
            }
            ('$', None) if !multiline => out.push_str("(?=\\n?\\z)"),
            ('{', None) if chars.peek() == Some(&',') => out.push_str("{0"),
            (c, _) => {
                out.push(c);
                class = class.map(|n| n + 1);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pattern: &str, text: &str) -> Vec<Vec<String>> {
        Pattern::new(pattern).unwrap().find_all(text)
    }

    #[test]
    fn matches_are_those_of_python() {
        assert_eq!(
            all(r"#### (\-?[0-9\.\,]+)", "so #### -1,234.5 #### 7"),
            [["-1,234.5"], ["7"]]
        );
        assert_eq!(
            all(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", "$18 or 7."),
            [["$18", ""], ["7.", ""]]
        );
        assert_eq!(all(r"a$", "a\n"), [["a"]]);
        assert_eq!(all(r"a\Z", "a\n"), Vec::<Vec<String>>::new());
        assert_eq!(all(r"[][]+", "x[]y"), [["[]"]]);
        assert_eq!(all(r"x{,2}y", "xxy"), [["xxy"]]);
        assert_eq!(all(r"(?<=n)ow", "now"), [["ow"]]);
        assert!(Pattern::new("(").unwrap_err().contains("'('"));
    }

    #[test]
    fn replacements_are_those_of_python() {
        let sub =
            |pattern, by, text, count| Pattern::new(pattern).unwrap().replace(text, by, count);
        assert_eq!(sub(r"\[.*?\]", "", "a [b] c [d]", 0), "a  c ");
        assert_eq!(sub("(?s).*#### ", "", "a\nb #### 12", 0), "12");
        assert_eq!(sub(r"\.$", "", "12.", 0), "12");
        assert_eq!(sub("(a)(?P<x>b)", r"\2\g<x>\1\\", "ab ab", 1), r"bba\ ab");
    }
}
