//! A GGUF header, versions 2 and 3: key-value metadata and a table of tensors.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::blocks::{self, BlockType};
use super::cursor::Cursor;
use crate::error::{Error, Result};
use crate::model::blob::Blob;

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_RANK: u32 = 4;
/// Arrays within arrays; no known file has any.
const MAX_DEPTH: usize = 4;

/// A metadata value, in the widest type of its kind.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    /// An array of another type, passed over.
    Skipped,
}

/// A tensor's place in the file.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) kind: &'static BlockType,
    /// Outputs before inputs; the file has them reversed.
    pub(super) shape: Vec<usize>,
    /// First byte, counted from the beginning of the file.
    pub(super) offset: u64,
}

/// A checked header and the file behind it.
#[derive(Debug)]
pub(super) struct GgufFile {
    pub(super) blob: Blob,
    pub(super) metadata: Metadata,
    pub(super) tensors: HashMap<String, TensorInfo>,
}

impl GgufFile {
    /// Reads and checks the header.
    pub(super) fn read(blob: Blob) -> Result<Self> {
        let mut cursor = Cursor::new(&blob);
        if cursor.array()? != MAGIC {
            return Err(Error::data(blob.path(), "not a GGUF file"));
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            return Err(Error::Config(format!(
                "{}: GGUF version {version} is not supported (supported: 2 and 3, little-endian)",
                blob.path().display()
            )));
        }
        let tensor_count = cursor.u64()?;
        let value_count = cursor.u64()?;
        let metadata = Metadata {
            path: blob.path().to_owned(),
            values: read_values(&mut cursor, value_count)?,
        };
        let table = read_table(&mut cursor, tensor_count)?;
        let alignment = metadata
            .unsigned("general.alignment")?
            .unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(metadata.bad(
                "general.alignment",
                format!("{alignment} is no power of two"),
            ));
        }
        // The position is far below the largest 64-bit number, an alignment need not be.
        let start = cursor.position().checked_next_multiple_of(alignment);
        let tensors = place(table, start.unwrap_or(u64::MAX), alignment, &blob)?;
        Ok(Self {
            metadata,
            tensors,
            blob,
        })
    }
}

fn read_values(cursor: &mut Cursor<'_>, count: u64) -> Result<HashMap<String, Value>> {
    // The shortest entry: an empty key's length, a type, one byte.
    let count = cursor.expect(count, 8 + 4 + 1, "metadata entries")?;
    let mut values = HashMap::new();
    for _ in 0..count {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        let value = read_value(cursor, kind)?;
        if values.insert(key.clone(), value).is_some() {
            return Err(cursor.fault(format!("the key '{key}' comes twice")));
        }
    }
    Ok(values)
}

fn read_value(cursor: &mut Cursor<'_>, kind: u32) -> Result<Value> {
    Ok(match kind {
        0 => Value::Unsigned(u8::from_le_bytes(cursor.array()?).into()),
        1 => Value::Signed(i8::from_le_bytes(cursor.array()?).into()),
        2 => Value::Unsigned(u16::from_le_bytes(cursor.array()?).into()),
        3 => Value::Signed(i16::from_le_bytes(cursor.array()?).into()),
        4 => Value::Unsigned(cursor.u32()?.into()),
        5 => Value::Signed(i32::from_le_bytes(cursor.array()?).into()),
        6 => Value::Float(f32::from_le_bytes(cursor.array()?).into()),
        7 => match cursor.array()? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            [other] => return Err(cursor.fault(format!("a truth value of {other}"))),
        },
        8 => Value::Text(cursor.text()?),
        9 => read_array(cursor)?,
        10 => Value::Unsigned(cursor.u64()?),
        11 => Value::Signed(i64::from_le_bytes(cursor.array()?)),
        12 => Value::Float(f64::from_le_bytes(cursor.array()?)),
        other => return Err(cursor.fault(format!("unknown value type {other}"))),
    })
}

/// Keeps arrays of strings, of 32-bit integers and of 32-bit floats: what a vocabulary is made of.
fn read_array(cursor: &mut Cursor<'_>) -> Result<Value> {
    let kind = cursor.u32()?;
    let count = cursor.u64()?;
    match kind {
        8 => {
            let count = cursor.expect(count, 8, "strings")?;
            (0..count)
                .map(|_| cursor.text())
                .collect::<Result<_>>()
                .map(Value::Texts)
        }
        4 | 5 => {
            let count = cursor.expect(count, 4, "integers")?;
            let one = |_| {
                let bits = cursor.u32()?;
                Ok(if kind == 4 {
                    bits.into()
                } else {
                    bits.cast_signed().into()
                })
            };
            (0..count)
                .map(one)
                .collect::<Result<_>>()
                .map(Value::Integers)
        }
        6 => {
            let count = cursor.expect(count, 4, "floats")?;
            let one = |_| cursor.u32().map(f32::from_bits);
            (0..count)
                .map(one)
                .collect::<Result<_>>()
                .map(Value::Floats)
        }
        _ => skip_array(cursor, kind, count, MAX_DEPTH).map(|()| Value::Skipped),
    }
}

