//! Every rule on a source that breaks it, and on one that only looks so.

use super::rules::{
    LINES, Rule, arrows, clocks, flags, host_branches, length, nvml, printing,
    results_without_candle, unsafe_code,
};
use super::source::{Source, test_files};

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
