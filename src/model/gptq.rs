//! Checkpoints of GPTQ's format, by AutoGPTQ, GPTQModel and others (`auto_gptq/nn_modules/qlinear`, GPTQModel's
//! `nn_modules/qlinear` and `utils/model.py`).
//!
//! | tensor | stored as | what |
//! |---|---|---|
//! | `qweight` | I32 `[K·b/32, N]` | codes, unsigned; a word holds neighbours along K, low bits first |
//! | `qzeros` | I32 `[groups, N·b/32]` | zero points; a word holds neighbours along N |
//! | `scales` | F16 or BF16 `[groups, N]` | |
//! | `g_idx` | I32 `[K]` | the group of each column; may be absent where groups are of neighbours (`desc_act` false) |
//!
//! `w[n, k] = scales[g, n] · (u[n, k] − z[g, n])`. Version 1 (`gptq`) stores zero points less one, version 2 (`gptq_v2`) as
//! they are.

use std::ops::Range;
use std::path::Path;

use fancy_regex::Regex;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::json::{Unique, UniqueValue, read_json};
use super::quantised::{Part, Parts, Reader, Settings, StoredLinear, WORDS, group_of, unpack};
use crate::error::Result;
use crate::scheme::{CodeFormat, LevelForm, Levels, PackedForm, PackedWeight};

/// Rows that are gathered at a time: a cache line of words.
const TILE: usize = 16;

/// The settings of a checkpoint.
#[derive(Debug)]
pub(super) struct Gptq {
    whole: Layer,
    /// Whether zero points are stored less one.
    version1: bool,
    /// Exceptions by name, the first that fits; `None` for layers that are left plain.
    rules: Vec<(Regex, Option<Layer>)>,
}

/// The settings of one layer.
#[derive(Debug, Clone, Copy)]
struct Layer {
    bits: u32,
    /// -1 for whole rows.
    group: i64,
    symmetric: bool,
    /// Whether groups are of columns that do not stand side by side.
    ordered: bool,
}

impl Gptq {
    /// Reads the object under `quantization_config`, or in `quantize_config.json`.
    pub(super) fn new(path: &Path, keys: &Value) -> Result<Self> {
        let settings = Settings { path, keys };
        let version = match settings.text("checkpoint_format")? {
            Some(version) => Some(version),
            None => settings.text("format")?,
        };
        let marlin = settings.flag("is_marlin_format")?.unwrap_or(false);
        let version1 = match version {
            _ if marlin => {
                return Err(settings.unsupported("weights in Marlin's order are not supported"));
            }
            None | Some("gptq") => true,
            Some("gptq_v2") => false,
            Some(other) => {
                return Err(settings.unsupported(format!(
                    "the checkpoint_format '{other}' is not supported (supported: gptq, gptq_v2)"
                )));
            }
        };
        if let Some(packing @ ("int8" | "int16" | "int64")) = settings.text("pack_dtype")? {
            return Err(
                settings.unsupported(format!("codes packed into {packing} are not supported"))
            );
        }
        let default = Layer {
            bits: 4,
            group: 128,
            symmetric: true,
            ordered: false,
        };
        let whole = default.with(&settings)?;
        let rules = match settings.get("dynamic") {
            None => Vec::new(),
            Some(dynamic) if dynamic.is_object() => rules(&settings, whole)?,
            Some(_) => {
                return Err(settings.bad("dynamic", "expected an object of rules by pattern"));
            }
        };
        Ok(Self {
            whole,
            version1,
            rules,
        })
    }

    /// The settings of a module; `None` for one that is left plain.
    fn layer(&self, parts: &Parts<'_>) -> Result<Option<Layer>> {
        for (regex, layer) in &self.rules {
            let fits = regex
                .is_match(parts.module)
                .map_err(|e| parts.unsupported(format!("the pattern '{}': {e}", regex.as_str())))?;
            if fits {
                return Ok(*layer);
            }
        }
        Ok(Some(self.whole))
    }

