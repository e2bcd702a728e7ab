//! Build script: compiles every `kernels/*.cu` for the `cuda` feature, and does nothing without it.
//!
//! Each source becomes a fatbin of its own, `$OUT_DIR/<stem>.fatbin`, so that they compile in parallel and only what has
//! changed compiles again. What ptxas says of kernels, registers and spills is kept beside each, in `<stem>.ptxas`, for
//! gates to read. `$OUT_DIR/fatbins.rs` lists fatbins and kernels for `src/kernels/gpu/cuda/`.
//!
//! Lints and builds have an `OUT_DIR` each. The folder that `CANDLEPOWER_KERNEL_CACHE` names, if it is set, keeps what was
//! compiled by its content, so that whoever needs both compiles the kernels once.

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Flags of every compilation. The architectures are those of A100 and H100/H200.
const FLAGS: &[&str] = &[
    "-fatbin",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-std=c++17",
    "-O3",
    // Where <ptx/...> lies.
    "-Ikernels",
    "--expt-relaxed-constexpr",
    // Line numbers for profilers; compressed, because they are three times the size of the code.
    "-lineinfo",
    "-Xfatbin=-compress-all",
    "-Xptxas=-v",
];

/// What the program is built from.
const BUILT_FROM: &[&str] = &["Cargo.lock", "Cargo.toml", "kernels", "models", "src"];

/// Environment variables that choose the compiler.
const VARIABLES: &[&str] = &["NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=kernels/build.rs");
    tell_commit();
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    match compile_all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!(
                "cargo::error={}",
                e.to_string().replace('\n', "\ncargo::error=")
            );
            ExitCode::FAILURE
        }
    }
}

/// Tells the program which commit it is built from, marked with a hash of what differs where files do, so that two builds
/// of changed files are not taken for one: what `CANDLEPOWER_COMMIT` says, else what git says. Without git, or with an
/// empty variable, it does not know.
fn tell_commit() {
    println!("cargo::rerun-if-env-changed=CANDLEPOWER_COMMIT");
    if env::var_os("CANDLEPOWER_COMMIT").is_some() {
        return;
    }
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        output.status.success().then(|| text.trim().to_owned())
    };
    // The repository of whoever unpacked this package elsewhere is not this program's.
    let ours = git(&["ls-files", "--error-unmatch", "kernels/build.rs"]).is_some();
    let Some(commit) = git(&["rev-parse", "HEAD"]).filter(|_| ours) else {
        return;
    };
    // The log moves with every commit and checkout.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]);
    for path in BUILT_FROM.iter().copied().chain(log.as_deref()) {
        println!("cargo::rerun-if-changed={path}");
    }
    let status = ["status", "--porcelain", "--"];
    let changed = git(&[&status, BUILT_FROM].concat());
    let mark = match changed.as_deref() {
        Some("") => String::new(),
        _ => format!("-dirty-{}", changes(&git).hex()),
    };
    println!("cargo::rustc-env=CANDLEPOWER_COMMIT={commit}{mark}");
}

/// A hash of what differs from the commit: changed files as a patch, and new ones whole.
fn changes(git: &impl Fn(&[&str]) -> Option<String>) -> Fnv {
    // The plumbing, whose patch no setting of a user changes.
    let patch = ["diff-index", "--patch", "--binary", "HEAD", "--"];
    let patch = git(&[&patch, BUILT_FROM].concat()).unwrap_or_default();
    let new = ["ls-files", "--others", "--exclude-standard", "--"];
    let new = git(&[&new, BUILT_FROM].concat()).unwrap_or_default();
    new.lines().fold(Fnv::new().text(&patch), |hash, path| {
        let bytes = fs::read(path).unwrap_or_default();
        hash.text(path).text(&String::from_utf8_lossy(&bytes))
    })
}

