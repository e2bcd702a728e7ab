//! Checkpoints in one or several safetensors files. The header reader is this module's own: stricter than the format's
//! library (which lets a repeated key pass), over any [`Blob`], and it reads nothing but the header.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::blob::Blob;
use super::host::{HostSliceMut, read_plain};
use super::json::{self, Unique};
use crate::error::{Error, Result};
use crate::scheme::DType;

/// Largest header that is read; the format's own limit.
const HEADER_LIMIT: u64 = 100_000_000;

/// Most dimensions that a tensor may have.
const MAX_RANK: usize = 8;

/// Bytes that are looked at in one piece.
const CHUNK: u64 = 1 << 20;

/// Name and bits of every element type of the format.
const TYPES: [(&str, u64); 22] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
];

/// A tensor's place in its file.
#[derive(Debug)]
struct Entry {
    stored: &'static str,
    shape: Vec<usize>,
    /// First byte, counted from the beginning of the file.
    offset: u64,
    bytes: u64,
}

/// The tensors of a checkpoint and the files that hold them.
#[derive(Debug)]
pub(super) struct Safetensors {
    /// Stands for the checkpoint in messages about what is in none of its files.
    whole: PathBuf,
    files: Vec<Blob>,
    tensors: HashMap<String, (usize, Entry)>,
}

impl Safetensors {
    /// A checkpoint in one file.
    pub(super) fn single(file: Blob) -> Result<Self> {
        let entries = read_header(&file)?.into_iter();
        Ok(Self {
            whole: file.path().to_owned(),
            tensors: entries.map(|(name, entry)| (name, (0, entry))).collect(),
            files: vec![file],
        })
    }

    /// A checkpoint in several files of one folder, listed by its index.
    pub(super) fn sharded(index: &Path) -> Result<Self> {
        let folder = index.parent().unwrap_or(Path::new("."));
        let mut by_file: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, file) in read_index(index)? {
            by_file.entry(file).or_default().push(tensor);
        }
        let mut files = Vec::new();
        let mut tensors = HashMap::new();
        for (name, listed) in by_file {
            let path = folder.join(&name);
            if !path.exists() {
                return Err(Error::data(
                    &path,
                    format!(
                        "missing, though {} places {} tensors in it: the download is not complete, or the index is of \
                         another checkpoint",
                        index.display(),
                        listed.len()
                    ),
                ));
            }
            let file = Blob::open(&path)?;
            let mut entries = read_header(&file)?;
            for tensor in listed {
                let entry = entries.remove(&tensor).ok_or_else(|| {
                    Error::data(
                        file.path(),
                        format!("tensor '{tensor}': missing, though the index places it here"),
                    )
                })?;
                tensors.insert(tensor, (files.len(), entry));
            }
            files.push(file);
        }
        Ok(Self {
            whole: index.to_owned(),
            files,
            tensors,
        })
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of all tensors, in order.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.find(name)?.1.shape.clone())
    }

    pub(super) fn stored(&self, name: &str) -> Result<String> {
        Ok(self.find(name)?.1.stored.to_owned())
    }

    /// The file's own name for the type of a tensor.
    pub(super) fn stored_static(&self, name: &str) -> Result<&'static str> {
        Ok(self.find(name)?.1.stored)
    }

    /// Fills `out` with bytes of a tensor from its byte `offset` on.
    pub(super) fn read_bytes(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let (file, entry) = self.find(name)?;
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > entry.bytes) {
            return Err(Error::Internal(format!(
                "tensor '{name}': {} bytes from {offset} on of {}",
                out.len(),
                entry.bytes
            )));
        }
        file.read_exact_at(entry.offset + offset, out)
    }

    /// Whether two tensors are stored alike, to the last bit. Reads no further than the first difference.
    pub(super) fn are_equal(&self, one: &str, other: &str) -> Result<bool> {
        let ((file, entry), (other_file, other)) = (self.find(one)?, self.find(other)?);
        if (entry.stored, &entry.shape) != (other.stored, &other.shape) {
            return Ok(false);
        }
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < entry.bytes {
            let size = CHUNK.min(entry.bytes - at);
            left.resize(size as usize, 0);
            right.resize(size as usize, 0);
            file.read_exact_at(entry.offset + at, &mut left)?;
            other_file.read_exact_at(other.offset + at, &mut right)?;
            if left != right {
                return Ok(false);
            }
            at += size;
        }
        Ok(true)
    }

    /// Whether every bit of a tensor is zero. Reads no further than the first that is not.
    pub(super) fn is_zero(&self, name: &str) -> Result<bool> {
        let (file, entry) = self.find(name)?;
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < entry.bytes {
            bytes.resize(CHUNK.min(entry.bytes - at) as usize, 0);
            file.read_exact_at(entry.offset + at, &mut bytes)?;
            if bytes.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }

    /// Gives a tensor another name; one that is not there keeps none.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        if let Some(place) = self.tensors.remove(from) {
            self.tensors.insert(to.to_owned(), place);
        }
    }

    pub(super) fn precision(&self, name: &str) -> Result<DType> {
        let (file, entry) = self.find(name)?;
        match entry.stored {
            "F32" => Ok(DType::F32),
            "F16" => Ok(DType::F16),
            "BF16" => Ok(DType::BF16),
            other => Err(Error::data(
                file.path(),
                format!("tensor '{name}': stored as {other}, expected F32, F16 or BF16"),
            )),
        }
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.files.iter().map(Blob::len).sum()
    }

    /// The files, in the order of their names.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.files
            .iter()
            .map(|file| file.path().to_owned())
            .collect()
    }

    /// The file that holds a tensor, or what stands for the whole where none does.
    pub(super) fn path_of(&self, name: &str) -> &Path {
        let place = self.tensors.get(name);
        place.map_or(&self.whole, |(file, _)| self.files[*file].path())
    }

    /// Rows of `width` elements, for a range that has been checked.
    pub(super) fn read_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        width: usize,
        out: HostSliceMut<'_>,
    ) -> Result<()> {
        let stored = self.precision(name)?;
        let (file, entry) = self.find(name)?;
        let skipped = rows.start as u64 * width as u64 * stored.size() as u64;
        read_plain(file, entry.offset + skipped, stored, out)
    }

    fn find(&self, name: &str) -> Result<(&Blob, &Entry)> {
        match self.tensors.get(name) {
            Some((file, entry)) => Ok((&self.files[*file], entry)),
            None => Err(Error::data(
                &self.whole,
                format!("tensor '{name}': missing"),
            )),
        }
    }
}

