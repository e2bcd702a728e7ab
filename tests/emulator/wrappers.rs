//! Every wrapper of PTX has its counterpart for the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::build::files;

fn read(path: &Path) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn without_comments(text: &str) -> String {
    let code = text.lines().map(|line| line.split("//").next().unwrap());
    code.collect::<Vec<_>>().join("\n")
}

/// Names that a header of `kernels/ptx/` offers: functions, also those of a struct, macros and types.
fn declared(text: &str) -> BTreeSet<String> {
    let text = without_comments(text);
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
    // What a header takes back it does not offer.
    let macros = macros.filter(|name| !text.contains(&format!("#undef {name}")));
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
        let host = without_comments(&read(&host_path));
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
        "computed_anew",
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
