//! What a base predicts, kept on the disk, so that variants are compared with it token by token without holding either's
//! logits.
//!
//! A file begins with one line of JSON ([`Header`]), then holds a row for each scored token, in the order of the windows,
//! little-endian: the log-probability of the text's token (f32), the probability outside the kept tokens (f32), the most
//! likely token (u32), then the kept tokens (u32 each; left out where the whole vocabulary is kept) and their
//! log-probabilities (f32 each). BLAKE3 of all that ends it. A file exists whole or not at all.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::perplexity::{Target, Witness};
use crate::error::{Error, Result};
use crate::units::Bytes;

/// The version of the form.
const FORMAT: &str = "candlepower.base/1";
/// The longest first line that is read.
const HEADER_LIMIT: u64 = 4096;
/// Bytes of the hash at the end.
const HASH: usize = blake3::OUT_LEN;
/// Numbers of a row before the kept tokens, four bytes each.
const FIXED: usize = 3;

/// The first line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Names the version.
    format: String,
    /// The address of what was scored by what.
    pub key: String,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// How many are kept; all of them where it is the vocabulary.
    pub kept: usize,
    /// Rows.
    pub tokens: u64,
}

impl Header {
    /// Of `tokens` predictions over a vocabulary, the `top_k` most likely kept, or all where `None`.
    pub fn new(key: &str, vocab: usize, top_k: Option<usize>, tokens: u64) -> Self {
        Self {
            format: FORMAT.to_owned(),
            key: key.to_owned(),
            vocab,
            kept: top_k.unwrap_or(vocab).clamp(1, vocab.max(1)),
            tokens,
        }
    }

    /// Whether nothing is left out.
    pub fn is_whole(&self) -> bool {
        self.kept == self.vocab
    }

    fn row_bytes(&self) -> usize {
        let per_token = if self.is_whole() { 1 } else { 2 };
        4 * (FIXED + per_token * self.kept)
    }

    /// The size of the file, but for its first line.
    pub fn size(&self) -> Bytes {
        let rows = self.tokens.saturating_mul(self.row_bytes() as u64);
        Bytes(rows.saturating_add(HASH as u64))
    }
}

/// The softmax of a row of logits, as far as it is needed: exponentials are taken in f32, sums in f64.
pub(super) struct Softmax<'a> {
    logits: &'a [f32],
    max: f32,
    sum: f64,
    log_sum: f64,
}

impl<'a> Softmax<'a> {
    pub(super) fn of(logits: &'a [f32]) -> Self {
        let max = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
        Self {
            logits,
            max,
            sum,
            log_sum: sum.ln(),
        }
    }

    /// The natural logarithm of a token's probability.
    pub(super) fn log_prob(&self, token: u32) -> f32 {
        (f64::from(self.logits[token as usize] - self.max) - self.log_sum) as f32
    }

    /// The probability of all tokens but these.
    pub(super) fn outside(&self, tokens: &[u32]) -> f32 {
        let inside: f64 = tokens
            .iter()
            .map(|&t| f64::from((self.logits[t as usize] - self.max).exp()))
            .sum();
        ((self.sum - inside) / self.sum).max(0.0) as f32
    }

    /// The most likely token, the first of several.
    pub(super) fn top(&self) -> u32 {
        let best = self.logits.iter().position(|&x| x == self.max);
        best.unwrap_or(0) as u32
    }

    /// The `k` most likely tokens, the most likely first; among equals the first of the vocabulary.
    fn top_k(&self, k: usize) -> Vec<u32> {
        let by_rank = |a: &u32, b: &u32| {
            let (x, y) = (self.logits[*a as usize], self.logits[*b as usize]);
            y.total_cmp(&x).then(a.cmp(b))
        };
        let mut tokens: Vec<u32> = (0..self.logits.len() as u32).collect();
        if k < tokens.len() {
            tokens.select_nth_unstable_by(k - 1, by_rank);
            tokens.truncate(k);
        }
        tokens.sort_unstable_by(by_rank);
        tokens
    }
}

/// What was kept of one prediction.
pub(super) struct Row<'a> {
    pub(super) log_prob: f32,
    pub(super) outside: f32,
    pub(super) top: u32,
    /// The kept tokens; `None` for the whole vocabulary in its order.
    pub(super) tokens: Option<&'a [u32]>,
    pub(super) log_probs: &'a [f32],
}

fn row(header: &Header, logits: &[f32], log_prob: f32) -> Vec<u8> {
    let softmax = Softmax::of(logits);
    let mut bytes = Vec::with_capacity(header.row_bytes());
    let whole = header.is_whole();
    let tokens = if whole {
        (0..header.vocab as u32).collect()
    } else {
        softmax.top_k(header.kept)
    };
    let outside = if whole { 0.0 } else { softmax.outside(&tokens) };
    bytes.extend(log_prob.to_le_bytes());
    bytes.extend(outside.to_le_bytes());
    bytes.extend(softmax.top().to_le_bytes());
    if !whole {
        bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
    }
    bytes.extend(
        tokens
            .iter()
            .flat_map(|&t| softmax.log_prob(t).to_le_bytes()),
    );
    bytes
}

/// Writes the predictions of a base as they come.
pub struct Recorder {
    header: Header,
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    rows: u64,
    finished: bool,
}

