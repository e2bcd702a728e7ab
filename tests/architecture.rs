//! The walls of the house, read off the sources: who may use whom, who may print, read clocks, be unsafe. What a rule
//! forbids is named with file and line. `proofs::every_rule_can_fail` shows each rule a source that breaks it.

#[path = "architecture/proofs.rs"]
mod proofs;
#[path = "architecture/rules.rs"]
mod rules;
#[path = "architecture/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use rules::{
    ARROWS, LINES, Rule, arrows, clocks, flags, host_branches, length, nvml, printing,
    results_without_candle, unsafe_code,
};
use source::{Source, files, read, root, sources};

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
