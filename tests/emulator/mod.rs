//! Kernels as libraries for the host: compiles `.cu` files with the headers and the run time in `kernels/host/`, each into
//! a shared object of its own, and keeps what it made for as long as its sources stay the same.
#![allow(dead_code, reason = "no test crate uses all of it")]

mod compiler;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use compiler::{Compiler, Purpose, expect_success};

/// A change of one source, to prove that a test notices it.
#[derive(Clone, Copy)]
pub(crate) struct Mutation {
    /// Relative to `kernels/`.
    pub(crate) file: &'static str,
    /// Occurs exactly once in it.
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
}

/// What to compile, and how.
#[derive(Clone, Default)]
pub(crate) struct Build<'a> {
    /// `.cu` files; every one of `kernels/` if there are none.
    pub(crate) sources: Vec<PathBuf>,
    /// Macros to define, as `NAME` or `NAME=VALUE`.
    pub(crate) define: &'a [&'a str],
    /// Applied to copies of the sources.
    pub(crate) mutations: &'a [Mutation],
}

/// The folder with the libraries of all kernels, `<stem>.so` for every `kernels/<stem>.cu`.
pub(crate) fn kernels() -> PathBuf {
    libraries(&Build::default())
}

/// The folder with the libraries of `kernels/<stem>.cu` for these stems, compiled from sources that were changed.
pub(crate) fn mutated(stems: &[&str], mutations: &[Mutation]) -> PathBuf {
    let source = |stem: &&str| Path::new("kernels").join(stem).with_extension("cu");
    libraries(&Build {
        sources: stems.iter().map(source).collect(),
        mutations,
        ..Build::default()
    })
}

/// Whether misaligned loads of vectors are noticed, and indices out of range; not every compiler checks that.
pub(crate) fn checks_accesses() -> bool {
    Compiler::get().checks_vectors
}

/// The folder with one library for every source. Compiled at most once, whatever threads and test programs ask for it.
pub(crate) fn libraries(build: &Build) -> PathBuf {
    static MADE: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let sources = match &build.sources[..] {
        [] => files("kernels", "cu"),
        sources => sources.to_vec(),
    };
    let inputs = Inputs::new(&sources, build);
    let key = inputs.key();
    // Another thread's failure to compile is not ours.
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.get_or_insert_default()
        .entry(key.clone())
        .or_insert_with(|| inputs.folder(&key))
        .clone()
}

/// All that a set of libraries is made from.
struct Inputs {
    sources: Vec<PathBuf>,
    kernel_flags: Vec<String>,
    /// Path and content of everything under `kernels/`, mutated, and of the sources that lie elsewhere.
    texts: Vec<(PathBuf, String)>,
    mutated: bool,
    /// Of all that the run time depends on.
    runtime: Hash,
    /// Of all that libraries have in common.
    common: Hash,
}

impl Inputs {
    fn new(sources: &[PathBuf], build: &Build) -> Self {
        let mut paths = sources.to_vec();
        for (folder, extension) in [
            ("kernels/common", "cuh"),
            ("kernels/host", "h"),
            ("kernels/host", "cpp"),
            ("kernels/host/ptx", "cuh"),
        ] {
            paths.extend(files(folder, extension));
        }
        let mut texts: Vec<_> = paths.into_iter().map(|path| (read(&path), path)).collect();
        for mutation in build.mutations {
            let path = Path::new("kernels").join(mutation.file);
            let (text, _) = texts
                .iter_mut()
                .find(|(_, other)| *other == path)
                .unwrap_or_else(|| panic!("{}: no source of this build", path.display()));
            let count = text.matches(mutation.from).count();
            assert_eq!(count, 1, "{}: holds `{}`", path.display(), mutation.from);
            *text = text.replace(mutation.from, mutation.to);
        }
        let compiler = Compiler::get();
        let mutated = !build.mutations.is_empty();
        let purpose = if mutated {
            Purpose::MutatedKernel
        } else {
            Purpose::Kernel
        };
        let mut kernel_flags = compiler.flags(purpose);
        kernel_flags.extend(build.define.iter().map(|name| format!("-D{name}")));
        let mut inputs = Self {
            sources: sources.to_vec(),
            kernel_flags,
            texts: texts.into_iter().map(|(text, path)| (path, text)).collect(),
            mutated,
            runtime: Hash::default(),
            common: Hash::default(),
        };
        let hash = Hash::default().text(&compiler.version);
        let hash = hash.texts(&compiler.flags(Purpose::Runtime));
        inputs.runtime = inputs.hash_folder("kernels/host", hash);
        let hash = inputs.runtime.clone().texts(&inputs.kernel_flags);
        inputs.common = inputs.hash_folder("kernels/common", hash);
        inputs
    }

    /// Continues `hash` over the files among `texts` that lie in this folder and are no sources of libraries.
    fn hash_folder(&self, folder: &str, hash: Hash) -> Hash {
        self.texts
            .iter()
            .filter(|(path, _)| path.starts_with(folder) && !self.sources.contains(path))
            .fold(hash, |hash, (path, text)| hash.path(path).text(text))
    }

    fn text(&self, source: &Path) -> &str {
        let (_, text) = self.texts.iter().find(|(path, _)| path == source).unwrap();
        text
    }

    fn hash_of(&self, source: &Path) -> String {
        self.common
            .clone()
            .path(source)
            .text(self.text(source))
            .hex()
    }

