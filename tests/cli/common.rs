//! Running the program, the fixtures, and text to score.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// What a run gave back.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Fails with all that was said unless the exit code is this one. No run may panic.
    pub(crate) fn expect(self, code: i32) -> Self {
        let Self { stdout, stderr, .. } = &self;
        assert!(
            self.code == code,
            "exit code {} instead of {code}\n{stdout}\n{stderr}",
            self.code
        );
        assert!(!stderr.contains("panicked"), "{stderr}");
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in {}", self.stdout))
    }

    /// The one line that says what is wrong.
    pub(crate) fn error(&self) -> &str {
        let mut errors = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "));
        let error = errors
            .next()
            .unwrap_or_else(|| panic!("no error in {}", self.stderr));
        assert_eq!(errors.next(), None, "more than one error");
        error
    }
}

/// The program on the CPU and without the network, in `folder`.
pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    command
        .args(args)
        .current_dir(folder)
        .env("HF_HUB_OFFLINE", "1");
    command
}

pub(crate) fn run(folder: &Path, args: &[&str]) -> Run {
    let Output {
        status,
        stdout,
        stderr,
    } = command(folder, args).output().unwrap();
    Run {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// Arguments as one line; none of them has a blank.
pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

pub(crate) const FIXTURES: [&str; 4] =
    ["tiny-llama", "tiny-llama-tied", "tiny-qwen2", "tiny-qwen3"];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
        .join("bf16")
}

/// A copy of `tiny-llama` called `model` in `folder`, for spoiling.
pub(crate) fn copy_model(folder: &Path) -> PathBuf {
    let to = folder.join("model");
    fs::create_dir(&to).unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ] {
        fs::copy(fixture("tiny-llama").join(name), to.join(name)).unwrap();
    }
    to
}

/// A plain text of a few thousand tokens called `text.txt` in `folder`.
pub(crate) fn write_text(folder: &Path) {
    let line = |i: usize| {
        format!(
            "Reading {i} of the lamp came to {} units, and the room was dark.\n",
            i * 37 % 101
        )
    };
    fs::write(
        folder.join("text.txt"),
        (0..200).map(line).collect::<String>(),
    )
    .unwrap();
}

/// A number of a JSON document, which must be there.
pub(crate) fn number(value: &Value, pointer: &str) -> f64 {
    let found = value.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {pointer} of {value:#}"))
}

/// Fails unless a document names this schema and keeps to it, and the schema is one that not just anything keeps to.
pub(crate) fn keeps_to_schema(document: &Value, name: &str) {
    assert_eq!(document["schema"], name);
    let schemas = run(Path::new("."), &["schema"]).expect(0).json();
    let validator = jsonschema::validator_for(&schemas[name]).unwrap();
    if let Err(error) = validator.validate(document) {
        panic!("{name}: {error}\n{document:#}");
    }
    assert!(!validator.is_valid(&serde_json::json!({ "schema": name })));
    let mut other = document.clone();
    other["schema"] = "candlepower.other/1".into();
    assert!(!validator.is_valid(&other), "{name} takes any version");
}

/// Fails if a line is longer than what there is without a terminal.
pub(crate) fn fits_a_terminal(shown: &str) {
    for line in shown.lines() {
        assert!(line.chars().count() <= 100, "{line}\n\n{shown}");
    }
}
