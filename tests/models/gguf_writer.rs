//! Writes small GGUF files, well-formed or not.

use std::fs;
use std::path::PathBuf;

use half::{bf16, f16};
use tempfile::TempDir;

/// A file in the making: metadata entries and tensors, in order.
#[derive(Clone)]
pub(crate) struct Writer {
    values: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
    version: u32,
    alignment: u64,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    data: Vec<u8>,
}

fn text(s: &str) -> Vec<u8> {
    let mut bytes = (s.len() as u64).to_le_bytes().to_vec();
    bytes.extend(s.as_bytes());
    bytes
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self {
            values: Vec::new(),
            tensors: Vec::new(),
            version: 3,
            alignment: 32,
        }
    }

    pub(crate) fn version(self, version: u32) -> Self {
        Self { version, ..self }
    }

    /// An entry of any type, as bytes.
    pub(crate) fn raw(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        let mut entry = text(key);
        entry.extend(kind.to_le_bytes());
        entry.extend(bytes);
        self.values.push(entry);
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn flag(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[value.into()])
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &text(value))
    }

    fn array(self, key: &str, kind: u32, items: &[Vec<u8>]) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((items.len() as u64).to_le_bytes());
        bytes.extend(items.concat());
        self.raw(key, 9, &bytes)
    }

    pub(crate) fn texts<S: AsRef<str>>(self, key: &str, items: &[S]) -> Self {
        let items: Vec<_> = items.iter().map(|s| text(s.as_ref())).collect();
        self.array(key, 8, &items)
    }

    pub(crate) fn i32s(self, key: &str, items: &[i32]) -> Self {
        let items: Vec<_> = items.iter().map(|x| x.to_le_bytes().to_vec()).collect();
        self.array(key, 5, &items)
    }

    pub(crate) fn f32s(self, key: &str, items: &[f32]) -> Self {
        let items: Vec<_> = items.iter().map(|x| x.to_le_bytes().to_vec()).collect();
        self.array(key, 6, &items)
    }

    /// A tensor of this shape (outputs first) and stored bytes.
    pub(crate) fn tensor(mut self, name: &str, shape: &[u64], kind: u32, data: Vec<u8>) -> Self {
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dims: shape.iter().rev().copied().collect(),
            kind,
            data,
        });
        self
    }

    pub(crate) fn without(mut self, tensor: &str) -> Self {
        self.tensors.retain(|t| t.name != tensor);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        out.extend(self.values.concat());
        let mut offset = 0u64;
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + tensor.data.len() as u64).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
            out.extend(&tensor.data);
        }
        out
    }

    /// Writes the file into a new folder, which lives as long as the first result.
    pub(crate) fn write(&self) -> (TempDir, PathBuf) {
        write_bytes(&self.bytes())
    }
}

pub(crate) fn write_bytes(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// `values` as elements of one of the plain types.
pub(crate) fn plain(kind: u32, values: &[f32]) -> Vec<u8> {
    let bytes = values.iter().map(|&x| match kind {
        0 => x.to_le_bytes().to_vec(),
        1 => f16::from_f32(x).to_le_bytes().to_vec(),
        _ => bf16::from_f32(x).to_le_bytes().to_vec(),
    });
    bytes.collect::<Vec<_>>().concat()
}
