//! Rules of the sources: kernels do not know where they run, and every wrapper of PTX has its counterpart for the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::build::files;

fn read(path: &Path) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The code of every line, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate();
    lines.map(|(i, line)| (i + 1, line.split("//").next().unwrap()))
}

/// What in a kernel source depends on where it runs, or cannot run on the host. Inline PTX and what differs between GPUs
/// belong into `kernels/ptx/`; flags between blocks that are read as `volatile` would spin for ever.
fn faults(text: &str) -> Vec<(usize, String)> {
    let is_fault = |line: &str| {
        let directive = line.trim_start().strip_prefix('#').map(str::trim_start);
        let branches = directive.is_some_and(|directive| {
            ["if", "elif", "else", "endif"]
                .iter()
                .any(|word| directive.starts_with(word))
        });
        let upper = line.to_ascii_uppercase();
        let words: Vec<&str> = line
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .collect();
        branches
            || upper.contains("EMULAT")
            || words
                .iter()
                .any(|word| ["asm", "volatile", "__CUDA_ARCH__", "__CUDACC__"].contains(word))
    };
    code(text)
        .filter(|(_, line)| is_fault(line))
        .map(|(i, line)| (i, line.trim().to_owned()))
        .collect()
}

#[test]
fn kernels_do_not_know_where_they_run() {
    let mut sources = files("kernels", "cu");
    sources.extend(files("kernels/common", "cuh"));
    let mut all = Vec::new();
    for path in &sources {
        for (line, text) in faults(&read(path)) {
            all.push(format!("{}:{line}: {text}", path.display()));
        }
    }
    assert!(sources.len() > 10 && all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn the_rule_can_fail() {
    for text in [
        "#if HOST",
        "  #  ifdef __CUDA_ARCH__",
        "x = EMULATED;",
        "asm(\"\");",
        "volatile int* p;",
    ] {
        assert_eq!(faults(text).len(), 1, "{text}");
    }
    assert!(
        faults("#pragma once\n#include <x>\n#define A // emulated, volatile\nplasma = 1;")
            .is_empty()
    );
}

/// Names that a header of `kernels/ptx/` offers: functions, also those of a struct, macros and types.
fn declared(text: &str) -> BTreeSet<String> {
    let text: String = code(text).map(|(_, line)| format!("{line}\n")).collect();
    let name_before = |rest: &str| {
        let head = rest.split(['(', '<', '{', ';', ':']).next().unwrap();
        head.split_whitespace().last().map(str::to_owned)
    };
    let functions = text
        .split("__device__")
        .skip(1)
        .map(|rest| rest.split(['(', '<']).next().unwrap());
    let functions = functions.filter_map(|head| head.split_whitespace().last().map(str::to_owned));
    let macros = text.split("#define ").skip(1);
    let macros = macros.filter_map(|rest| rest.split(['(', ' ', '\n']).next().map(str::to_owned));
    let types = ["struct ", "enum class "];
    let types = types
        .iter()
        .flat_map(|word| text.split(word).skip(1).filter_map(name_before));
    functions
        .chain(macros)
        .chain(types.collect::<Vec<_>>())
        .collect()
}

#[test]
fn the_host_has_every_wrapper_of_ptx() {
    let headers = files("kernels/ptx", "cuh");
    assert!(headers.len() >= 5);
    let mut missing = Vec::new();
    for path in headers {
        let host_path = Path::new("kernels/host/ptx").join(path.file_name().unwrap());
        let host = read(&host_path);
        let words: BTreeSet<&str> = host
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .collect();
        for name in declared(&read(&path)) {
            if !words.contains(name.as_str()) {
                missing.push(format!(
                    "{}: no {name}, which {} has",
                    host_path.display(),
                    path.display()
                ));
            }
        }
    }
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
}

#[test]
fn declarations_are_found() {
    let names = declared(&read(Path::new("kernels/ptx/bits.cuh")));
    let expected = [
        "Pair",
        "both",
        "mask_or",
        "multiply_add",
        "permute_bytes",
        "subtract",
    ];
    assert_eq!(
        names.iter().map(String::as_str).collect::<Vec<_>>(),
        expected
    );
    let names = declared(&read(Path::new("kernels/ptx/kernel.cuh")));
    assert!(
        names.is_superset(
            &["DYNAMIC_SHARED", "KERNEL", "KERNEL_OF"]
                .map(str::to_owned)
                .into()
        )
    );
    let names = declared(&read(Path::new("kernels/ptx/copy.cuh")));
    assert!(
        names.is_superset(
            &["Keep", "copy16", "copies_commit", "copies_wait"]
                .map(str::to_owned)
                .into()
        )
    );
}
