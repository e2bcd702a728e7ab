//! The rules: each gives what it complains of in one source.

use super::source::{Source, without_comments_and_texts};

/// Every module of the library, and the modules that it may use.
pub(super) const ARROWS: &[(&str, &[&str])] = &[
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
pub(super) const LINES: usize = 600;

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

pub(super) type Rule = fn(&Source) -> Vec<String>;

pub(super) fn arrows(source: &Source) -> Vec<String> {
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

pub(super) fn printing(source: &Source) -> Vec<String> {
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

pub(super) fn clocks(source: &Source) -> Vec<String> {
    if source.is_in(&["src/measure/", "src/cli/progress.rs"]) {
        return Vec::new();
    }
    source.forbid(
        |word| ["Instant", "SystemTime", "UNIX_EPOCH"].contains(&word),
        "outside measure: time enters as a `Clock`",
    )
}

pub(super) fn unsafe_code(source: &Source) -> Vec<String> {
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

pub(super) fn nvml(source: &Source) -> Vec<String> {
    if source.is_in(&["src/measure/"]) {
        return Vec::new();
    }
    source.forbid(
        |word| word.to_ascii_lowercase().contains("nvml"),
        "outside measure, which alone reads sensors",
    )
}

pub(super) fn results_without_candle(source: &Source) -> Vec<String> {
    if source.module() != "results" {
        return Vec::new();
    }
    let forbidden =
        |word: &str| word == "candle" || word.starts_with("candle_") || word == "cudarc";
    source.forbid(forbidden, "in results, which only knows records")
}

pub(super) fn flags(source: &Source) -> Vec<String> {
    if source.is_in(&["src/cli/"]) {
        return Vec::new();
    }
    source.forbid(
        |word| word == "clap",
        "outside cli, which alone reads flags",
    )
}

pub(super) fn length(source: &Source) -> Vec<String> {
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
pub(super) fn host_branches(path: &str, text: &str) -> Vec<String> {
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