fn skip_array(cursor: &mut Cursor<'_>, kind: u32, count: u64, depth: usize) -> Result<()> {
    match kind {
        0 | 1 | 7 => cursor.skip(count, 1),
        2 | 3 => cursor.skip(count, 2),
        4..=6 => cursor.skip(count, 4),
        10..=12 => cursor.skip(count, 8),
        8 => {
            for _ in 0..cursor.expect(count, 8, "strings")? {
                let length = cursor.u64()?;
                cursor.skip(length, 1)?;
            }
            Ok(())
        }
        9 if depth > 0 => {
            for _ in 0..cursor.expect(count, 12, "arrays")? {
                let (kind, count) = (cursor.u32()?, cursor.u64()?);
                skip_array(cursor, kind, count, depth - 1)?;
            }
            Ok(())
        }
        _ => Err(cursor.fault(format!("an array of the unknown or too deep type {kind}"))),
    }
}

/// A row of the tensor table; the offset counts from the end of the header.
struct Row {
    name: String,
    info: TensorInfo,
    bytes: u64,
}

fn read_table(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Row>> {
    // The shortest row: an empty name's length, one dimension, a type, an offset.
    let count = cursor.expect(count, 8 + 4 + 8 + 4 + 8, "tensors")?;
    (0..count).map(|_| read_row(cursor)).collect()
}

fn read_row(cursor: &mut Cursor<'_>) -> Result<Row> {
    let name = cursor.text()?;
    let fault =
        |cursor: &Cursor<'_>, what: String| cursor.fault(format!("tensor '{name}': {what}"));
    let rank = cursor.u32()?;
    if !(1..=MAX_RANK).contains(&rank) {
        return Err(fault(cursor, format!("{rank} dimensions")));
    }
    let dims = (0..rank)
        .map(|_| cursor.u64())
        .collect::<Result<Vec<u64>>>()?;
    let id = cursor.u32()?;
    let offset = cursor.u64()?;
    let kind = blocks::by_id(id).map_err(|what| fault(cursor, what))?;
    if !dims[0].is_multiple_of(kind.elements as u64) {
        return Err(fault(
            cursor,
            format!(
                "rows of {} do not divide into blocks of {}",
                dims[0], kind.name
            ),
        ));
    }
    let elements = dims
        .iter()
        .try_fold(1u64, |product, &n| product.checked_mul(n));
    let bytes = elements.and_then(|n| (n / kind.elements as u64).checked_mul(kind.bytes as u64));
    let shape = dims
        .iter()
        .rev()
        .map(|&n| usize::try_from(n))
        .collect::<Result<Vec<_>, _>>();
    match (bytes, shape) {
        (Some(bytes @ 1..), Ok(shape)) => Ok(Row {
            info: TensorInfo {
                kind,
                shape,
                offset,
            },
            name,
            bytes,
        }),
        _ => Err(fault(cursor, format!("impossible dimensions {dims:?}"))),
    }
}

/// Turns offsets from the header's end into offsets in the file, checked to be aligned, inside and apart.
fn place(
    mut table: Vec<Row>,
    start: u64,
    alignment: u64,
    blob: &Blob,
) -> Result<HashMap<String, TensorInfo>> {
    table.sort_by_key(|row| row.info.offset);
    let mut tensors = HashMap::new();
    let mut covered = start;
    for row in table {
        let Row {
            name,
            mut info,
            bytes,
        } = row;
        let fault = |what: &str| Error::data(blob.path(), format!("tensor '{name}': {what}"));
        let begin = start.checked_add(info.offset);
        let end = begin.and_then(|begin| begin.checked_add(bytes));
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(fault("its offset is beyond any file"));
        };
        if !info.offset.is_multiple_of(alignment) {
            return Err(fault("its offset is not aligned"));
        }
        if end > blob.len() {
            return Err(fault(
                "it ends behind the end of the file, which is truncated or corrupt",
            ));
        }
        if begin < covered {
            return Err(fault("it overlaps another tensor"));
        }
        covered = end;
        info.offset = begin;
        if tensors.contains_key(&name) {
            return Err(fault("it comes twice"));
        }
        tensors.insert(name, info);
    }
    Ok(tensors)
}

/// The metadata with the file's name for messages.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) path: PathBuf,
    values: HashMap<String, Value>,
}

impl Metadata {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bad(&self, key: &str, what: impl std::fmt::Display) -> Error {
        Error::data(&self.path, format!("key '{key}': {what}"))
    }

    /// A whole number of any width that is not negative.
    pub(super) fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number", |value| match value {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match value {
            Value::Float(x) => Some(*x),
            _ => None,
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a truth value", |value| match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "a list of strings", |value| match value {
            Value::Texts(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    pub(super) fn integers(&self, key: &str) -> Result<Option<&[i64]>> {
        self.typed(key, "a list of 32-bit integers", |value| match value {
            Value::Integers(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "a list of 32-bit floats", |value| match value {
            Value::Floats(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        pick: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        pick(value)
            .map(Some)
            .ok_or_else(|| self.bad(key, format!("expected {expected}")))
    }
}
