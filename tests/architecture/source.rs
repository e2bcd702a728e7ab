//! Sources as the rules see them, and where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// A source file as the rules see it: comments, texts and test modules are blanked, line numbers are as in the file.
pub(super) struct Source {
    /// Relative to the repository.
    pub(super) path: String,
    pub(super) code: String,
    /// Lines that are no part of a test module.
    pub(super) lines: usize,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let code = without_test_modules(&without_comments_and_texts(text));
        let blanked = code.matches(TEST_LINE).count();
        Self {
            path: path.to_owned(),
            lines: text.lines().count() - blanked,
            code: code.replace(TEST_LINE, ""),
        }
    }

    /// The top-level module that the file belongs to; empty for `lib.rs` and `main.rs`.
    pub(super) fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        match inside.split_once('/') {
            Some((module, _)) => module,
            None => match inside.trim_end_matches(".rs") {
                "lib" | "main" => "",
                module => module,
            },
        }
    }

    /// How many `super` lead from here to the root of the crate.
    pub(super) fn depth(&self) -> usize {
        let parts = self.path.trim_end_matches(".rs").split('/').skip(1);
        parts
            .filter(|part| !["mod", "lib", "main"].contains(part))
            .count()
    }

    /// `what` at a byte offset, in the form that editors jump to.
    pub(super) fn at(&self, offset: usize, what: &str) -> String {
        let line = self.code[..offset].matches('\n').count() + 1;
        format!("{}:{line}: {what}", self.path)
    }

    /// Every word (identifier or keyword) with its offset.
    pub(super) fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let mut rest = 0;
        std::iter::from_fn(move || {
            let start = rest + self.code[rest..].find(word)?;
            let end = self.code[start..]
                .find(|c| !word(c))
                .map_or(self.code.len(), |n| start + n);
            rest = end;
            Some((start, &self.code[start..end]))
        })
    }

    /// Words that `forbidden` tells, as complaints.
    pub(super) fn forbid(&self, forbidden: impl Fn(&str) -> bool, why: &str) -> Vec<String> {
        self.words()
            .filter(|(_, word)| forbidden(word))
            .map(|(at, word)| self.at(at, &format!("`{word}` {why}")))
            .collect()
    }

    pub(super) fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| {
            self.path == *place || place.ends_with('/') && self.path.starts_with(place)
        })
    }
}

/// Stands at the start of a line of a test module.
const TEST_LINE: char = '\u{1}';

/// Blanks comments, strings and character literals; keeps newlines.
pub(super) fn without_comments_and_texts(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let starts = |at: usize, what: &str| {
        what.chars()
            .enumerate()
            .all(|(i, c)| chars.get(at + i) == Some(&c))
    };
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = if starts(at, "//") {
            (at..chars.len())
                .find(|&i| chars[i] == '\n')
                .unwrap_or(chars.len())
        } else if starts(at, "/*") {
            end_of_block_comment(&chars, at)
        } else if chars[at] == '"' {
            end_of_text(&chars, at + 1)
        } else if let Some(end) = end_of_raw_text(&chars, at) {
            end
        } else if chars[at] == '\'' && chars.get(at + 1) == Some(&'\\') {
            (at + 3..chars.len())
                .find(|&i| chars[i] == '\'')
                .map_or(chars.len(), |i| i + 1)
        } else if chars[at] == '\'' && chars.get(at + 2) == Some(&'\'') {
            at + 3
        } else {
            out.push(chars[at]);
            at += 1;
            continue;
        };
        out.extend(
            chars[at..end]
                .iter()
                .map(|&c| if c == '\n' { '\n' } else { ' ' }),
        );
        at = end;
    }
    out
}

fn end_of_block_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn end_of_text(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// The end of `r"..."` or `r#"..."#` that begins at `at`.
fn end_of_raw_text(chars: &[char], at: usize) -> Option<usize> {
    let in_word =
        at > 0 && (chars[at - 1].is_alphanumeric() && chars[at - 1] != 'b' || chars[at - 1] == '_');
    if chars[at] != 'r' || in_word {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    if chars.get(at + 1 + hashes) != Some(&'"') {
        return None;
    }
    let closes = |i: usize| {
        chars[i] == '"'
            && chars[i + 1..]
                .iter()
                .take(hashes)
                .filter(|&&c| c == '#')
                .count()
                == hashes
    };
    let close = (at + 2 + hashes..chars.len()).find(|&i| closes(i))?;
    Some(close + 1 + hashes)
}

/// Blanks what `#[cfg(test)]` is written above, where that has braces; marks each of its lines.
fn without_test_modules(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::new();
    let mut rest = code;
    while let Some(start) = rest.find(MARK) {
        let item = &rest[start + MARK.len()..];
        let open = item.find('{').unwrap_or(item.len());
        let semicolon = item.find(';').unwrap_or(item.len());
        let end = if semicolon < open {
            semicolon + 1
        } else {
            end_of_braces(item, open)
        };
        out.push_str(&rest[..start]);
        let lines = item[..end].matches('\n').count();
        // The line of the attribute itself counts too; what follows the module on its last line does not matter.
        out.push(TEST_LINE);
        (0..lines).for_each(|_| out.extend(['\n', TEST_LINE]));
        rest = &item[end..];
    }
    out + rest
}

fn end_of_braces(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (i, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return open + i + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with one of the extensions, relative to the repository, sorted.
pub(super) fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path
                .extension()
                .and_then(OsStr::to_str)
                .is_some_and(|e| extensions.contains(&e))
            {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

pub(super) fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The library and the program, without the files that are test modules.
pub(super) fn sources() -> Vec<Source> {
    let files = files("src", &["rs"]);
    let texts: BTreeMap<String, String> = files
        .iter()
        .map(|path| (path.to_str().unwrap().replace('\\', "/"), read(path)))
        .collect();
    let tests: BTreeSet<String> = texts
        .iter()
        .flat_map(|(path, text)| test_files(path, text))
        .collect();
    let is_test = |path: &str| {
        tests
            .iter()
            .any(|stem| path == format!("{stem}.rs") || path.starts_with(&format!("{stem}/")))
    };
    texts
        .iter()
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| Source::new(path, text))
        .collect()
}

/// The files (without `.rs`) that `#[cfg(test)] mod name;` brings in.
pub(super) fn test_files(path: &str, text: &str) -> Vec<String> {
    let (folder, name) = path.trim_end_matches(".rs").rsplit_once('/').unwrap();
    let folder = if ["mod", "lib", "main"].contains(&name) {
        folder.to_owned()
    } else {
        format!("{folder}/{name}")
    };
    without_comments_and_texts(text)
        .split("#[cfg(test)]")
        .skip(1)
        .filter_map(|after| {
            let item = after[..after.find([';', '{'])?].trim();
            let name = item.rsplit_once("mod ")?.1;
            after.trim_start()[item.len()..]
                .trim_start()
                .starts_with(';')
                .then(|| format!("{folder}/{name}"))
        })
        .collect()
}
