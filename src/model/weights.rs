//! A model's weights by name, whatever file they lie in.

use std::ops::Range;

use rayon::prelude::*;

use super::config::{ModelConfig, TensorSpec};
use super::dummy::{Dummy, DummyWeights};
use super::gguf::GgufWeights;
use super::host::HostSliceMut;
use super::quantised::{Quantised, StoredLinear, StoredScheme, summary};
use super::safetensors::Safetensors;
use super::surplus;
use crate::error::{Error, Result};
use crate::scheme::{DType, PackedWeight};

/// Elements that are looked through at a time: 4 MiB as f32.
const PIECE: usize = 1 << 20;

/// The weights of an opened model. Names are those of the transformers library; shapes have outputs before inputs.
/// Nothing is held in memory: rows are read, or made, when they are asked for, from any number of threads.
#[derive(Debug)]
pub struct Weights(Source);

#[derive(Debug)]
enum Source {
    Safetensors(Safetensors),
    /// Safetensors whose linear layers are not, or not all, plain.
    Quantised(Safetensors, Quantised),
    Gguf(GgufWeights),
    Dummy(DummyWeights),
}

impl Weights {
    pub(super) fn safetensors(files: Safetensors) -> Self {
        Self(Source::Safetensors(files))
    }

    pub(super) fn quantised(files: Safetensors, layers: Quantised) -> Self {
        Self(Source::Quantised(files, layers))
    }

    pub(super) fn gguf(file: GgufWeights) -> Self {
        Self(Source::Gguf(file))
    }

    pub(super) fn dummies(config: &ModelConfig, seed: u64) -> Self {
        Self(Source::Dummy(DummyWeights::new(config, seed)))
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        match &self.0 {
            Source::Safetensors(files) => files.contains(name),
            Source::Quantised(files, layers) => {
                layers.linear(name).is_some() || files.contains(name)
            }
            Source::Gguf(file) => file.contains(name),
            Source::Dummy(dummy) => dummy.shape(name).is_some(),
        }
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none of this name.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        match &self.0 {
            Source::Safetensors(files) => files.shape(name),
            Source::Quantised(files, layers) => match layers.linear(name) {
                Some(stored) => Ok(vec![stored.form.n, stored.form.k]),
                None => files.shape(name),
            },
            Source::Gguf(file) => file.shape(name),
            Source::Dummy(dummy) => dummy
                .shape(name)
                .map(<[usize]>::to_vec)
                .ok_or_else(|| absent(name)),
        }
    }

    /// The file's own name for how a tensor is stored, as in `BF16` or `Q4_1`; `dummy` for one that is made.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none of this name.
    pub fn stored(&self, name: &str) -> Result<String> {
        match &self.0 {
            Source::Safetensors(files) => files.stored(name),
            Source::Quantised(files, layers) => match layers.linear(name) {
                Some(stored) => Ok(stored.form.format.name().to_owned()),
                None => files.stored(name),
            },
            Source::Gguf(file) => file.stored(name),
            Source::Dummy(_) => Ok("dummy".to_owned()),
        }
    }

    /// The precision in which a tensor is known, for whoever quantises it: its stored type, or binary32 for quantised ones,
    /// whose products of scale and code no 16-bit type holds.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none of this name, or if its type is not one that can be read.
    pub fn precision(&self, name: &str) -> Result<DType> {
        match &self.0 {
            Source::Safetensors(files) => files.precision(name),
            Source::Quantised(files, layers) => match layers.linear(name) {
                Some(_) => Ok(DType::F32),
                None => files.precision(name),
            },
            Source::Gguf(file) => file.precision(name),
            Source::Dummy(dummy) => Ok(dummy.dtype),
        }
    }

    /// Total size in bytes of the files that hold the weights; 0 for dummies.
    pub fn file_bytes(&self) -> u64 {
        match &self.0 {
            Source::Safetensors(files) | Source::Quantised(files, _) => files.file_bytes(),
            Source::Gguf(file) => file.file_bytes(),
            Source::Dummy(_) => 0,
        }
    }

    /// The generator behind dummy weights, for a device that makes them itself.
    pub fn dummy(&self) -> Option<&Dummy> {
        match &self.0 {
            Source::Dummy(weights) => Some(&weights.dummy),
            _ => None,
        }
    }