    /// Zero points `[rows, groups]`, as codes.
    fn zeros(&self, parts: &Parts<'_>, form: &PackedForm, rows: &Range<usize>) -> Result<Vec<u8>> {
        let bits = form.format.bits();
        let (each, groups) = (32 / bits, form.k.div_ceil(form.group));
        let part = parts.get("qzeros")?;
        let words = rows.start / each..rows.end.div_ceil(each);
        let held: Vec<u32> = part.block(0..groups, form.n / each, words.clone())?;
        let mut single = vec![0; words.len() * each];
        let mut zeros = vec![0; rows.len() * groups];
        for (group, held) in held.chunks_exact(words.len().max(1)).enumerate() {
            unpack(held, bits as u32, &mut single);
            for (row, &stored) in single[..rows.len()].iter().enumerate() {
                let zero = if self.version1 {
                    stored.wrapping_add(1)
                } else {
                    stored
                };
                zeros[row * groups + group] = signed(form.format, zero);
            }
        }
        Ok(zeros)
    }

    /// A layer that calls itself symmetric has zero points in the middle; one off, and the version is the other.
    fn check_version(&self, parts: &Parts<'_>, form: &PackedForm, zeros: &[u8]) -> Result<()> {
        let middle = form.format.middle();
        let (off, other) = match (self.version1, form.format) {
            (true, CodeFormat::U4) => (9, "gptq_v2"),
            (true, _) => (1, "gptq_v2"),
            (false, CodeFormat::U4) => (7, "gptq"),
            (false, _) => (255, "gptq"),
        };
        debug_assert_ne!(middle, off);
        if form.levels == LevelForm::Symmetric && zeros.iter().all(|&zero| zero == off) {
            return Err(parts.fault(
                "qzeros",
                format!(
                    "every zero point is one off the middle: the checkpoint_format must be {other}"
                ),
            ));
        }
        Ok(())
    }
}

/// The rules under `dynamic` in the order in which the file has them: the first that fits a module counts.
fn rules(settings: &Settings<'_>, whole: Layer) -> Result<Vec<(Regex, Option<Layer>)>> {
    #[derive(Deserialize)]
    struct Keys {
        dynamic: Option<Unique<UniqueValue>>,
    }
    /// A `config.json`, or a file of settings alone.
    #[derive(Deserialize)]
    struct File {
        quantization_config: Option<Keys>,
        compression_config: Option<Keys>,
        dynamic: Option<Unique<UniqueValue>>,
    }
    let file: File = read_json(settings.path)?;
    let inner = file.quantization_config.or(file.compression_config);
    let found = inner.map_or(file.dynamic, |keys| keys.dynamic);
    let mut rules = Vec::new();
    for (pattern, UniqueValue(rule)) in found.map(|rules| rules.0).unwrap_or_default() {
        let (plain, body) = match pattern.strip_prefix("-:") {
            Some(body) => (true, body),
            None => (false, pattern.strip_prefix("+:").unwrap_or(&pattern)),
        };
        let regex = Regex::new(&format!(r"\A(?:{body})"))
            .map_err(|e| settings.bad("dynamic", format!("the pattern '{pattern}': {e}")))?;
        let of_rule = Settings {
            path: settings.path,
            keys: &rule,
        };
        let layer = (!plain).then(|| whole.with(&of_rule)).transpose()?;
        rules.push((regex, layer));
    }
    Ok(rules)
}

impl Layer {
    /// The same with what `settings` say otherwise.
    fn with(self, settings: &Settings<'_>) -> Result<Self> {
        let bits = settings
            .integer("bits")?
            .map_or(Ok(self.bits), |bits| match bits {
                4 => Ok(4),
                8 => Ok(8),
                other => Err(settings.unsupported(format!(
                    "codes of {other} bits are not supported (supported: 4 and 8)"
                ))),
            })?;
        Ok(Self {
            bits,
            group: settings.integer("group_size")?.unwrap_or(self.group),
            symmetric: settings.flag("sym")?.unwrap_or(self.symmetric),
            ordered: settings.flag("desc_act")?.unwrap_or(self.ordered),
        })
    }
}

