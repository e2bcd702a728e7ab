//! Checkpoints of every format with something in them changed at random: an error that names the file, or a model, and in
//! either case soon and in little memory. `CANDLEPOWER_TEST_MUTATIONS=20000` asks for as many of each.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candlepower::error::Result;
use candlepower::model::HostSliceMut;

use super::common::{fixture, open};
use super::gguf::model as gguf;
use super::gguf_writer::plain;

thread_local! {
    /// The largest single allocation of a thread so far. Files are read into memory by the thread that asks for them.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    LARGEST.set(LARGEST.get().max(size));
}

/// The system's allocator, watched.
struct Watched;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Files of each format that are changed by default.
const CASES: u64 = 150;

/// What one file may take at most.
const LIMIT: Duration = Duration::from_secs(1);

/// How long this thread has been at work, where the system says so: other processes do not count. Else the clock.
fn busy(since: Instant) -> Duration {
    let said = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = said.and_then(|said| said.split_whitespace().next()?.parse().ok());
    nanoseconds.map_or_else(|| since.elapsed(), Duration::from_nanos)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not zero.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Numbers and words that headers are made of, or that break them.
const PIECES: [&str; 20] = [
    "0",
    "-1",
    "1",
    "4",
    "8",
    "3",
    "999999999999",
    "18446744073709551615",
    "1e308",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[1]",
    "\"I8\"",
    "\"F8_E4M3\"",
    "\"group\"",
    "\"re:(\"",
    "\"re:(a+)+$\"",
];

/// `bytes` with one to four changes, most of them among the first `head`.
fn mutate(bytes: &mut Vec<u8>, head: usize, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let span = match random.below(4) {
            0 => bytes.len(),
            _ => head.min(bytes.len()),
        };
        if span == 0 {
            return;
        }
        let at = random.below(span);
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = [0, 0x7f, 0xff, b'9'][random.below(4)],
            3 => {
                let end = (at + 1 + random.below(8)).min(bytes.len());
                bytes[at..end].fill(0xff);
            }
            4 => bytes.truncate(at),
            5 => {
                let count = (1 + random.below(4)).min(bytes.len() - at);
                bytes.drain(at..at + count);
            }
            6 => {
                let more = random.below(9);
                let from = random.below(bytes.len());
                let copied = bytes[from..(from + more).min(bytes.len())].to_vec();
                bytes.splice(at..at, copied);
            }
            // A number or a word of JSON becomes another.
            7 => replace_token(
                bytes,
                at,
                |random| PIECES[random.below(PIECES.len())].to_owned(),
                random,
            ),
            _ => replace_token(
                bytes,
                at,
                |random| random.below(1 << 12).to_string(),
                random,
            ),
        }
    }
}

/// Puts something in the place of the number or the text in quotes that begins at or after `at`.
fn replace_token(
    bytes: &mut Vec<u8>,
    at: usize,
    with: impl Fn(&mut Random) -> String,
    random: &mut Random,
) {
    let begins = |&b: &u8| b.is_ascii_digit() || b == b'"';
    let Some(start) = bytes[at..].iter().position(begins).map(|n| at + n) else {
        return;
    };
    let rest = &bytes[start + 1..];
    let length = match bytes[start] {
        b'"' => rest.iter().position(|&b| b == b'"').map(|n| n + 2),
        _ => rest.iter().position(|b| !b.is_ascii_digit()).map(|n| n + 1),
    };
    if let Some(length) = length {
        bytes.splice(start..start + length, with(random).into_bytes());
    }
}

/// Opens a checkpoint and reads all of its linear layers and the ends of everything else.
fn exercise(source: &Path) -> Result<()> {
    let model = open(source)?;
    let mut row = Vec::new();
    for tensor in model.config.tensors() {
        if model.weights.stored_linear(&tensor.name).is_some() {
            model.weights.read_packed(&tensor.name)?;
        }
        let rows = if tensor.shape.len() == 1 {
            1
        } else {
            tensor.shape[0]
        };
        row.resize(*tensor.shape.last().unwrap(), 0.0);
        for i in [0, rows - 1] {
            let out = HostSliceMut::F32(&mut row);
            model.weights.read_rows(&tensor.name, i..i + 1, out)?;
        }
    }
    model.weights.stored_scheme(&model.config)?;
    Ok(())
}

