//! Reading a header from front to back, never past its limit and never on trust.

use crate::error::{Error, Result};
use crate::model::blob::Blob;

/// Largest header that is read; those of models with a quarter of a million tokens have about 20 MiB.
const HEADER_LIMIT: u64 = 64 << 20;

/// Bytes fetched at a time.
const BUFFER: u64 = 64 << 10;

/// A place in a file's header.
pub(super) struct Cursor<'a> {
    blob: &'a Blob,
    limit: u64,
    /// Bytes of the file from `start` on.
    buffer: Vec<u8>,
    start: u64,
    /// The place itself.
    at: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(blob: &'a Blob) -> Self {
        Self {
            blob,
            limit: blob.len().min(HEADER_LIMIT),
            buffer: Vec::new(),
            start: 0,
            at: 0,
        }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// An error that says where.
    pub(super) fn fault(&self, what: impl std::fmt::Display) -> Error {
        Error::data(self.blob.path(), format!("byte {}: {what}", self.at))
    }

    /// Checks that `count` things of at least `size` bytes can still follow.
    pub(super) fn expect(&self, count: u64, size: u64, what: &str) -> Result<usize> {
        let left = self.limit - self.at;
        match count.checked_mul(size) {
            Some(bytes) if bytes <= left => {
                usize::try_from(count).map_err(|_| self.fault(format!("{count} {what}")))
            }
            _ => Err(self.fault(format!(
                "{count} {what}, but {left} bytes are left of the header"
            ))),
        }
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Passes over `count` things of `size` bytes.
    pub(super) fn skip(&mut self, count: u64, size: u64) -> Result<()> {
        self.expect(count, size, "values")?;
        self.at += count * size;
        Ok(())
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length and that many bytes of UTF-8.
    pub(super) fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        let length = self.expect(length, 1, "bytes of text")?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.fault("text that is not UTF-8"))
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        self.expect(out.len() as u64, 1, "bytes")?;
        let mut filled = 0;
        while filled < out.len() {
            let buffered = self.at.checked_sub(self.start).and_then(|skip| {
                let rest = self.buffer.get(usize::try_from(skip).ok()?..)?;
                (!rest.is_empty()).then_some(rest)
            });
            let Some(rest) = buffered else {
                self.refill()?;
                continue;
            };
            let n = rest.len().min(out.len() - filled);
            out[filled..][..n].copy_from_slice(&rest[..n]);
            filled += n;
            self.at += n as u64;
        }
        Ok(())
    }

    fn refill(&mut self) -> Result<()> {
        let size = BUFFER.min(self.limit - self.at);
        self.start = self.at;
        self.buffer.resize(size as usize, 0);
        self.blob.read_exact_at(self.start, &mut self.buffer)
    }
}
