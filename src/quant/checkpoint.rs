//! A checkpoint of compressed-tensors on the disk, as vLLM, transformers and LLM Compressor read it: `config.json`,
//! safetensors in shards, the tokenizer's files. Everything is written into a folder of another name beside the wanted one
//! and gets its own name when it is whole; `config.json` comes last.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::assign::Assignment;
use super::grid::Form;
use super::layer::{Site, bytes_of, module};
use crate::error::{Error, Result};
use crate::model::compressed_tensors::Format;
use crate::model::{Model, OriginKind, TensorSpec};
use crate::scheme::{CodeFormat, DType, Levels, PackedWeight};

/// A shard ends before it grows beyond this.
const SHARD: u64 = 5_000_000_000;

/// The files of a tokenizer, and what else a folder of the transformers library may hold beside the weights.
const COMPANIONS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    GENERATION,
];
/// What tells how to sample, whatever the tokenizer.
const GENERATION: &str = "generation_config.json";

/// The file with the errors of every layer.
pub const REPORT: &str = "quantisation.json";

/// A tensor of the file to be.
struct Entry {
    stored: &'static str,
    shape: Vec<usize>,
    shard: usize,
    /// First byte, counted from the end of the header, and length.
    offset: u64,
    bytes: u64,
}

/// A checkpoint that is being written.
pub(super) struct CheckpointWriter {
    wanted: PathBuf,
    replace: bool,
    folder: TempDir,
    entries: BTreeMap<String, (Entry, bool)>,
    shards: Vec<(String, File, u64)>,
    config: Value,
}

