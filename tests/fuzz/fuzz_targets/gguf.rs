//! A GGUF file: header, configuration, tokenizer and blocks.
#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, data).expect("a temporary file");
    common::exercise(&path);
});
