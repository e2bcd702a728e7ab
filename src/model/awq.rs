//! Checkpoints of AWQ's format in its `gemm` version, by AutoAWQ and GPTQModel (`awq/modules/linear/gemm.py`,
//! `awq/utils/packing_utils.py`).
//!
//! | tensor | stored as | what |
//! |---|---|---|
//! | `qweight` | I32 `[K, N/8]` | codes, unsigned; a word holds eight neighbours along N in an order of its own |
//! | `qzeros` | I32 `[K/group, N/8]` | zero points in the same order; absent (`zero_point` false) where all are 8 |
//! | `scales` | F16 or BF16 `[K/group, N]` | |
//!
//! `w[n, k] = scales[k/group, n] · (u[n, k] − z[k/group, n])`.

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;

use super::quantised::{Parts, Reader, Settings, StoredLinear, WORDS, group_of};
use crate::error::Result;
use crate::scheme::{CodeFormat, LevelForm, Levels, PackedForm, PackedWeight};

/// Codes of a word.
const EACH: usize = 8;

/// Which of a word's eight outputs each of its nibbles is, low ones first.
const ORDER: [usize; EACH] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The settings of a checkpoint.
#[derive(Debug)]
pub(super) struct Awq {
    /// -1 for whole rows.
    group: i64,
    /// Whether the settings say that there are zero points.
    zeros: bool,
}

impl Awq {
    /// Reads the object under `quantization_config`, or in `quant_config.json`.
    pub(super) fn new(path: &Path, keys: &Value) -> Result<Self> {
        let settings = Settings { path, keys };
        let version = settings.text("version")?.unwrap_or("gemm");
        if !version.eq_ignore_ascii_case("gemm") {
            return Err(settings.unsupported(format!(
                "the version '{version}' of AWQ is not supported (supported: gemm)"
            )));
        }
        let bits = match settings.integer("bits")? {
            Some(bits) => bits,
            None => settings.integer("w_bit")?.unwrap_or(4),
        };
        if bits != 4 {
            return Err(settings.unsupported(format!(
                "codes of {bits} bits are not supported (supported: 4)"
            )));
        }
        let group = match settings.integer("group_size")? {
            Some(group) => group,
            None => settings.integer("q_group_size")?.unwrap_or(128),
        };
        let zeros = settings.flag("zero_point")?.unwrap_or(false);
        Ok(Self { group, zeros })
    }
}

impl Reader for Awq {
    fn method(&self) -> String {
        "awq".to_owned()
    }

    fn describe(&self, parts: &Parts<'_>) -> Result<Option<StoredLinear>> {
        let Some(codes) = parts.find("qweight")? else {
            return Ok(None);
        };
        let (n, k) = (parts.n, parts.k);
        let group = group_of(self.group, k)
            .filter(|&group| k.is_multiple_of(group))
            .ok_or_else(|| {
                parts.unsupported(format!("groups of {} do not divide K = {k}", self.group))
            })?;
        if !n.is_multiple_of(EACH) {
            return Err(parts.unsupported(format!(
                "{n} outputs do not divide into words of {EACH} codes"
            )));
        }
        codes.of_type(WORDS)?.of_shape([k, n / EACH])?;
        let scales = parts.get("scales")?.of_shape([k / group, n])?;
        let zeros = parts.find("qzeros")?;
        let levels = match zeros {
            Some(zeros) => {
                zeros.of_type(WORDS)?.of_shape([k / group, n / EACH])?;
                LevelForm::Zeros
            }
            None if self.zeros => {
                return Err(parts.fault(
                    "qzeros",
                    "missing, though zero_point is true: if the codes are symmetric, set zero_point to false",
                ));
            }
            None => LevelForm::Symmetric,
        };
        let form = PackedForm {
            n,
            k,
            format: CodeFormat::U4,
            group,
            scale_rows: 1,
            scales: scales.scale_type()?,
            levels,
            ordered: false,
        };
        Ok(Some(StoredLinear { form, inputs: None }))
    }

    fn read(
        &self,
        parts: &Parts<'_>,
        form: &PackedForm,
        rows: Range<usize>,
    ) -> Result<PackedWeight> {
        let PackedForm {
            n,
            k,
            format,
            group,
            ..
        } = *form;
        let groups = k / group;
        let columns = rows.start / EACH..rows.end.div_ceil(EACH);
        let words: Vec<u32> = parts
            .get("qweight")?
            .block(0..k, n / EACH, columns.clone())?;
        let width = format.row_bytes(k);
        let mut codes = vec![0; rows.len() * width];
        codes
            .par_chunks_mut(EACH * width)
            .enumerate()
            .for_each(|(column, out)| {
                let mut single = vec![0; EACH * k];
                for (j, line) in words.chunks_exact(columns.len()).enumerate() {
                    for (nibble, row) in ORDER.into_iter().enumerate() {
                        single[row * k + j] = nibble_of(line[column], nibble);
                    }
                }
                for (row, out) in single.chunks_exact(k).zip(out.chunks_exact_mut(width)) {
                    format.pack_row(row, out);
                }
            });
        let levels = match parts.find("qzeros")? {
            None => Levels::Symmetric,
            Some(part) => {
                let words: Vec<u32> = part.block(0..groups, n / EACH, columns.clone())?;
                let mut zeros = vec![0; rows.len() * groups];
                for (group, line) in words.chunks_exact(columns.len().max(1)).enumerate() {
                    for (column, &word) in line.iter().enumerate() {
                        for (nibble, row) in ORDER.into_iter().enumerate() {
                            zeros[(column * EACH + row) * groups + group] = nibble_of(word, nibble);
                        }
                    }
                }
                Levels::Zeros(zeros)
            }
        };
        let scales = parts.get("scales")?.scales(0..groups, n, rows.clone())?;
        let weight = PackedWeight {
            n: rows.len(),
            k,
            format,
            group,
            scale_rows: 1,
            codes,
            scales: scales.transposed(groups, rows.len()),
            levels,
            order: None,
        };
        parts.checked("qweight", weight)
    }
}

const fn nibble_of(word: u32, nibble: usize) -> u8 {
    (word >> (4 * nibble) & 15) as u8
}