/// How many files of each format are wanted.
fn cases() -> u64 {
    std::env::var("CANDLEPOWER_TEST_MUTATIONS").map_or(CASES, |n| n.parse().unwrap())
}

/// Changes `name` in `folder`, whose first `head` bytes are structure, and holds what comes of it to the rules.
fn hold(folder: &Path, name: &str, source: &Path, head: usize, seed: u64) {
    exercise(source).unwrap_or_else(|e| panic!("{} as it was: {e}", source.display()));
    let path = folder.join(name);
    let whole = fs::read(&path).unwrap();
    let mut refused = 0_u64;
    for case in 0..cases() {
        let mut bytes = whole.clone();
        mutate(&mut bytes, head, &mut Random(seed << 32 | case));
        fs::write(&path, &bytes).unwrap();
        let here = format!("{name}, seed {seed}, case {case}");
        LARGEST.set(0);
        let clock = Instant::now();
        let start = busy(clock);
        let outcome = catch_unwind(AssertUnwindSafe(|| exercise(source)));
        let elapsed = busy(clock).saturating_sub(start);
        let outcome = outcome.unwrap_or_else(|_| panic!("{here}: it panics"));
        if let Err(error) = outcome {
            refused += 1;
            let said = error.to_string();
            assert!([64, 65].contains(&error.exit_code()), "{here}: {said}");
            let named = folder.to_str().unwrap();
            assert!(
                said.contains(named),
                "{here}: '{said}' does not name the file"
            );
        }
        assert!(elapsed < LIMIT, "{here}: it takes {elapsed:?}");
        let largest = LARGEST.get();
        let limit = 4 * bytes.len() + (64 << 20);
        assert!(largest <= limit, "{here}: an allocation of {largest} bytes");
    }
    fs::write(&path, &whole).unwrap();
    // Changes that change nothing prove nothing.
    assert!(
        refused >= cases() / 4,
        "{name}: only {refused} were refused"
    );
}

/// A writable copy of a quantised fixture.
fn copy(kind: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("tiny-llama-tied").with_file_name(kind);
    for name in ["config.json", "model.safetensors"] {
        fs::write(folder.path().join(name), fs::read(from.join(name)).unwrap()).unwrap();
    }
    folder
}

/// The length of a safetensors header and what comes before it.
fn header(folder: &Path) -> usize {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

fn hold_folder(kind: &str, seed: u64) {
    let folder = copy(kind);
    let path = folder.path();
    hold(path, "model.safetensors", path, header(path), seed);
    hold(path, "config.json", path, usize::MAX, seed + 1);
}

#[test]
fn plain_safetensors() {
    hold_folder("bf16", 1);
}

#[test]
fn compressed_tensors_packed() {
    hold_folder("ct-w4a16-g32-asym", 3);
}

#[test]
fn compressed_tensors_of_integers() {
    hold_folder("ct-w8a8-dyn-int", 5);
}

#[test]
fn compressed_tensors_of_fp8() {
    hold_folder("ct-fp8-dyn-float", 7);
}

#[test]
fn gptq_with_activation_order() {
    hold_folder("gptq-g32-sym-descact", 9);
}

#[test]
fn awq() {
    hold_folder("awq-g32-gemm", 11);
}

#[test]
fn gguf_files() {
    for (kind, seed) in [(3, 13), (8, 14)] {
        let (folder, path): (_, PathBuf) = gguf("llama", kind)
            .tensor("rope_freqs.weight", &[32], 0, plain(0, &[1.0; 32]))
            .write();
        hold(folder.path(), "model.gguf", &path, 2500, seed);
    }
}

#[test]
fn a_shard_index() {
    let folder = copy("gptq-g32-sym-descact");
    let path = folder.path();
    let file = fs::read(path.join("model.safetensors")).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&file[8..self::header(path)]).unwrap();
    let names = header
        .as_object()
        .unwrap()
        .keys()
        .filter(|name| *name != "__metadata__");
    let map: serde_json::Map<_, _> = names
        .map(|name| (name.clone(), "part.safetensors".into()))
        .collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::rename(
        path.join("model.safetensors"),
        path.join("part.safetensors"),
    )
    .unwrap();
    fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
    hold(path, "model.safetensors.index.json", path, usize::MAX, 15);
}