    /// Of a folder with all libraries.
    fn key(&self) -> String {
        self.sources
            .iter()
            .fold(Hash::default(), |hash, source| {
                hash.text(&self.hash_of(source))
            })
            .hex()
    }

    /// Where the libraries lie; compiles those that are missing.
    fn folder(&self, key: &str) -> PathBuf {
        let folder = cache().join(key);
        if folder.exists() {
            return folder;
        }
        fs::create_dir_all(cache()).unwrap();
        // Released when it is dropped or when this process ends, however it does.
        let lock = File::create(cache().join("lock")).unwrap();
        lock.lock().unwrap();
        if folder.exists() {
            return folder;
        }
        let scratch = tempfile::tempdir_in(cache()).unwrap();
        let missing: Vec<&Path> = self
            .sources
            .iter()
            .map(PathBuf::as_path)
            .filter(|source| !self.library(source).exists())
            .collect();
        if !missing.is_empty() {
            self.compile(missing, scratch.path());
        }
        let collected = scratch.path().join("collected");
        fs::create_dir(&collected).unwrap();
        for source in &self.sources {
            // A copy, no link: the loader takes one file under two names for one library, whose state they would share.
            let name = Path::new(stem(source)).with_extension("so");
            fs::copy(self.library(source), collected.join(name)).unwrap();
        }
        fs::rename(&collected, &folder).unwrap();
        folder
    }

    /// The library of one source, beside the folders that share it.
    fn library(&self, source: &Path) -> PathBuf {
        cache().join(format!("{}-{}.so", stem(source), self.hash_of(source)))
    }

    fn compile(&self, mut sources: Vec<&Path>, scratch: &Path) {
        let compiler = Compiler::get();
        let root = if self.mutated {
            self.write(scratch)
        } else {
            package().to_owned()
        };
        let object = |source: &Path| {
            scratch
                .join(source.file_name().unwrap())
                .with_extension("o")
        };
        let runtime = files("kernels/host", "cpp");
        let kept =
            |source: &Path| cache().join(format!("{}-{}.o", stem(source), self.runtime.hex()));
        // The largest first, so that no core ends up with the longest of all alone.
        sources.sort_by_key(|source| Reverse(self.text(source).len()));
        let mut jobs: Vec<(&Path, bool)> = sources.iter().map(|source| (*source, true)).collect();
        let missing = runtime.iter().filter(|source| !kept(source).exists());
        jobs.extend(missing.map(|source| (source.as_path(), false)));
        in_parallel(&jobs, |(source, is_kernel)| {
            let mut command = compiler.command();
            command.current_dir(&root);
            if *is_kernel {
                command.args(&self.kernel_flags);
            } else {
                command.args(compiler.flags(Purpose::Runtime));
            }
            command.arg("-c").arg(source).arg("-o").arg(object(source));
            expect_success(&mut command, source);
            if !is_kernel {
                fs::rename(object(source), kept(source)).unwrap();
            }
        });
        in_parallel(&sources, |source| {
            let partial = scratch.join(stem(source)).with_extension("so");
            let mut command = compiler.command();
            command
                .arg("-shared")
                .arg("-o")
                .arg(&partial)
                .arg(object(source));
            command.args(runtime.iter().map(|source| kept(source)));
            expect_success(&mut command, source);
            fs::rename(partial, self.library(source)).unwrap();
        });
    }

    /// Writes what is to be compiled below `scratch`, as mutated, and says where.
    fn write(&self, scratch: &Path) -> PathBuf {
        let root = scratch.join("package");
        for (path, text) in &self.texts {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }
}

/// Calls `work` for every job, on all cores. A panic of one is passed on.
fn in_parallel<T: Sync>(jobs: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(job);
                }
            });
        }
    });
}

#[derive(Clone, Default)]
struct Hash(blake3::Hasher);

impl Hash {
    fn text(mut self, text: &str) -> Self {
        // No text holds this byte: the borders between texts count.
        self.0.update(text.as_bytes()).update(&[0xff]);
        self
    }

    fn texts(self, texts: &[impl AsRef<str>]) -> Self {
        texts
            .iter()
            .fold(self, |hash, text| hash.text(text.as_ref()))
    }

    fn path(self, path: &Path) -> Self {
        self.text(path.to_str().unwrap())
    }

    fn hex(&self) -> String {
        self.0.finalize().to_hex()[..16].to_owned()
    }
}

/// Where everything that was compiled is kept.
fn cache() -> PathBuf {
    let built_in = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let kept = if built_in.parent().is_some_and(Path::is_dir) {
        built_in.to_owned()
    } else {
        env::temp_dir().join("candlepower-tests")
    };
    kept.join("emulator")
}

/// Where the sources are: in the folder that this program was built in, or, where it was carried to another machine, in the
/// current one.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
        let here = env::current_dir().unwrap();
        let holds_kernels = |folder: &&Path| folder.join("kernels/host/emulator.h").is_file();
        [built_in, &here]
            .into_iter()
            .find(holds_kernels)
            .unwrap_or_else(|| {
                panic!(
                    "no kernels/host in {} or {}: run the tests from the root of the sources",
                    built_in.display(),
                    here.display()
                )
            })
            .to_owned()
    })
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(OsStr::to_str).unwrap()
}

fn read(path: &Path) -> String {
    fs::read_to_string(package().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files of `folder` with this extension, relative to the package, sorted.
pub(crate) fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(package().join(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Path::new(folder).join(entry.unwrap().file_name()))
        .filter(|path| path.extension() == Some(OsStr::new(extension)))
        .collect();
    paths.sort();
    paths
}