impl Recorder {
    /// Begins a file at `path`, whose folder is made if need be. Nothing is there until [`Recorder::finish`].
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(path: &Path, header: Header) -> Result<Self> {
        let cannot = |e| Error::writing(path, "cannot create", e);
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(cannot)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let part = folder.join(format!(".{name}.{}.part", std::process::id()));
        let file = BufWriter::new(File::create(&part).map_err(cannot)?);
        let mut recorder = Self {
            path: path.to_owned(),
            part,
            file,
            hasher: blake3::Hasher::new(),
            rows: 0,
            finished: false,
            header,
        };
        let mut line = serde_json::to_string(&recorder.header)
            .map_err(|e| Error::Internal(format!("the header of a base: {e}")))?;
        line.push('\n');
        recorder.put(line.as_bytes())?;
        Ok(recorder)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(|e| Error::writing(&self.path, "cannot write", e))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// If it cannot be written, or predictions are missing.
    pub fn finish(mut self) -> Result<()> {
        if self.rows != self.header.tokens {
            return Err(Error::Internal(format!(
                "{} predictions of a base instead of {}",
                self.rows, self.header.tokens
            )));
        }
        let hash = self.hasher.finalize();
        self.file
            .write_all(hash.as_bytes())
            .and_then(|()| self.file.flush())
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.part, &self.path))
            .map_err(|e| Error::writing(&self.path, "cannot write", e))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.finished {
            // What is left of it helps nobody, and harms nobody if it stays.
            let _ = fs::remove_file(&self.part);
        }
    }
}

impl Witness for Recorder {
    fn read(&mut self, targets: &[Target], logits: &[f32]) -> Result<()> {
        let header = &self.header;
        let rows: Vec<Vec<u8>> = targets
            .par_iter()
            .zip(logits.par_chunks_exact(header.vocab))
            .map(|(target, logits)| row(header, logits, target.log_prob))
            .collect();
        self.rows += rows.len() as u64;
        rows.iter().try_for_each(|row| self.put(row))
    }
}

/// Reads the predictions of a base, row by row.
pub(super) struct Reader {
    path: PathBuf,
    header: Header,
    file: BufReader<File>,
    hasher: blake3::Hasher,
    rows: u64,
}

impl Reader {
    /// Opens the predictions that `key` names.
    pub(super) fn open(path: &Path, key: &str, vocab: usize) -> Result<Self> {
        let cannot = |e| Error::reading(path, "cannot read", e);
        let file = File::open(path).map_err(|e| Error::reading(path, "cannot open", e))?;
        let length = file.metadata().map_err(cannot)?.len();
        let mut file = BufReader::new(file);
        let mut line = Vec::new();
        file.by_ref()
            .take(HEADER_LIMIT)
            .read_until(b'\n', &mut line)
            .map_err(cannot)?;
        let fault = |what: String| {
            Error::data(
                path,
                format!("{what}: delete the file, and the base is scored again"),
            )
        };
        let header: Header = serde_json::from_slice(&line)
            .map_err(|e| fault(format!("not the predictions of a base: {e}")))?;
        if header.format != FORMAT || header.key != key || header.vocab != vocab {
            return Err(fault("the predictions of another base".into()));
        }
        if header.kept == 0 || header.kept > vocab {
            return Err(fault("its header makes no sense".into()));
        }
        let expected = header.size().0.saturating_add(line.len() as u64);
        if length != expected {
            return Err(fault(format!("{length} bytes instead of {expected}")));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&line);
        Ok(Self {
            path: path.to_owned(),
            header,
            file,
            hasher,
            rows: 0,
        })
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// The next rows, as numbers of four bytes each.
    pub(super) fn next(&mut self, rows: usize) -> Result<Vec<u32>> {
        self.rows += rows as u64;
        if self.rows > self.header.tokens {
            return Err(Error::Internal("more predictions than the base has".into()));
        }
        let mut bytes = vec![0; rows * self.header.row_bytes()];
        self.file
            .read_exact(&mut bytes)
            .map_err(|e| Error::reading(&self.path, "cannot read", e))?;
        self.hasher.update(&bytes);
        let words = bytes.chunks_exact(4);
        Ok(words
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect())
    }

    /// Numbers of a row.
    pub(super) fn row_words(&self) -> usize {
        self.header.row_bytes() / 4
    }

    /// Reads whatever is left, and checks that the file is what was written.
    pub(super) fn finish(mut self) -> Result<()> {
        while self.rows < self.header.tokens {
            let rows = (self.header.tokens - self.rows).min(64) as usize;
            self.next(rows)?;
        }
        let mut hash = [0; HASH];
        self.file
            .read_exact(&mut hash)
            .map_err(|e| Error::reading(&self.path, "cannot read", e))?;
        if self.hasher.finalize() != hash {
            return Err(self.damaged("its checksum does not fit"));
        }
        Ok(())
    }

    /// The error of a file whose content cannot be what was written.
    pub(super) fn damaged(&self, how: &str) -> Error {
        let what = format!("damaged, {how}: delete the file, and the base is scored again");
        Error::data(&self.path, what)
    }
}

/// A row out of its numbers.
pub(super) fn row_of<'a>(header: &Header, words: &'a [u32]) -> Row<'a> {
    let (fixed, kept) = words.split_at(FIXED);
    let (tokens, log_probs) = if header.is_whole() {
        (None, kept)
    } else {
        let (tokens, log_probs) = kept.split_at(header.kept);
        (Some(tokens), log_probs)
    };
    Row {
        log_prob: f32::from_bits(fixed[0]),
        outside: f32::from_bits(fixed[1]),
        top: fixed[2],
        tokens,
        log_probs: bytemuck::cast_slice(log_probs),
    }
}