fn compile_all() -> Result<()> {
    println!("cargo::rerun-if-changed=kernels");
    for variable in VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let cache = env::var_os("CANDLEPOWER_KERNEL_CACHE").map(PathBuf::from);
    if let Some(folder) = &cache {
        fs::create_dir_all(folder).map_err(|e| {
            format!(
                "CANDLEPOWER_KERNEL_CACHE: cannot make {}: {e}",
                folder.display()
            )
        })?;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let nvcc = Nvcc::find()?;
    let mut headers = files("kernels/common", "cuh")?;
    headers.extend(files("kernels/ptx", "cuh")?);
    let shared = Fnv::new().text(&nvcc.version).text(&FLAGS.join(" "));
    let shared = content_hash(&headers, shared)?;
    let sources = files("kernels", "cu")?
        .into_iter()
        .map(|path| {
            let hash = content_hash(std::slice::from_ref(&path), shared)?;
            Ok(Source { path, hash })
        })
        .collect::<Result<Vec<_>>>()?;

    let next = AtomicUsize::new(0);
    let compile_some = || -> Result<()> {
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            compile(&nvcc, source, &out, cache.as_deref())?;
        }
        Ok(())
    };
    let jobs = env::var("NUM_JOBS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(compile_some)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;

    fs::write(out.join("fatbins.rs"), table(&sources, &out)?)?;
    let all = sources
        .iter()
        .fold(shared, |all, source| all.text(&source.hash.hex()));
    println!("cargo::rustc-env=CANDLEPOWER_KERNELS_HASH={}", all.hex());
    Ok(())
}

/// A `.cu` file, and a hash of all that its fatbin depends on.
struct Source {
    path: PathBuf,
    hash: Fnv,
}

/// Compiles `source` into `out`, unless what lies there, or in the cache, was made from the same content.
fn compile(
    nvcc: &Nvcc,
    Source { path, hash }: &Source,
    out: &Path,
    cache: Option<&Path>,
) -> Result<()> {
    let stem = stem(path);
    let target = |extension: &str| out.join(format!("{stem}.{extension}"));
    let (fatbin, stamp) = (target("fatbin"), target("hash"));
    if fatbin.exists() && fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == hash.hex())
    {
        return Ok(());
    }
    // Until this one is done, nothing vouches for what lies there.
    if stamp.exists() {
        fs::remove_file(&stamp)?;
    }
    let log = target("ptxas");
    let kept = |extension: &str| {
        cache.map(|folder| folder.join(format!("{stem}-{}.{extension}", hash.hex())))
    };
    // The log goes in last and comes out first: where it is, the fatbin is whole.
    if let (Some(kept_log), Some(kept_fatbin)) = (kept("ptxas"), kept("fatbin"))
        && fs::copy(&kept_log, &log).is_ok()
    {
        fs::copy(&kept_fatbin, &fatbin)?;
        fs::write(stamp, hash.hex())?;
        return Ok(());
    }
    let output = nvcc
        .command()
        .args(FLAGS)
        .arg("-o")
        .arg(&fatbin)
        .arg(path)
        .output()
        .map_err(|e| format!("cannot run {}: {e}", nvcc.path.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let also = String::from_utf8_lossy(&output.stdout);
        return Err(format!("nvcc could not compile {}:\n{said}{also}", path.display()).into());
    }
    for warning in said.lines().filter(|line| line.contains("warning")) {
        println!("cargo::warning={warning}");
    }
    fs::write(&log, said.as_bytes())?;
    for (made, kept) in [(&fatbin, kept("fatbin")), (&log, kept("ptxas"))] {
        if let Some(kept) = kept {
            // Two builds may be at the same kernel: each puts its own copy in place as a whole.
            let whole = kept.with_extension(format!("{}", std::process::id()));
            fs::copy(made, &whole)?;
            fs::rename(&whole, &kept)?;
        }
    }
    fs::write(stamp, hash.hex())?;
    Ok(())
}

/// The Rust expression that lists what was compiled.
fn table(sources: &[Source], out: &Path) -> Result<String> {
    let mut table = String::from("&[\n");
    for Source { path, .. } in sources {
        let stem = stem(path);
        let kernels = kernel_names(&out.join(format!("{stem}.ptxas")))?;
        writeln!(
            table,
            "    Fatbin {{ stem: {stem:?}, code: include_bytes!(\"{stem}.fatbin\"), kernels: &{kernels:?} }},",
        )?;
    }
    table.push_str("]\n");
    Ok(table)
}

/// The kernels that ptxas says it compiled, each once although it does so for every architecture.
fn kernel_names(log: &Path) -> Result<Vec<String>> {
    let said =
        fs::read_to_string(log).map_err(|e| format!("cannot read {}: {e}", log.display()))?;
    let names: BTreeSet<_> = said
        .lines()
        .filter_map(|line| {
            line.split_once("Compiling entry function '")?
                .1
                .split('\'')
                .next()
        })
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Err(format!("{} names no kernel", log.display()).into());
    }
    Ok(names.into_iter().collect())
}

/// The CUDA compiler.
struct Nvcc {
    path: PathBuf,
    version: String,
}

impl Nvcc {
    /// Looks where candle's own build script looks: `NVCC`, `PATH`, then the toolkit's home.
    fn find() -> Result<Self> {
        let named = env::var_os("NVCC").map(PathBuf::from);
        let homes = ["CUDA_HOME", "CUDA_PATH"]
            .into_iter()
            .filter_map(env::var_os);
        let in_homes = homes.map(|home| Path::new(&home).join("bin/nvcc"));
        let usual = PathBuf::from("/usr/local/cuda/bin/nvcc");
        named
            .into_iter()
            .chain([PathBuf::from("nvcc")])
            .chain(in_homes)
            .chain([usual])
            .find_map(|path| {
                let output = Command::new(&path).arg("--version").output().ok()?;
                let version = String::from_utf8_lossy(&output.stdout).into_owned();
                output.status.success().then_some(Self { path, version })
            })
            .ok_or_else(|| {
                "the feature `cuda` needs nvcc, which is neither in PATH nor where NVCC or CUDA_HOME point.\n\
                 Without a CUDA toolkit, fetch one for this checkout first: eval \"$(kernels/toolkit.sh)\""
                    .into()
            })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        if let Some(host_compiler) = env::var_os("NVCC_CCBIN") {
            command.arg("-ccbin").arg(host_compiler);
        }
        command
    }
}

/// The files in `folder` with this extension, sorted.
fn files(folder: &str, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| format!("cannot read {folder}: {e}"))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension() == Some(OsStr::new(extension)));
    paths.sort();
    Ok(paths)
}

fn stem(path: &Path) -> &str {
    path.file_stem()
        .and_then(OsStr::to_str)
        .expect("kernel sources have plain names")
}

/// Goes on from `hash` over the names and contents of `paths`.
fn content_hash(paths: &[PathBuf], mut hash: Fnv) -> Result<Fnv> {
    for path in paths {
        let text =
            fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        hash = hash.text(stem(path)).text(&text);
    }
    Ok(hash)
}

/// FNV-1a, 64 bits: enough to tell one state of the sources from another, and the same wherever it is computed.
/// Source: Fowler, Noll, Vo, "The FNV Non-Cryptographic Hash Algorithm", draft-eastlake-fnv.
#[derive(Clone, Copy)]
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Hashes `text` and a byte that occurs in no UTF-8, so that the borders between texts count.
    fn text(self, text: &str) -> Self {
        let bytes = text.bytes().chain([0xff]);
        Self(bytes.fold(self.0, |h, byte| {
            (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        }))
    }

    fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}
