//! The host's C++ compiler and how it is called.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

/// What every file is compiled with. Nothing is contracted that the sources do not contract, so that results are the same
/// on every machine.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=off",
    // Warnings would not be seen.
    "-w",
    "-Ikernels/host",
];

/// What the run time alone is compiled with.
const RUNTIME_FLAGS: &[&str] = &["-O2"];

/// What kernels alone are compiled with. There are hundreds of them: more than `-O1` takes longer to compile than it saves.
const KERNEL_FLAGS: &[&str] = &["-O1", "-include", "prelude.h", "-x", "c++"];

/// Changed kernels run once or twice: compiling them matters more than running them, and nothing is to be said of them but
/// that they are wrong.
const MUTATED_LEVEL: &str = "-O0";

/// Locals of kernels hold a pattern before they are written. Left out where the compiler does not know it.
const POISON: &str = "-ftrivial-auto-var-init=pattern";

/// Checks whose failures `kernels/host/sanitizer.cpp` reports. Left out where the compiler does not know them.
const CHECKS: &str = "-fsanitize=alignment,null,bounds,shift,integer-divide-by-zero";

/// What a file is compiled for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Purpose {
    Runtime,
    Kernel,
    MutatedKernel,
}

/// The host's C++ compiler.
pub(super) struct Compiler {
    /// The program, and arguments that CXX gave with it.
    words: Vec<String>,
    pub(super) version: String,
    /// Flags that depend on the machine.
    machine: Vec<String>,
    /// [`POISON`] or nothing.
    poison: Vec<String>,
    /// [`CHECKS`] or nothing.
    checks: Vec<String>,
    /// Whether these checks cover vectors that are loaded or stored as a whole: GCC's do, Clang's do not.
    pub(super) checks_vectors: bool,
}

impl Compiler {
    pub(super) fn get() -> &'static Self {
        static COMPILER: OnceLock<Compiler> = OnceLock::new();
        COMPILER.get_or_init(Self::find)
    }

    fn find() -> Self {
        let named = env::var("CXX").ok().filter(|name| !name.trim().is_empty());
        let candidates = named.map_or_else(
            || ["c++", "g++", "clang++"].map(str::to_owned).to_vec(),
            |name| vec![name],
        );
        let found = candidates.iter().find_map(|candidate| {
            let words = candidate.split_whitespace().map(str::to_owned).collect();
            let mut compiler = Self {
                words,
                version: String::new(),
                machine: machine_flags(),
                poison: Vec::new(),
                checks: Vec::new(),
                checks_vectors: false,
            };
            let output = compiler.command().arg("--version").output().ok()?;
            compiler.version = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some(compiler)
        });
        let Some(mut compiler) = found else {
            panic!(
                "kernels are tested on the host, which needs a C++17 compiler, and `{}` does not run.\n\
                 Install one (Debian, Ubuntu: g++; Fedora: gcc-c++), or let CXX name one.",
                candidates.join("`, `")
            );
        };
        compiler.poison = compiler.known(POISON, "", "");
        let checked = "__ubsan_handle_type_mismatch_v1";
        let access = "int probe(const int* p) { return *p; }";
        compiler.checks = compiler.known(CHECKS, access, checked);
        let access = "struct alignas(16) V { int x[4]; }; V probe(const V* p) { return *p; }";
        compiler.checks_vectors = !compiler.known(CHECKS, access, checked).is_empty();
        compiler
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }

    /// All flags but those that name files.
    pub(super) fn flags(&self, purpose: Purpose) -> Vec<String> {
        let own: &[&str] = match purpose {
            Purpose::Runtime => RUNTIME_FLAGS,
            Purpose::Kernel | Purpose::MutatedKernel => KERNEL_FLAGS,
        };
        let fixed = FLAGS.iter().chain(own).map(|&flag| flag.to_owned());
        let mut flags: Vec<String> = fixed.chain(self.machine.iter().cloned()).collect();
        match purpose {
            Purpose::Runtime => {}
            Purpose::Kernel => flags.extend(self.poison.iter().chain(&self.checks).cloned()),
            Purpose::MutatedKernel => {
                flags.extend(self.poison.iter().cloned());
                flags.push(MUTATED_LEVEL.to_owned());
            }
        }
        flags
    }

    /// The flag, if the compiler takes it and what it makes then of `source` holds `trace`.
    fn known(&self, flag: &str, source: &str, trace: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let object = folder.path().join("probe.o");
        let path = folder.path().join("probe.cpp");
        fs::write(&path, source).unwrap();
        let mut command = self.command();
        command
            .args(["-Werror", flag, "-c"])
            .arg(path)
            .arg("-o")
            .arg(&object);
        let compiles = command.output().is_ok_and(|output| output.status.success());
        let holds = |bytes: Vec<u8>| {
            let mut windows = bytes.windows(trace.len().max(1));
            trace.is_empty() || windows.any(|window| window == trace.as_bytes())
        };
        let known = compiles && fs::read(&object).is_ok_and(holds);
        known.then(|| flag.to_owned()).into_iter().collect()
    }
}

/// No stack for return addresses alone, of which fibers would need one each; and the machine's fused multiply-add, which
/// would else be a call.
#[cfg(target_arch = "x86_64")]
fn machine_flags() -> Vec<String> {
    let mut flags = vec!["-fcf-protection=none".to_owned()];
    if is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2") {
        flags.extend(["-mfma".to_owned(), "-mavx2".to_owned()]);
    }
    flags
}

#[cfg(not(target_arch = "x86_64"))]
fn machine_flags() -> Vec<String> {
    Vec::new()
}

/// Runs a command that compiles `source` or puts a library of it together; fails with what it said.
pub(super) fn expect_success(command: &mut Command, source: &Path) {
    let Output { status, stderr, .. } = command
        .output()
        .unwrap_or_else(|e| panic!("cannot run {}: {e}", command.get_program().display()));
    assert!(
        status.success(),
        "{} does not compile for the host:\n{}",
        source.display(),
        String::from_utf8_lossy(&stderr)
    );
}
