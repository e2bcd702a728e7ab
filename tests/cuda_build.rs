//! The `cuda` build where there is no GPU: it starts, says so, and carries code for every GPU that it is meant for.
#![cfg(feature = "cuda")]

#[path = "cuda_build/sass.rs"]
mod sass;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candlepower::kernels::Device;

fn run(args: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    command
        .args(args)
        .current_dir(folder.path())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_program_starts() {
    let output = run(&["info", "--json", "--no-ceilings", "--device", "cpu"]);
    assert!(output.status.success(), "{}", said(&output));
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let features = info["environment"]["features"].as_array().unwrap();
    assert!(features.iter().any(|f| f == "cuda"), "{features:?}");
}

#[test]
fn without_a_gpu_it_runs_on_the_cpu_and_says_so() {
    if Device::cuda(0).is_ok() {
        return;
    }
    let output = run(&["ppl", "--segments", "1", "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let ppl: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ppl["device"], "cpu");
    assert!(said(&output).contains("cpu"), "{}", said(&output));
}

#[test]
fn without_a_gpu_asking_for_one_says_what_to_do() {
    if Device::cuda(0).is_ok() {
        return;
    }
    for command in ["study", "bench", "ppl", "info"] {
        let output = run(&[command, "--device", "cuda"]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(69), "{command}: {said}");
        assert!(
            said.contains("error: ") && said.contains("--device cpu"),
            "{command}: {said}"
        );
        assert!(!said.contains("panicked"), "{command}: {said}");
    }
}

/// What `kernels/build.rs` made.
fn fatbins() -> Vec<PathBuf> {
    let out = fs::read_dir(env!("OUT_DIR"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    out.filter(|path| path.extension().is_some_and(|e| e == "fatbin"))
        .collect()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
}

/// The compute capability of every image of compiled code. A fatbin is a header of 16 bytes, then images; each begins
/// with its kind (2 is compiled code), the length of its header at byte 4, that of its content at 8, its target at 28.
fn targets(fatbin: &[u8]) -> Vec<u32> {
    assert_eq!(word(fatbin, 0), 0xba55_ed50, "no fatbin");
    let mut targets = Vec::new();
    let mut at = 16;
    while at < fatbin.len() {
        if word(fatbin, at) & 0xffff == 2 {
            targets.push(word(fatbin, at + 28));
        }
        at += word(fatbin, at + 4) as usize + long(fatbin, at + 8);
    }
    targets.sort_unstable();
    targets
}

#[test]
fn every_kernel_is_compiled_for_a100_and_for_h100() {
    let fatbins = fatbins();
    let sources = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")).unwrap();
    let is_source = |path: &PathBuf| path.extension().is_some_and(|e| e == "cu");
    let sources: Vec<PathBuf> = sources
        .map(|entry| entry.unwrap().path())
        .filter(is_source)
        .collect();
    assert!(!sources.is_empty());
    for source in sources {
        let stem = source.file_stem().unwrap();
        let fatbin = fatbins.iter().find(|path| path.file_stem() == Some(stem));
        let fatbin = fatbin.unwrap_or_else(|| panic!("{} was not compiled", source.display()));
        assert_eq!(
            targets(&fs::read(fatbin).unwrap()),
            [80, 90],
            "{}",
            fatbin.display()
        );
        // The compiler's own word tells 90a from 90.
        let log = fs::read_to_string(fatbin.with_extension("ptxas")).unwrap();
        for target in ["'sm_80'", "'sm_90a'"] {
            assert!(
                log.contains(target),
                "{}: nothing for {target}",
                source.display()
            );
        }
    }
}