    /// Reads `rows` of a tensor's first dimension (a vector is one row) into `out`, in its precision: widened exactly,
    /// or rounded once to nearest, ties to even.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::Io`] if the tensor is missing or cannot be read; [`Error::Internal`] if the range is
    /// outside the tensor or `out` has another size than the rows.
    pub fn read_rows(&self, name: &str, rows: Range<usize>, out: HostSliceMut<'_>) -> Result<()> {
        let shape = self.shape(name)?;
        let (count, width) = as_rows(&shape);
        let fits = rows.start <= rows.end && rows.end <= count;
        if !fits || rows.len().checked_mul(width) != Some(out.len()) {
            return Err(Error::Internal(format!(
                "tensor '{name}' {shape:?}: rows {rows:?} into {} elements",
                out.len()
            )));
        }
        if out.is_empty() {
            return Ok(());
        }
        match &self.0 {
            Source::Safetensors(files) => files.read_rows(name, rows, width, out),
            Source::Quantised(files, layers) => match layers.linear(name) {
                Some(stored) => {
                    let blocks = Quantised::whole_blocks(&stored.form, &rows);
                    let skipped = rows.start - blocks.start;
                    let weight = layers.read(files, name, &stored.form, blocks)?;
                    let mut out = out;
                    for i in 0..rows.len() {
                        out.put(i * width, &weight.dequantise_row(skipped + i));
                    }
                    Ok(())
                }
                None => files.read_rows(name, rows, width, out),
            },
            Source::Gguf(file) => file.read_rows(name, rows, width, out),
            Source::Dummy(dummy) => dummy.read_rows(name, &shape, rows, out),
        }
    }

    /// What is stored under the name of this weight, if it is quantised in a form that is kept: codes and scales of a
    /// checkpoint, or the blocks Q8_0, Q4_0 and Q4_1 of a GGUF file.
    pub fn stored_linear(&self, name: &str) -> Option<StoredLinear> {
        match &self.0 {
            Source::Quantised(_, layers) => layers.linear(name).copied(),
            Source::Gguf(file) => file.linear(name),
            Source::Safetensors(_) | Source::Dummy(_) => None,
        }
    }

    /// Reads a weight that [`Weights::stored_linear`] describes. Parts that turn out not to be needed, as zero points that
    /// are all in the middle, are left out.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::Io`] if it cannot be read or its numbers are impossible; [`Error::Internal`] if it is
    /// plain.
    pub fn read_packed(&self, name: &str) -> Result<PackedWeight> {
        match (&self.0, self.stored_linear(name)) {
            (Source::Quantised(files, layers), Some(StoredLinear { form, .. })) => {
                layers.read(files, name, &form, 0..form.n)
            }
            (Source::Gguf(file), Some(StoredLinear { form, .. })) => file.read_packed(name, &form),
            _ => Err(Error::Internal(format!("tensor '{name}' is not packed"))),
        }
    }

    /// The type in which a weight is kept that stays as it is and is not packed: its own, or bfloat16 for the blocks of a
    /// GGUF file that have no packed form here.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none of this name.
    pub fn kept_type(&self, name: &str) -> Result<DType> {
        match &self.0 {
            Source::Gguf(file) => file.kept_type(name),
            _ => self.precision(name),
        }
    }

    /// The scheme of the linear layers in the terms of a record, `config`'s being the names of all.
    ///
    /// # Errors
    /// [`Error::Data`] if a tensor is missing.
    pub fn stored_scheme(&self, config: &ModelConfig) -> Result<StoredScheme> {
        let method = match &self.0 {
            Source::Safetensors(_) | Source::Dummy(_) => "none".to_owned(),
            Source::Quantised(_, layers) => layers.method(),
            Source::Gguf(file) => file.method(),
        };
        let mut layers = Vec::new();
        for tensor in config.tensors().iter().filter(|tensor| tensor.is_linear()) {
            let stored = match self.stored_linear(&tensor.name) {
                Some(stored) => Ok(stored),
                None => Err(self.kept_type(&tensor.name)?),
            };
            let weights = usize::try_from(tensor.elements()).unwrap_or(usize::MAX);
            layers.push((weights, stored));
        }
        let mut scheme = summary(method, layers.into_iter());
        if let Source::Gguf(file) = &self.0 {
            scheme.source = file.kinds();
        }
        Ok(scheme)
    }

