//! The walls of the house, read off the sources: who may use whom, who may print, read clocks, be unsafe. What a rule
//! forbids is named with file and line. `every_rule_can_fail` shows each rule a source that breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every module of the library, and the modules that it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("error", &[]),
    ("scheme", &["error", "units"]),
    ("stats", &["error", "units"]),
    ("kernels", &["error", "scheme", "units"]),
    ("model", &["error", "scheme", "units"]),
    ("engine", &["error", "kernels", "model", "scheme", "units"]),
    (
        "quality",
        &["engine", "error", "model", "scheme", "stats", "units"],
    ),
    (
        "quant",
        &["engine", "error", "kernels", "model", "scheme", "units"],
    ),
    ("measure", &["error", "stats", "units"]),
    ("results", &["error", "stats", "units"]),
    (
        "study",
        &[
            "engine", "error", "kernels", "measure", "model", "quality", "quant", "results",
            "scheme", "stats", "units",
        ],
    ),
    (
        "cli",
        &[
            "engine", "error", "kernels", "measure", "model", "quality", "quant", "results",
            "scheme", "stats", "study", "units",
        ],
    ),
];

/// The most lines of a source file, tests aside.
const LINES: usize = 600;

/// What the top of the repository may hold.
const TOP: &[&str] = &[
    ".ci",
    ".git",
    ".gitignore",
    ".toolkit",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "kernels",
    "models",
    "src",
    "target",
    "tests",
];

/// A source file as the rules see it: comments, texts and test modules are blanked, line numbers are as in the file.
struct Source {
    /// Relative to the repository.
    path: String,
    code: String,
    /// Lines that are no part of a test module.
    lines: usize,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = without_test_modules(&without_comments_and_texts(text));
        let blanked = code.matches(TEST_LINE).count();
        Self {
            path: path.to_owned(),
            lines: text.lines().count() - blanked,
            code: code.replace(TEST_LINE, ""),
        }
    }

    /// The top-level module that the file belongs to; empty for `lib.rs` and `main.rs`.
    fn module(&self) -> &str {
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
    fn depth(&self) -> usize {
        let parts = self.path.trim_end_matches(".rs").split('/').skip(1);
        parts
            .filter(|part| !["mod", "lib", "main"].contains(part))
            .count()
    }

    /// `what` at a byte offset, in the form that editors jump to.
    fn at(&self, offset: usize, what: &str) -> String {
        let line = self.code[..offset].matches('\n').count() + 1;
        format!("{}:{line}: {what}", self.path)
    }

    /// Every word (identifier or keyword) with its offset.
    fn words(&self) -> impl Iterator<Item = (usize, &str)> {
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
    fn forbid(&self, forbidden: impl Fn(&str) -> bool, why: &str) -> Vec<String> {
        self.words()
            .filter(|(_, word)| forbidden(word))
            .map(|(at, word)| self.at(at, &format!("`{word}` {why}")))
            .collect()
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| {
            self.path == *place || place.ends_with('/') && self.path.starts_with(place)
        })
    }
}

/// Stands at the start of a line of a test module.
const TEST_LINE: char = '\u{1}';