/// A file's unsigned code in the canonical format.
const fn signed(format: CodeFormat, code: u8) -> u8 {
    match format {
        CodeFormat::U4 => code & 15,
        CodeFormat::I8 | CodeFormat::E4M3 => code ^ 0x80,
    }
}

impl Reader for Gptq {
    fn method(&self) -> String {
        let version = if self.version1 { "" } else { " v2" };
        format!("gptq{version}")
    }

    fn describe(&self, parts: &Parts<'_>) -> Result<Option<StoredLinear>> {
        let Some(codes) = parts.find("qweight")? else {
            return Ok(None);
        };
        let Some(Layer {
            bits,
            group,
            symmetric,
            ordered,
        }) = self.layer(parts)?
        else {
            return Err(codes.fault("is quantised, which a rule under 'dynamic' denies"));
        };
        let (n, k) = (parts.n, parts.k);
        let group = group_of(group, k)
            .ok_or_else(|| parts.unsupported(format!("a group_size of {group}")))?;
        let groups = k.div_ceil(group);
        let each = (32 / bits) as usize;
        if !k.is_multiple_of(each) || !n.is_multiple_of(each) {
            return Err(parts.unsupported(format!(
                "[{n}, {k}] does not divide into words of {each} codes"
            )));
        }
        codes.of_type(WORDS)?.of_shape([k / each, n])?;
        parts
            .get("qzeros")?
            .of_type(WORDS)?
            .of_shape([groups, n / each])?;
        let scales = parts.get("scales")?.of_shape([groups, n])?;
        let ordered = match parts.find("g_idx")? {
            Some(index) => {
                let index = index.of_type(WORDS)?.of_shape([1, k])?;
                // An order is counted where there is one, whatever the settings say.
                groups > 1 && (ordered || has_order(&index, group)?)
            }
            None if ordered && groups > 1 => {
                return Err(parts.fault(
                    "g_idx",
                    "missing, though desc_act is true: nothing says which columns share a scale; if the groups are of \
                     neighbours, set desc_act to false",
                ));
            }
            None => false,
        };
        let form = PackedForm {
            n,
            k,
            format: if bits == 4 {
                CodeFormat::U4
            } else {
                CodeFormat::I8
            },
            group,
            scale_rows: 1,
            scales: scales.scale_type()?,
            levels: if symmetric {
                LevelForm::Symmetric
            } else {
                LevelForm::Zeros
            },
            ordered,
        };
        Ok(Some(StoredLinear { form, inputs: None }))
    }