impl CheckpointWriter {
    /// Begins a checkpoint of `model` that is to stand at `wanted`.
    ///
    /// # Errors
    /// As [`free`], and if nothing can be written beside it.
    pub(super) fn begin(
        wanted: &Path,
        model: &Model,
        assignment: &Assignment<'_>,
        replace: bool,
    ) -> Result<Self> {
        let wanted = free(wanted, replace)?;
        let config = configuration(model, assignment)?;
        let parent = match wanted.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|e| Error::writing(parent, "cannot create", e))?;
        let name = wanted.file_name().map_or_else(
            || "checkpoint".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        let folder = tempfile::Builder::new()
            .prefix(&format!(".{name}.unfinished-"))
            .tempdir_in(parent)
            .map_err(|e| Error::writing(parent, "cannot create a folder in", e))?;
        let (entries, sizes) = lay_out(&tensors(assignment)?);
        let count = sizes.len();
        let mut shards = Vec::new();
        for (number, size) in sizes.into_iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            let header = header(&entries, number)?;
            let path = folder.path().join(&name);
            let write = |file: &mut File| {
                file.write_all(&(header.len() as u64).to_le_bytes())?;
                file.write_all(&header)?;
                file.set_len(8 + header.len() as u64 + size)
            };
            let mut file =
                File::create(&path).map_err(|e| Error::writing(&path, "cannot create", e))?;
            write(&mut file).map_err(|e| Error::writing(&path, "cannot write", e))?;
            shards.push((name, file, 8 + header.len() as u64));
        }
        Ok(Self {
            wanted,
            replace,
            folder,
            entries: entries.into_iter().map(|(n, e)| (n, (e, false))).collect(),
            shards,
            config,
        })
    }

    /// Writes a tensor that is not quantised.
    pub(super) fn plain(&mut self, name: &str, values: &[f32], dtype: DType) -> Result<()> {
        self.put(name, 0, &bytes_of(values, dtype))
    }

    /// Writes some rows of a tensor that is not quantised, from element `at` on; the last of them in a call with `last`.
    pub(super) fn rows(
        &mut self,
        name: &str,
        at: usize,
        values: &[f32],
        dtype: DType,
    ) -> Result<()> {
        self.put(name, (at * dtype.size()) as u64, &bytes_of(values, dtype))
    }

    /// Writes the tensors of a quantised linear layer.
    pub(super) fn packed(
        &mut self,
        module: &str,
        weight: &PackedWeight,
        format: &Format,
    ) -> Result<()> {
        let (n, k, groups) = (weight.n, weight.k, weight.groups());
        let scales: Vec<f32> = (0..n * groups).map(|i| weight.scales.get(i)).collect();
        let scales = bytes_of(&scales, weight.scales.dtype());
        self.put(&format!("{module}.weight_scale"), 0, &scales)?;
        if *format == Format::IntQuantized {
            return self.put(&format!("{module}.weight"), 0, &weight.codes);
        }
        let packed = words_of_rows(weight);
        self.put(&format!("{module}.weight_packed"), 0, &packed)?;
        let shape = [n as i64, k as i64];
        let shape = bytemuck::cast_slice(&shape);
        self.put(&format!("{module}.weight_shape"), 0, shape)?;
        if let Levels::Zeros(zeros) = &weight.levels {
            let zeros = words_of_columns(zeros, n, groups, weight.format);
            self.put(&format!("{module}.weight_zero_point"), 0, &zeros)?;
        }
        Ok(())
    }

    /// Writes `bytes` into a tensor from its byte `at` on.
    fn put(&mut self, name: &str, at: u64, bytes: &[u8]) -> Result<()> {
        let Some((entry, written)) = self.entries.get_mut(name) else {
            return Err(Error::Internal(format!("no tensor '{name}' is planned")));
        };
        if at + bytes.len() as u64 > entry.bytes {
            return Err(Error::Internal(format!(
                "tensor '{name}': bytes {at} to {} of {}",
                at + bytes.len() as u64,
                entry.bytes
            )));
        }
        *written |= at + bytes.len() as u64 == entry.bytes;
        let (shard, file, data) = &mut self.shards[entry.shard];
        let path = self.folder.path().join(&*shard);
        write_at(file, *data + entry.offset + at, bytes)
            .map_err(|e| Error::writing(path, "cannot write", e))
    }

    /// Completes the checkpoint and gives it its name.
    ///
    /// # Errors
    /// If a tensor is missing, a file cannot be written, or something came to stand at the wanted place meanwhile.
    /// Nothing unfinished is left behind then.
    pub(super) fn finish(self, model: &Model, report: &Value) -> Result<PathBuf> {
        if let Some((name, _)) = self.entries.iter().find(|(_, (_, written))| !written) {
            return Err(Error::Internal(format!(
                "tensor '{name}' was never written"
            )));
        }
        let folder = self.folder.path().to_owned();
        for (name, file, _) in &self.shards {
            file.sync_all()
                .map_err(|e| Error::writing(folder.join(name), "cannot write", e))?;
        }
        if self.shards.len() > 1 {
            let total: u64 = self.entries.values().map(|(entry, _)| entry.bytes).sum();
            let places = self.entries.iter();
            let map: Map<String, Value> = places
                .map(|(name, (entry, _))| (name.clone(), json!(self.shards[entry.shard].0)))
                .collect();
            let index = json!({"metadata": {"total_size": total}, "weight_map": map});
            write_json(&folder.join("model.safetensors.index.json"), &index)?;
        }
        companions(&folder, model)?;
        write_json(&folder.join(REPORT), report)?;
        write_json(&folder.join("config.json"), &self.config)?;
        put(self.folder, &self.wanted, self.replace)?;
        Ok(self.wanted)
    }
}

/// Where a folder called `wanted` is to stand, links followed, if it may.
///
/// # Errors
/// [`Error::Usage`] if something stands there that is no empty folder and, with `replace`, no checkpoint of this
/// program either, or if the program runs in it.
fn free(wanted: &Path, replace: bool) -> Result<PathBuf> {
    let refused = |why: &str| Err(Error::Usage(format!("{} {why}", wanted.display())));
    if fs::symlink_metadata(wanted).is_err() {
        return match wanted.file_name() {
            Some(_) => Ok(wanted.to_owned()),
            None => refused("has no name that a folder could get: give another --out"),
        };
    }
    let real = match fs::canonicalize(wanted) {
        Ok(real) if real.is_dir() => real,
        _ => return refused("is there already and is no folder: give another --out"),
    };
    let here = std::env::current_dir().and_then(fs::canonicalize);
    if here.is_ok_and(|here| here.starts_with(&real)) {
        return refused("is the working directory or holds it: give another --out");
    }
    let mut entries = fs::read_dir(&real).map_err(|e| Error::writing(wanted, "cannot read", e))?;
    if entries.next().is_none() || (replace && is_ours(&real)) {
        return Ok(real);
    }
    refused(match is_ours(&real) {
        true => "is there already: give another --out, or --force to replace it",
        false => {
            "is there already and is no checkpoint that this program wrote, so --force does not replace it: give \
             another --out, or remove it first"
        }
    })
}

