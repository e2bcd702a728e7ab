//! A `config.json` beside the weights of a quantised checkpoint.
#![no_main]

mod common;

use std::path::Path;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let weights = Path::new(common::FIXTURES).join("tiny-llama-tied/gptq-g32-sym-descact");
    std::fs::write(folder.path().join("config.json"), data).expect("a temporary file");
    std::os::unix::fs::symlink(
        weights.join("model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .expect("a link");
    common::exercise(folder.path());
});