/// Blanks comments, strings and character literals; keeps newlines.
fn without_comments_and_texts(text: &str) -> String {
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

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with one of the extensions, relative to the repository, sorted.
fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
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

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The library and the program, without the files that are test modules.
fn sources() -> Vec<Source> {
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
fn test_files(path: &str, text: &str) -> Vec<String> {
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

/// Top-level modules that a file names, with the offset where it does.
fn references(source: &Source) -> Vec<(usize, String)> {
    let code = &source.code;
    let words: Vec<(usize, &str)> = source.words().collect();
    let mut found = Vec::new();
    let mut i = 0;
    while i < words.len() {
        let path_goes_on = |i: usize| {
            let (at, word) = words[i];
            code[at + word.len()..].trim_start().starts_with("::")
        };
        let root = match words[i].1 {
            "crate" => path_goes_on(i),
            "super" => {
                let first = i;
                while path_goes_on(i) && words.get(i + 1).is_some_and(|(_, word)| *word == "super")
                {
                    i += 1;
                }
                i - first + 1 >= source.depth() && path_goes_on(i)
            }
            _ => false,
        };
        if root {
            let (at, word) = words[i];
            let behind = code[at + word.len()..].trim_start()[2..].trim_start();
            if let Some(list) = behind.strip_prefix('{') {
                found.extend(heads(list).into_iter().map(|head| (at, head)));
            } else if let Some((_, head)) = words.get(i + 1) {
                found.push((at, (*head).to_owned()));
            }
        }
        i += 1;
    }
    found
}

/// The first word of every entry of a `{a::b, c::{d, e}}` list whose brace is already open.
fn heads(list: &str) -> Vec<String> {
    let (mut depth, mut entry) = (1, String::new());
    let mut heads = Vec::new();
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || depth == 1 && c == ',' {
            let head: String = entry
                .trim()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            heads.push(head);
            entry.clear();
        } else {
            entry.push(c);
        }
        if depth == 0 {
            break;
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

type Rule = fn(&Source) -> Vec<String>;

fn arrows(source: &Source) -> Vec<String> {
    let from = source.module();
    if from.is_empty() {
        return Vec::new();
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(module, _)| *module == from) else {
        return vec![source.at(
            0,
            &format!("the module `{from}` has no place among the arrows"),
        )];
    };
    let is_module = |name: &str| ARROWS.iter().any(|(module, _)| *module == name);
    references(source)
        .into_iter()
        .filter(|(_, to)| to != from && is_module(to) && !allowed.contains(&to.as_str()))
        .map(|(at, to)| source.at(at, &format!("`{from}` must not use `{to}`")))
        .collect()
}

fn printing(source: &Source) -> Vec<String> {
    if source.is_in(&["src/cli/"]) {
        return Vec::new();
    }
    let words = ["println", "eprintln", "print", "eprint", "dbg"];
    source
        .words()
        .filter(|(at, word)| {
            let behind = &source.code[at + word.len()..];
            // `.stdout(…)` is where a child process prints.
            let of_a_child = source.code[..*at].ends_with('.');
            words.contains(word) && behind.starts_with('!')
                || ["stdout", "stderr"].contains(word) && behind.starts_with('(') && !of_a_child
        })
        .map(|(at, word)| source.at(at, &format!("`{word}`: only cli prints")))
        .collect()
}

fn clocks(source: &Source) -> Vec<String> {
    if source.is_in(&["src/measure/", "src/cli/progress.rs"]) {
        return Vec::new();
    }
    source.forbid(
        |word| ["Instant", "SystemTime", "UNIX_EPOCH"].contains(&word),
        "outside measure: time enters as a `Clock`",
    )
}

fn unsafe_code(source: &Source) -> Vec<String> {
    if source.is_in(&[
        "src/kernels/simd/",
        "src/kernels/parallel.rs",
        "src/kernels/gpu/",
    ]) {
        return Vec::new();
    }
    source.forbid(
        |word| word == "unsafe",
        "outside kernels/simd, kernels/parallel.rs and kernels/gpu",
    )
}

fn nvml(source: &Source) -> Vec<String> {
    if source.is_in(&["src/measure/"]) {
        return Vec::new();
    }
    source.forbid(
        |word| word.to_ascii_lowercase().contains("nvml"),
        "outside measure, which alone reads sensors",
    )
}

fn results_without_candle(source: &Source) -> Vec<String> {
    if source.module() != "results" {
        return Vec::new();
    }
    let forbidden =
        |word: &str| word == "candle" || word.starts_with("candle_") || word == "cudarc";
    source.forbid(forbidden, "in results, which only knows records")
}

fn flags(source: &Source) -> Vec<String> {
    if source.is_in(&["src/cli/"]) {
        return Vec::new();
    }
    source.forbid(
        |word| word == "clap",
        "outside cli, which alone reads flags",
    )
}

fn length(source: &Source) -> Vec<String> {
    let too_long = source.lines > LINES;
    let what = format!(
        "{} lines without its tests, more than {LINES}: take it apart",
        source.lines
    );
    too_long
        .then(|| format!("{}:{}: {what}", source.path, LINES + 1))
        .into_iter()
        .collect()
}

/// What in a source of kernels depends on where it runs, or cannot run on the host. Wrappers in kernels/ptx alone hold
/// inline PTX and tell one GPU from another. Memory that others write is read through one of them: a loop over a volatile
/// read would never let the others run there.
fn host_branches(path: &str, text: &str) -> Vec<String> {
    let is_wrapper = path.starts_with("kernels/ptx/");
    let bad = |line: &str| {
        let words: Vec<&str> = line
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .collect();
        let conditional = line.trim_start().starts_with('#')
            && ["if", "ifdef", "ifndef", "elif"].contains(words.first().unwrap_or(&""));
        line.to_ascii_uppercase().contains("EMULAT")
            || conditional && !(is_wrapper && words.contains(&"__CUDA_ARCH__"))
            || !is_wrapper
                && ["asm", "volatile", "__CUDA_ARCH__"]
                    .iter()
                    .any(|word| words.contains(word))
    };
    let code = without_comments_and_texts(text);
    code.lines()
        .enumerate()
        .filter(|(_, line)| bad(line))
        .map(|(i, line)| {
            format!(
                "{path}:{}: kernels do not know where they run: {}",
                i + 1,
                line.trim()
            )
        })
        .collect()
}

fn hold(rule: Rule) {
    let broken: Vec<String> = sources().iter().flat_map(rule).collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn arrows_point_from_user_to_used() {
    hold(arrows);
}

#[test]
fn every_module_of_the_library_has_its_arrows() {
    let lib = Source::new("src/lib.rs", &read(Path::new("src/lib.rs")));
    let words: Vec<&str> = lib.words().map(|(_, word)| word).collect();
    let declared: BTreeSet<&str> = words
        .windows(2)
        .filter(|w| w[0] == "mod")
        .map(|w| w[1])
        .collect();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(module, _)| *module).collect();
    assert_eq!(
        declared, known,
        "src/lib.rs and the arrows in this file name different modules"
    );
}

#[test]
fn arrows_make_no_circle() {
    // In reading order, each module uses only what stands above it.
    for (i, (module, uses)) in ARROWS.iter().enumerate() {
        for used in *uses {
            let at = ARROWS.iter().position(|(module, _)| module == used);
            assert!(at.is_some_and(|at| at < i), "{module} -> {used}");
        }
    }
}

#[test]
fn only_cli_prints() {
    hold(printing);
}

#[test]
fn only_measure_reads_clocks() {
    hold(clocks);
}

#[test]
fn unsafe_stays_where_it_is_reviewed() {
    hold(unsafe_code);
}

#[test]
fn only_measure_knows_nvml() {
    hold(nvml);
}

#[test]
fn results_know_neither_candle_nor_cuda() {
    hold(results_without_candle);
}

#[test]
fn only_cli_knows_flags() {
    hold(flags);
}

#[test]
fn no_file_is_too_long() {
    hold(length);
    for path in files("kernels", &["cu", "cuh", "h", "cpp", "rs", "sh"]) {
        let lines = read(&path).lines().count();
        assert!(
            lines <= LINES,
            "{}:{}: {lines} lines, more than {LINES}",
            path.display(),
            LINES + 1
        );
    }
}

#[test]
fn no_kernel_source_is_dead() {
    let launches: String = files("src/kernels/gpu", &["rs"])
        .iter()
        .map(|path| read(path))
        .collect();
    let kernels = files("kernels", &["cu"]);
    let including: String = files("kernels", &["cu", "cuh"])
        .iter()
        .map(|path| read(path))
        .collect();
    assert!(!kernels.is_empty());
    for path in kernels {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            launches.contains(&format!("`{name}`")) || launches.contains(&format!(" {name}")),
            "{}:1: nothing in src/kernels/gpu launches what is in it",
            path.display()
        );
        assert_eq!(
            path.parent().unwrap(),
            Path::new("kernels"),
            "{}:1: kernels/build.rs compiles only what lies in kernels/ itself",
            path.display()
        );
    }
    for path in files("kernels", &["cuh"]) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let included = [
            format!("/{name}\""),
            format!("\"{name}\""),
            format!("<ptx/{name}>"),
        ]
        .iter()
        .any(|named| including.contains(named));
        assert!(included, "{}:1: nothing includes it", path.display());
    }
}

#[test]
fn kernels_do_not_know_where_they_run() {
    let broken: Vec<String> = files("kernels", &["cu", "cuh"])
        .iter()
        .filter(|path| !path.starts_with("kernels/host"))
        .flat_map(|path| host_branches(path.to_str().unwrap(), &read(path)))
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// What git tracks at the top of the repository; everything there, where there is no git.
fn top_level() -> BTreeSet<String> {
    let git = Command::new("git")
        .arg("ls-files")
        .arg("-z")
        .current_dir(root())
        .output();
    match git {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let files = String::from_utf8(output.stdout).unwrap();
            let tops = files.split('\0').filter(|path| !path.is_empty());
            tops.map(|path| path.split('/').next().unwrap().to_owned())
                .collect()
        }
        _ => fs::read_dir(root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect(),
    }
}

#[test]
fn the_top_level_holds_only_what_it_may() {
    for name in top_level() {
        assert!(
            TOP.contains(&name.as_str()),
            "{name}: not among what the top level may hold"
        );
    }
}

#[test]
fn every_rule_can_fail() {
    let long = "fn f() {}\n".repeat(LINES + 1);
    let cases: &[(Rule, &str, &str, &str)] = &[
        (
            arrows,
            "src/units.rs",
            "\nuse crate::stats::mean;",
            "src/units.rs:2: `units` must not use `stats`",
        ),
        (
            arrows,
            "src/kernels/x.rs",
            "fn f() { crate::model::presets(); }",
            "`kernels` must not use `model`",
        ),
        (
            arrows,
            "src/results/a/b.rs",
            "use crate::{error::{Error, Result}, kernels::Device};",
            "`results` must not use `kernels`",
        ),
        (
            arrows,
            "src/engine/mod.rs",
            "use super::study::Plan;",
            "`engine` must not use `study`",
        ),
        (
            arrows,
            "src/model/a/b.rs",
            "use super::super::super::engine::Engine;",
            "`model` must not use `engine`",
        ),
        (arrows, "src/serve/mod.rs", "", "`serve` has no place"),
        (
            printing,
            "src/study/run.rs",
            "// println!\nfn f() { println!(\"a\") }",
            "src/study/run.rs:2: `println`",
        ),
        (
            printing,
            "src/study/run.rs",
            "use std::io; fn f() { io::stderr(); }",
            "`stderr`",
        ),
        (
            clocks,
            "src/study/run.rs",
            "use std::time::{Duration, Instant};",
            "`Instant`",
        ),
        (
            unsafe_code,
            "src/kernels/linear/cpu.rs",
            "fn f() { unsafe { g() } }",
            "`unsafe`",
        ),
        (
            nvml,
            "src/study/facts.rs",
            "use nvml_wrapper::Nvml;",
            "`nvml_wrapper`",
        ),
        (
            results_without_candle,
            "src/results/x.rs",
            "use candle_core::Tensor;",
            "`candle_core`",
        ),
        (
            flags,
            "src/study/plan.rs",
            "#[derive(clap::Args)] struct S;",
            "`clap`",
        ),
        (length, "src/a.rs", &long, "src/a.rs:601: 601 lines"),
    ];
    for (rule, path, text, complaint) in cases {
        let found = rule(&Source::new(path, text)).join("\n");
        assert!(
            found.contains(complaint),
            "{path}: {text}\ngave '{found}', not '{complaint}'"
        );
    }
    for text in [
        "#ifdef __HOST_BUILD\n#endif",
        "  # if EMULATED",
        "#if __CUDA_ARCH__ >= 900\n#endif",
        "asm(\"\");",
        "while (*(volatile int*)p == 0) {}",
    ] {
        assert_eq!(host_branches("kernels/a.cu", text).len(), 1, "{text}");
    }
    let wrapper = "#pragma once\n#if defined(__CUDA_ARCH__) && 1\nasm volatile(\"\");\n#endif";
    assert!(host_branches("kernels/ptx/a.cuh", wrapper).is_empty());
    assert_eq!(
        host_branches("kernels/ptx/a.cuh", "#ifdef __GNUC__").len(),
        1
    );
    assert!(
        host_branches(
            "kernels/a.cu",
            "#pragma once // emulated, volatile\nplasma();"
        )
        .is_empty()
    );
}

#[test]
fn no_rule_fails_on_comments_texts_or_tests() {
    let innocent = r##"
        //! crate::study::Plan, println!, unsafe
        /* unsafe /* Instant */ crate::cli::run */
        const A: &str = "crate::study::x \" unsafe println!";
        const B: &str = r#"unsafe "Instant" nvml"#;
        const C: char = '"';
        const D: char = '\'';
        fn f<'a>(x: &'a str) {}
        #[cfg(test)]
        mod tests {
            use crate::study::Plan;
            fn f() { println!("{}", unsafe { nvml() }); let c = '}'; }
        }
    "##;
    let rules: [Rule; 7] = [
        arrows,
        printing,
        clocks,
        unsafe_code,
        nvml,
        results_without_candle,
        flags,
    ];
    let source = Source::new("src/results/x.rs", innocent);
    for rule in rules {
        assert!(rule(&source).is_empty(), "{:?}", rule(&source));
    }
    let found = test_files(
        "src/measure/energy.rs",
        "#[cfg(test)]\nmod tests;\n#[cfg(test)]\nmod more { }",
    );
    assert_eq!(found, ["src/measure/energy/tests"]);
    let tests = format!(
        "fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n",
        "fn f() {}\n".repeat(LINES)
    );
    assert_eq!(Source::new("src/a.rs", &tests).lines, 1);
}