/// Whether this program wrote all that is in a folder: it writes its report and no folders.
fn is_ours(folder: &Path) -> bool {
    let report = read_json(&folder.join(REPORT)).unwrap_or_default();
    let tool = report.get("tool").and_then(Value::as_str);
    let is_file = |entry: std::io::Result<fs::DirEntry>| {
        entry
            .and_then(|entry| entry.file_type())
            .is_ok_and(|kind| !kind.is_dir())
    };
    tool.is_some_and(|tool| tool.starts_with("candlepower "))
        && folder.join("config.json").is_file()
        && fs::read_dir(folder).is_ok_and(|mut entries| entries.all(is_file))
}

/// Gives a whole folder its name, in place of what may stand there.
///
/// # Errors
/// As [`free`], and if a folder cannot be renamed or removed. Where the new one does not get its name it is removed,
/// and the old one keeps its own.
fn put(folder: TempDir, wanted: &Path, replace: bool) -> Result<()> {
    let wanted = free(wanted, replace)?;
    let failed = |e| Error::writing(&wanted, "cannot put the checkpoint at", e);
    let mut old = None;
    if wanted.is_dir() {
        let mut aside = folder.path().as_os_str().to_owned();
        aside.push(".replaced");
        let aside = PathBuf::from(aside);
        fs::rename(&wanted, &aside).map_err(failed)?;
        old = Some(aside);
    }
    if let Err(e) = fs::rename(folder.path(), &wanted) {
        if let Some(old) = old {
            fs::rename(&old, &wanted).map_err(|e| {
                Error::writing(&old, "holds the old checkpoint, cannot put it back", e)
            })?;
        }
        return Err(failed(e));
    }
    // Its name is gone, so there is nothing to remove.
    let _ = folder.keep();
    match old {
        Some(old) => fs::remove_dir_all(&old).map_err(|e| Error::writing(&old, "cannot remove", e)),
        None => Ok(()),
    }
}

#[cfg(unix)]
fn write_at(file: &mut File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_at(file: &mut File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

/// Every tensor of the checkpoint: name, type and shape, in the order of the model.
fn tensors(assignment: &Assignment<'_>) -> Result<Vec<(String, &'static str, Vec<usize>)>> {
    let (config, plain) = (assignment.config, stored(assignment.dtype));
    let mut all = Vec::new();
    let mut forms: BTreeMap<String, Form> = BTreeMap::new();
    for layer in 0..config.layers {
        for site in Site::ALL {
            if let Some(form) = assignment.form(layer, site)? {
                forms.extend(site.members().map(|m| (module(layer, m), form)));
            }
        }
    }
    let format = assignment.format();
    for TensorSpec { name, shape } in config.tensors() {
        let module = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
        let Some(form) = forms.get(&module).filter(|_| name.ends_with(".weight")) else {
            all.push((name, plain, shape));
            continue;
        };
        let (n, k) = (shape[0], shape[1]);
        let (groups, bits) = (k / form.group, form.format.bits());
        let words = |count: usize| (count * bits).div_ceil(32);
        let mut push = |part: &str, stored: &'static str, shape: Vec<usize>| {
            all.push((format!("{module}.{part}"), stored, shape));
        };
        push("weight_scale", plain, vec![n, groups]);
        if format == Format::IntQuantized {
            push("weight", "I8", vec![n, k]);
            continue;
        }
        push("weight_packed", "I32", vec![n, words(k)]);
        push("weight_shape", "I64", vec![2]);
        if !form.symmetric {
            push("weight_zero_point", "I32", vec![words(n), groups]);
        }
    }
    Ok(all)
}

const fn stored(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
    }
}

fn element_bytes(stored: &str) -> u64 {
    match stored {
        "I64" => 8,
        "I32" | "F32" => 4,
        "F16" | "BF16" => 2,
        _ => 1,
    }
}

