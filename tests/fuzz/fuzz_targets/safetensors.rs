//! A safetensors file under the configuration of a quantised checkpoint, which the first byte picks.
#![no_main]

mod common;

use std::path::Path;

const KINDS: [&str; 5] = [
    "bf16",
    "ct-w4a16-g32-asym",
    "ct-fp8-dyn-float",
    "gptq-g32-sym-descact",
    "awq-g32-gemm",
];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else {
        return;
    };
    let kind = KINDS[usize::from(first) % KINDS.len()];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = Path::new(common::FIXTURES)
        .join("tiny-llama-tied")
        .join(kind)
        .join("config.json");
    std::fs::copy(config, folder.path().join("config.json")).expect("a fixture");
    std::fs::write(folder.path().join("model.safetensors"), data).expect("a temporary file");
    common::exercise(folder.path());
});