/// Tensor and file names of a shard index; every file name is one plain component.
pub(super) fn read_index(index: &Path) -> Result<Vec<(String, String)>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: Unique<String>,
    }
    let entries = json::read_json::<Index>(index)?.weight_map.0;
    for (tensor, file) in &entries {
        let mut parts = Path::new(file).components();
        let plain = matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
        if !plain || file.contains(['/', '\\', ':']) {
            return Err(Error::data(
                index,
                format!("tensor '{tensor}': the file name '{file}' leaves the folder"),
            ));
        }
    }
    Ok(entries)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum HeaderValue {
    Tensor(RawEntry),
    Metadata(HashMap<String, String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

fn read_header(file: &Blob) -> Result<HashMap<String, Entry>> {
    let bad = |what: &str| Error::data(file.path(), what);
    if file.len() < 8 {
        return Err(bad("too short for a safetensors file"));
    }
    let mut length = [0; 8];
    file.read_exact_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_LIMIT || length > file.len() - 8 {
        return Err(bad(
            "not a safetensors file, or truncated: the header is longer than it may be",
        ));
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(8, &mut header)?;
    let start = 8 + length;
    let data = file.len() - start;

    let mut spans = Vec::new();
    let mut tensors = HashMap::new();
    for (name, value) in json::parse::<Unique<HeaderValue>>(file.path(), &header)?.0 {
        match value {
            HeaderValue::Metadata(strings) if name == "__metadata__" => drop(strings),
            HeaderValue::Metadata(_) => {
                return Err(bad(&format!(
                    "tensor '{name}': not a description of a tensor"
                )));
            }
            HeaderValue::Tensor(raw) => {
                let entry = check_entry(&raw, start, data)
                    .map_err(|what| bad(&format!("tensor '{name}': {what}")))?;
                spans.push((raw.data_offsets, name.clone()));
                tensors.insert(name, entry);
            }
        }
    }
    check_spans(spans, data).map_err(|what| bad(&what))?;
    Ok(tensors)
}

/// Checks one description against itself and against the `data` bytes behind the header.
fn check_entry(raw: &RawEntry, start: u64, data: u64) -> Result<Entry, String> {
    let &(name, bits) = TYPES
        .iter()
        .find(|(name, _)| *name == raw.dtype)
        .ok_or_else(|| format!("unknown element type '{}'", raw.dtype))?;
    if raw.shape.len() > MAX_RANK {
        return Err(format!("{} dimensions", raw.shape.len()));
    }
    let (begin, end) = raw.data_offsets;
    if begin > end || end > data {
        return Err(format!(
            "bytes {begin} to {end} of {data}: the file is truncated or corrupt"
        ));
    }
    let bits = raw
        .shape
        .iter()
        .try_fold(bits, |product, &n| product.checked_mul(n));
    if bits.is_none_or(|bits| bits % 8 != 0 || bits / 8 != end - begin) {
        return Err(format!(
            "{:?} of {name} do not take {} bytes",
            raw.shape,
            end - begin
        ));
    }
    let shape = raw.shape.iter().map(|&n| usize::try_from(n));
    Ok(Entry {
        stored: name,
        shape: shape.collect::<Result<_, _>>().map_err(|e| e.to_string())?,
        offset: start + begin,
        bytes: end - begin,
    })
}

/// Checks that the tensors cover the data without gap or overlap, as the format demands.
fn check_spans(mut spans: Vec<((u64, u64), String)>, data: u64) -> Result<(), String> {
    spans.sort();
    let mut covered = 0;
    for ((begin, end), name) in spans {
        if begin != covered {
            return Err(format!(
                "tensor '{name}': overlaps its neighbour or leaves a gap"
            ));
        }
        covered = end;
    }
    if covered != data {
        return Err(format!(
            "{} bytes at the end belong to no tensor",
            data - covered
        ));
    }
    Ok(())
}