/// Where each tensor goes, and how many bytes each shard has. Inside a shard, tensors of large elements come first, so
/// that all are aligned without gaps.
fn lay_out(tensors: &[(String, &'static str, Vec<usize>)]) -> (BTreeMap<String, Entry>, Vec<u64>) {
    let mut entries = BTreeMap::new();
    /// Name, type, shape and bytes.
    type Planned<'a> = (&'a str, &'static str, &'a [usize], u64);
    let mut shards: Vec<Vec<Planned<'_>>> = vec![Vec::new()];
    let mut filled = 0;
    for (name, stored, shape) in tensors {
        let elements: u64 = shape.iter().map(|&n| n as u64).product();
        let bytes = elements * element_bytes(stored);
        if filled > 0 && filled + bytes > SHARD {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push((name, stored, shape, bytes));
        }
    }
    let mut sizes = Vec::new();
    for (number, mut shard) in shards.into_iter().enumerate() {
        shard.sort_by_key(|(_, stored, ..)| std::cmp::Reverse(element_bytes(stored)));
        let mut offset = 0;
        for (name, stored, shape, bytes) in shard {
            let entry = Entry {
                stored,
                shape: shape.to_vec(),
                shard: number,
                offset,
                bytes,
            };
            entries.insert(name.to_owned(), entry);
            offset += bytes;
        }
        sizes.push(offset);
    }
    (entries, sizes)
}

/// The header of a shard, padded so that data begins at a multiple of eight.
fn header(entries: &BTreeMap<String, Entry>, shard: usize) -> Result<Vec<u8>> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for (name, entry) in entries.iter().filter(|(_, entry)| entry.shard == shard) {
        header.insert(
            name.clone(),
            json!({
                "dtype": entry.stored,
                "shape": entry.shape,
                "data_offsets": [entry.offset, entry.offset + entry.bytes],
            }),
        );
    }
    let mut text = serde_json::to_vec(&header)
        .map_err(|e| Error::Internal(format!("cannot write a header: {e}")))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

/// Codes along K, the first in the lowest bits of each little-endian word of 32.
fn words_of_rows(weight: &PackedWeight) -> Vec<u8> {
    let width = (weight.k * weight.format.bits()).div_ceil(32) * 4;
    let mut out = vec![0; weight.n * width];
    for (i, row) in out.chunks_mut(width).enumerate() {
        let codes = weight.row_codes(i);
        match weight.format {
            CodeFormat::U4 => {
                for (byte, pair) in row.iter_mut().zip(codes.chunks(2)) {
                    *byte = pair[0] | pair.get(1).copied().unwrap_or(0) << 4;
                }
            }
            // Signed codes are stored from 0 on: 128 more.
            _ => row
                .iter_mut()
                .zip(codes)
                .for_each(|(byte, code)| *byte = code ^ 0x80),
        }
    }
    out
}

/// Zero points `[n, groups]` packed along N: the first row in the lowest bits.
fn words_of_columns(zeros: &[u8], n: usize, groups: usize, format: CodeFormat) -> Vec<u8> {
    let per_word = 32 / format.bits();
    let mut words = vec![0_u32; n.div_ceil(per_word) * groups];
    for (i, &zero) in zeros.iter().enumerate() {
        let (row, group) = (i / groups, i % groups);
        let from_zero = match format {
            CodeFormat::U4 => zero & 15,
            _ => zero ^ 0x80,
        };
        let shift = row % per_word * format.bits();
        words[row / per_word * groups + group] |= u32::from(from_zero) << shift;
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The folder that the model was opened from, if its files may be copied as they are.
fn source_folder(model: &Model) -> Option<&Path> {
    match model.origin.kind {
        OriginKind::Directory | OriginKind::Hub => model.origin.paths.first()?.parent(),
        _ => None,
    }
}

fn configuration(model: &Model, assignment: &Assignment<'_>) -> Result<Value> {
    let mut config = match source_folder(model) {
        Some(folder) => read_json(&folder.join("config.json"))?,
        None => model.config.to_transformers()?,
    };
    let quantization = serde_json::to_value(assignment.config()?)
        .map_err(|e| Error::Internal(format!("cannot write a configuration: {e}")))?;
    if let Some(keys) = config.as_object_mut() {
        // What described the source's own quantisation no longer holds.
        keys.remove("compression_config");
        let dtype = match assignment.dtype {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
        };
        let key = if keys.contains_key("dtype") {
            "dtype"
        } else {
            "torch_dtype"
        };
        keys.insert(key.into(), json!(dtype));
        keys.insert("quantization_config".into(), quantization);
    }
    Ok(config)
}

/// Copies what belongs to the tokenizer, or writes it anew where the source has no such files or the model's tokenizer is
/// another than its folder's, whose files would say something else of its marks and tokens.
fn companions(folder: &Path, model: &Model) -> Result<()> {
    let source = source_folder(model);
    let tokenizer = model.tokenizer.as_ref();
    let is_own = tokenizer.is_none_or(|tokenizer| tokenizer.origin().parent() == source);
    let copied: &[&str] = match is_own {
        true => &COMPANIONS,
        false => &[GENERATION],
    };
    for (name, source) in copied.iter().zip(source.into_iter().cycle()) {
        let from = source.join(name);
        if from.is_file() {
            let bytes = fs::read(&from).map_err(|e| Error::reading(&from, "cannot read", e))?;
            let to = folder.join(name);
            fs::write(&to, bytes).map_err(|e| Error::writing(&to, "cannot write", e))?;
        }
    }
    let Some(tokenizer) = tokenizer else {
        return Ok(());
    };
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        let text = tokenizer.to_json()?;
        fs::write(&path, text).map_err(|e| Error::writing(&path, "cannot write", e))?;
    }
    let path = folder.join("tokenizer_config.json");
    if !path.is_file() {
        let named = |id: Option<u32>| id.and_then(|id| tokenizer.token_of(id));
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": named(tokenizer.bos()),
            "eos_token": named(tokenizer.eos().first().copied()),
            "model_max_length": model.config.max_positions,
        });
        write_json(&path, &config)?;
    }
    Ok(())
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).map_err(|e| Error::reading(path, "cannot read", e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::data(path, format!("bad JSON: {e}")))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Internal(format!("cannot write JSON: {e}")))?;
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(|e| Error::writing(path, "cannot write", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelSpec, WeightsChoice};
    use crate::scheme::Scales;

    /// Vectors CT-1 to CT-4, packed by compressed-tensors 0.20.
    #[test]
    fn words_equal_those_of_compressed_tensors() {
        let weight = |format: CodeFormat, codes: &[u8]| {
            let mut packed = vec![0; format.row_bytes(codes.len())];
            format.pack_row(codes, &mut packed);
            PackedWeight {
                n: 1,
                k: codes.len(),
                format,
                group: codes.len(),
                scale_rows: 1,
                codes: packed,
                scales: Scales::F32(vec![1.0]),
                levels: Levels::Symmetric,
                order: None,
            }
        };
        let words = |bytes: &[u8]| -> Vec<u32> { bytemuck::pod_collect_to_vec(bytes) };
        let all: Vec<u8> = (0..16).chain(0..16).collect();
        let packed = words_of_rows(&weight(CodeFormat::U4, &all));
        assert_eq!(words(&packed)[..2], [0x7654_3210, 0xfedc_ba98]);
        let signed = [-128_i8, -1, 0, 127, 1, 2, 3, 4].map(i8::cast_unsigned);
        let packed = words_of_rows(&weight(CodeFormat::I8, &signed));
        assert_eq!(words(&packed), [0xff80_7f00, 0x8483_8281]);
        // Ten rows of two groups: the first counts up, the second down.
        let zeros: Vec<u8> = (0..10).flat_map(|i| [i, 15 - i]).collect();
        let packed = words_of_columns(&zeros, 10, 2, CodeFormat::U4);
        assert_eq!(words(&packed), [0x7654_3210, 0x89ab_cdef, 0x98, 0x67]);
    }

    /// A folder as this program leaves it, but for the weights.
    fn write_checkpoint(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        fs::write(folder.join(REPORT), r#"{"tool": "candlepower 0.0.1"}"#).unwrap();
    }

    #[test]
    fn files_of_another_tokenizer_than_the_models_are_not_copied() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let fixture = Path::new("tests/fixtures/tiny-llama/bf16");
        for (folder, marked) in [("source", "true"), ("other", "false")] {
            fs::create_dir(at(folder)).unwrap();
            for entry in fs::read_dir(fixture).unwrap() {
                let from = entry.unwrap().path();
                fs::copy(&from, at(folder).join(from.file_name().unwrap())).unwrap();
            }
            let config = format!(r#"{{"tokenizer_class": "{folder}", "add_eos_token": {marked}}}"#);
            fs::write(at(folder).join("tokenizer_config.json"), config).unwrap();
            fs::write(
                at(folder).join(GENERATION),
                format!(r#"{{"of": "{folder}"}}"#),
            )
            .unwrap();
        }
        let written = |tokenizer: Option<&str>| {
            let model = Model::open(&ModelSpec {
                source: at("source").display().to_string(),
                revision: None,
                weights: WeightsChoice::AsStored,
                tokenizer: tokenizer.map(|name| at(name).join("tokenizer.json")),
            })
            .unwrap();
            let out = tempfile::tempdir().unwrap();
            companions(out.path(), &model).unwrap();
            let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap();
            assert!(read(GENERATION).contains("source"));
            assert!(read("tokenizer.json").contains("model"));
            read("tokenizer_config.json")
        };
        assert!(written(None).contains("source"));
        let other = written(Some("other"));
        assert!(
            !other.contains("source") && !other.contains("add_eos_token"),
            "{other}"
        );
    }

    #[test]
    fn only_checkpoints_of_this_program_are_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let refused = |path: &Path, replace: bool, why: &str| {
            let error = free(path, replace).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(
                text.contains(why) && text.contains(&path.display().to_string()),
                "{text}"
            );
        };
        assert_eq!(free(&at("new"), false).unwrap(), at("new"));
        fs::create_dir(at("empty")).unwrap();
        free(&at("empty"), false).unwrap();
        write_checkpoint(&at("own"));
        refused(&at("own"), false, "or --force to replace it");
        free(&at("own"), true).unwrap();

        write_checkpoint(&at("with-folder"));
        fs::create_dir(at("with-folder/runs")).unwrap();
        write_checkpoint(&at("no-config"));
        fs::remove_file(at("no-config/config.json")).unwrap();
        write_checkpoint(&at("of-another"));
        fs::write(at("of-another").join(REPORT), r#"{"tool": "other 1"}"#).unwrap();
        fs::create_dir(at("thesis")).unwrap();
        fs::write(at("thesis/chapter.txt"), "text").unwrap();
        for name in ["with-folder", "no-config", "of-another", "thesis"] {
            for replace in [false, true] {
                refused(&at(name), replace, "no checkpoint that this program wrote");
            }
        }
        refused(&at("thesis/chapter.txt"), true, "no folder");
        let here = std::env::current_dir().unwrap();
        for folder in here.ancestors() {
            refused(folder, true, "working directory");
        }
        refused(Path::new("."), true, "working directory");
        refused(Path::new("missing/.."), true, "no name");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        write_checkpoint(&at("own"));
        std::os::unix::fs::symlink("own", at("link")).unwrap();
        let real = fs::canonicalize(at("own")).unwrap();
        assert_eq!(free(&at("link"), true).unwrap(), real);
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        let error = free(&at("dangling"), true).unwrap_err();
        assert!(error.to_string().contains("no folder"), "{error}");
    }

    #[test]
    fn what_cannot_get_its_name_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let unfinished = || {
            let folder = tempfile::tempdir_in(scratch.path()).unwrap();
            fs::write(folder.path().join("config.json"), "new").unwrap();
            folder
        };
        let count = || fs::read_dir(scratch.path()).unwrap().count();
        let missing = scratch.path().join("missing/out");
        assert_eq!(
            put(unfinished(), &missing, true).unwrap_err().exit_code(),
            74
        );
        assert_eq!(count(), 0);

        // What came to stand there meanwhile stays.
        let own = scratch.path().join("own");
        write_checkpoint(&own);
        assert_eq!(put(unfinished(), &own, false).unwrap_err().exit_code(), 2);
        assert_eq!(
            (
                count(),
                fs::read_to_string(own.join("config.json")).unwrap()
            ),
            (1, "{}".to_owned())
        );
        put(unfinished(), &own, true).unwrap();
        assert_eq!(
            (
                count(),
                fs::read_to_string(own.join("config.json")).unwrap()
            ),
            (1, "new".to_owned())
        );
        assert!(!own.join(REPORT).exists());
    }

    #[test]
    fn tensors_are_aligned_and_shards_are_full() {
        let tensors = [
            ("a".to_owned(), "BF16", vec![3]),
            ("b".to_owned(), "I64", vec![2]),
            ("c".to_owned(), "I8", vec![5]),
            ("d".to_owned(), "I32", vec![1_000_000_000, 1]),
            ("e".to_owned(), "I32", vec![1_000_000_000, 1]),
        ];
        let (entries, sizes) = lay_out(&tensors);
        assert_eq!(sizes, [4_000_000_027, 4_000_000_000]);
        for (name, entry) in &entries {
            assert_eq!(entry.offset % element_bytes(entry.stored), 0, "{name}");
        }
        assert_eq!((entries["e"].shard, entries["b"].offset), (1, 0));
    }
}
