//! What the tests share: opening, reading whole tensors, the fixtures.

use std::fs;
use std::path::{Path, PathBuf};

use candlepower::error::{Error, Result};
use candlepower::model::{HostSliceMut, Model, ModelSpec, WeightsChoice};
use tempfile::TempDir;

/// The folders under `tests/fixtures`.
pub(crate) const FIXTURES: [&str; 4] =
    ["tiny-llama", "tiny-llama-tied", "tiny-qwen2", "tiny-qwen3"];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
        .join("bf16")
}

pub(crate) fn spec(source: impl AsRef<Path>, weights: WeightsChoice) -> ModelSpec {
    ModelSpec {
        source: source.as_ref().to_str().unwrap().to_owned(),
        revision: None,
        weights,
        tokenizer: None,
    }
}

pub(crate) fn open(source: impl AsRef<Path>) -> Result<Model> {
    // The source may be a temporary folder: it lives until the model is open.
    Model::open(&spec(source.as_ref(), WeightsChoice::AsStored))
}

pub(crate) fn open_dummy(source: impl AsRef<Path>, seed: u64) -> Result<Model> {
    Model::open(&spec(source, WeightsChoice::Dummy { seed }))
}

/// A whole tensor, widened.
pub(crate) fn read_all(model: &Model, name: &str) -> Vec<f32> {
    let shape = model.weights.shape(name).unwrap();
    let rows = if shape.len() == 1 { 1 } else { shape[0] };
    let mut out = vec![f32::NAN; shape.iter().product()];
    model
        .weights
        .read_rows(name, 0..rows, HostSliceMut::F32(&mut out))
        .unwrap();
    out
}

/// A writable copy of a fixture without its reference values.
pub(crate) fn copy_of(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "expected.safetensors" {
            let bytes = fs::read(&path).unwrap();
            fs::write(folder.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
    }
    folder
}

/// Sets a key of a folder's `config.json`.
pub(crate) fn set_config(folder: &TempDir, key: &str, value: serde_json::Value) {
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// The error of something that must fail, with its exit code and a word that it must contain.
pub(crate) fn assert_fails<T>(result: Result<T>, code: u8, word: &str) {
    let error: Error = match result {
        Ok(_) => panic!("expected an error that says '{word}'"),
        Err(error) => error,
    };
    assert_eq!(error.exit_code(), code, "{error}");
    assert!(
        error.to_string().contains(word),
        "'{error}' does not say '{word}'"
    );
}