    /// The tables of `config` (embeddings, and an output head of its own) that are stored in blocks which have no packed
    /// form and are therefore rounded even where they stay as they are, each with its type in the file.
    ///
    /// # Errors
    /// [`Error::Data`] if a tensor is missing.
    pub fn rounded_tables(&self, config: &ModelConfig) -> Result<Vec<String>> {
        let mut rounded = Vec::new();
        let is_table = |tensor: &TensorSpec| tensor.shape.len() == 2 && !tensor.is_linear();
        for TensorSpec { name, .. } in config.tensors().into_iter().filter(is_table) {
            let kept = self.stored_linear(&name).is_some();
            if !kept && self.kept_type(&name)? != self.precision(&name)? {
                rounded.push(format!("{name} ({})", self.stored(&name)?));
            }
        }
        Ok(rounded)
    }

    /// What the files hold beside the tensors of `config`, in words; nothing where that is nothing.
    pub(super) fn surplus(&self, config: &ModelConfig) -> Result<Option<String>> {
        match &self.0 {
            Source::Safetensors(files) => surplus::of_safetensors(files, None, config),
            Source::Quantised(files, layers) => {
                surplus::of_safetensors(files, Some(layers), config)
            }
            Source::Gguf(file) => Ok(surplus::in_words(&file.unused(), "blk.", config.layers)),
            Source::Dummy(_) => Ok(None),
        }
    }

    /// Checks that every tensor of `config` is there, has its shape and a type that can be read.
    pub(super) fn check(&self, config: &ModelConfig) -> Result<()> {
        for wanted in config.tensors() {
            let found = self.shape(&wanted.name)?;
            if found != wanted.shape {
                return Err(self.fault(
                    &wanted.name,
                    format!(
                        "has the shape {found:?}, the configuration says {:?}",
                        wanted.shape
                    ),
                ));
            }
            self.precision(&wanted.name)?;
        }
        Ok(())
    }

    /// Passes if every weight is a number; reads all of them, so it is for telling why a model fails.
    ///
    /// # Errors
    /// [`Error::Data`] that names the first of `config`'s tensors with a NaN or an infinity in it, and where that is; or as
    /// [`Weights::read_rows`].
    pub fn check_finite(&self, config: &ModelConfig) -> Result<()> {
        if self.dummy().is_some() {
            return Ok(());
        }
        for TensorSpec { name, shape } in config.tensors() {
            let (rows, width) = as_rows(&shape);
            let share = (PIECE / width.max(1)).max(1);
            let pieces: Vec<usize> = (0..rows).step_by(share).collect();
            let found = pieces.into_par_iter().find_map_first(|first| {
                let piece = first..(first + share).min(rows);
                let mut values = vec![0.0; piece.len() * width];
                if let Err(error) = self.read_rows(&name, piece, HostSliceMut::F32(&mut values)) {
                    return Some(error);
                }
                let at = values.iter().position(|x| !x.is_finite())?;
                Some(self.not_finite(&name, first + at / width, at % width, values[at]))
            });
            found.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// The error of a tensor that holds no number at a place.
    pub fn not_finite(&self, name: &str, row: usize, column: usize, value: f32) -> Error {
        self.fault(
            name,
            format!(
                "holds {value} at row {row}, column {column}, which is no number to compute with"
            ),
        )
    }

    fn fault(&self, name: &str, what: String) -> Error {
        let what = format!("tensor '{name}' {what}");
        match &self.0 {
            Source::Safetensors(files) | Source::Quantised(files, _) => {
                Error::data(files.path_of(name), what)
            }
            Source::Gguf(file) => Error::data(file.path(), what),
            Source::Dummy(_) => Error::Internal(what),
        }
    }
}

/// A shape as rows and their width: all dimensions after the first, or one row for a vector.
fn as_rows(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [width] => (1, *width),
        [rows, rest @ ..] => (*rows, rest.iter().fold(1, |n, &m| n.saturating_mul(m))),
    }
}

fn absent(name: &str) -> Error {
    Error::Internal(format!("no dummy tensor is called '{name}'"))
}