    fn read(
        &self,
        parts: &Parts<'_>,
        form: &PackedForm,
        rows: Range<usize>,
    ) -> Result<PackedWeight> {
        let (k, format) = (form.k, form.format);
        let groups = k.div_ceil(form.group);
        let bits = format.bits();
        let order = match parts.find("g_idx")? {
            Some(index) => order_of(&index.all::<i32>()?, form.group)
                .map_err(|what| parts.fault("g_idx", what))?,
            None => None,
        };
        let words: Vec<u32> =
            parts
                .get("qweight")?
                .block(0..k * bits / 32, form.n, rows.clone())?;
        let width = format.row_bytes(k);
        let mut codes = vec![0; rows.len() * width];
        codes
            .par_chunks_mut(TILE * width)
            .enumerate()
            .for_each(|(tile, out)| {
                let count = out.len() / width;
                let mut single = vec![0; count * k];
                let mut eight = [0; 8];
                let each = 32 / bits;
                for (r, line) in words.chunks_exact(rows.len()).enumerate() {
                    for (i, word) in line[tile * TILE..][..count].iter().enumerate() {
                        unpack(&[*word], bits as u32, &mut eight[..each]);
                        single[i * k + r * each..][..each].copy_from_slice(&eight[..each]);
                    }
                }
                let mut ordered = vec![0; k];
                for (row, out) in single.chunks_exact(k).zip(out.chunks_exact_mut(width)) {
                    for (j, code) in ordered.iter_mut().enumerate() {
                        let from = order.as_ref().map_or(j, |order| order[j] as usize);
                        *code = signed(format, row[from]);
                    }
                    format.pack_row(&ordered, out);
                }
            });
        let zeros = self.zeros(parts, form, &rows)?;
        self.check_version(parts, form, &zeros)?;
        let middle = format.middle();
        let levels = if zeros.iter().all(|&zero| zero == middle) {
            Levels::Symmetric
        } else {
            Levels::Zeros(zeros)
        };
        let scales = parts
            .get("scales")?
            .scales(0..groups, form.n, rows.clone())?;
        let weight = PackedWeight {
            n: rows.len(),
            k,
            format,
            group: form.group,
            scale_rows: 1,
            codes,
            scales: scales.transposed(groups, rows.len()),
            levels,
            order,
        };
        parts.checked("qweight", weight)
    }
}

/// Whether the groups of columns, a tensor whose shape has been checked, are not of neighbours.
pub(super) fn has_order(index: &Part<'_>, group: usize) -> Result<bool> {
    let order = order_of(&index.all::<i32>()?, group).map_err(|what| index.fault(what))?;
    Ok(order.is_some())
}

/// The input of each column once groups stand side by side, from the group of each input; `None` where they do already.
///
/// # Errors
/// If a group is none, or has other than `group` members.
pub(super) fn order_of(index: &[i32], group: usize) -> Result<Option<Vec<u32>>, String> {
    let k = index.len();
    let groups = k.div_ceil(group);
    // Written before groups were found: the order is plain.
    if index.contains(&-1) {
        return Ok(None);
    }
    let bad = index
        .iter()
        .position(|&g| usize::try_from(g).map_or(true, |g| g >= groups));
    if let Some(column) = bad {
        return Err(format!(
            "column {column} is of group {}: expected 0 to {}",
            index[column],
            groups - 1
        ));
    }
    let mut members = vec![0_usize; groups];
    index.iter().for_each(|&g| members[g as usize] += 1);
    let wanted = |g: usize| group.min(k - g * group);
    if let Some(g) = (0..groups).find(|&g| members[g] != wanted(g)) {
        return Err(format!(
            "group {g} has {} columns, expected {}",
            members[g],
            wanted(g)
        ));
    }
    let mut order: Vec<u32> = (0..k as u32).collect();
    order.sort_by_key(|&column| index[column as usize]);
    let plain = order
        .iter()
        .enumerate()
        .all(|(j, &column)| j == column as usize);
    Ok((!plain).then_some(order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_puts_the_columns_of_a_group_side_by_side() {
        assert_eq!(order_of(&[0, 0, 1, 1], 2), Ok(None));
        assert_eq!(order_of(&[1, 0, 1, 0], 2), Ok(Some(vec![1, 3, 0, 2])));
        assert_eq!(order_of(&[1, 0, 0], 2), Ok(Some(vec![1, 2, 0])));
        assert_eq!(order_of(&[-1, 0, 0], 2), Ok(None));
        assert!(
            order_of(&[0, 0, 0, 1], 2)
                .unwrap_err()
                .contains("group 0 has 3")
        );
        assert!(
            order_of(&[0, 0, 2, 1], 2)
                .unwrap_err()
                .contains("column 2 is of group 2")
        );
        assert!(
            order_of(&[0, -7, 1, 1], 2)
                .unwrap_err()
                .contains("group -7")
        );
    }
}
