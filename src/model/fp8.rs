//! FP8 checkpoints outside compressed-tensors: `quant_method` `fp8` of the transformers library (DeepSeek, Qwen3-FP8) and
//! of AutoFP8.
//!
//! | tensor | stored as | what |
//! |---|---|---|
//! | `weight` | F8_E4M3 `[N, K]` | |
//! | `weight_scale_inv` | F32 or BF16 `[N/128, K/128]`, rounded up | what codes are multiplied by, whatever the name says |
//! | `weight_scale` | one number, or one a row | the same, by AutoFP8 |
//! | `activation_scale`, `input_scale` | one number | the scale of inputs, where that is not found on the fly |

use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use super::quantised::{Parts, Reader, Settings, StoredLinear};
use crate::error::Result;
use crate::scheme::{
    CodeFormat, InputNumber, InputRounding, InputScale, LevelForm, Levels, PackedForm, PackedWeight,
};

/// The type of the codes.
const CODES: &[&str] = &["F8_E4M3"];

/// The settings of a checkpoint.
#[derive(Debug)]
pub(super) struct Fp8 {
    /// Rows and columns of a block; `None` for scales of whole tensors or rows.
    block: Option<[usize; 2]>,
    /// Whether scales of inputs are in the file.
    fixed: bool,
}

impl Fp8 {
    /// Reads the object under `quantization_config`.
    pub(super) fn new(path: &Path, keys: &Value) -> Result<Self> {
        let settings = Settings { path, keys };
        let block = match settings.get("weight_block_size") {
            None => None,
            Some(value) => {
                let size = |i: usize| {
                    value
                        .get(i)
                        .and_then(Value::as_u64)
                        .and_then(|n| usize::try_from(n).ok())
                };
                match (size(0), size(1)) {
                    (Some(rows @ 1..), Some(columns @ 1..)) => Some([rows, columns]),
                    _ => {
                        return Err(settings.bad(
                            "weight_block_size",
                            format!("{value}: expected rows and columns"),
                        ));
                    }
                }
            }
        };
        let fixed = match settings.text("activation_scheme")? {
            None | Some("dynamic") => false,
            Some("static") => true,
            Some(other) => {
                return Err(settings.unsupported(format!(
                    "the activation_scheme '{other}' is not supported (supported: dynamic, static)"
                )));
            }
        };
        if let Some(format @ "e5m2") = settings.text("fmt")? {
            return Err(settings.unsupported(format!("codes in {format} are not supported")));
        }
        Ok(Self { block, fixed })
    }

    fn inputs(&self, parts: &Parts<'_>) -> Result<InputRounding> {
        let scale = match (self.fixed, self.block) {
            (true, _) => {
                let part = match parts.find("activation_scale")? {
                    Some(part) => part,
                    None => parts.get("input_scale")?,
                };
                InputScale::Fixed(part.single()?)
            }
            // The kernels of blocks quantise inputs in pieces as wide as a block.
            (false, Some([_, columns])) => InputScale::Columns(columns.min(parts.k)),
            (false, None) => InputScale::Token,
        };
        Ok(InputRounding {
            number: InputNumber::E4M3,
            scale,
        })
    }
}

impl Reader for Fp8 {
    fn method(&self) -> String {
        "fp8".to_owned()
    }

    fn describe(&self, parts: &Parts<'_>) -> Result<Option<StoredLinear>> {
        let Some(weight) = parts
            .find("weight")?
            .filter(|part| CODES.contains(&part.stored))
        else {
            return Ok(None);
        };
        weight.of_shape([parts.n, parts.k])?;
        let form = fp8_form(parts, self.block, &["weight_scale_inv", "weight_scale"])?;
        let inputs = Some(self.inputs(parts)?);
        Ok(Some(StoredLinear { form, inputs }))
    }

    fn read(
        &self,
        parts: &Parts<'_>,
        form: &PackedForm,
        rows: Range<usize>,
    ) -> Result<PackedWeight> {
        read_fp8(parts, form, rows, &["weight_scale_inv", "weight_scale"])
    }
}

/// The form of E4M3 weights `[n, k]` whose scales, the first of these names that is there, cover blocks, or else rows or
/// everything, whichever their number says.
pub(super) fn fp8_form(
    parts: &Parts<'_>,
    block: Option<[usize; 2]>,
    names: &[&str],
) -> Result<PackedForm> {
    let (n, k) = (parts.n, parts.k);
    let part = scale_part(parts, names)?;
    let [scale_rows, group] = match block {
        _ if part.shape.iter().product::<usize>() == 1 => [n, k],
        Some([rows, columns]) => [rows.min(n), columns.min(k)],
        None => [1, k],
    };
    let part = part.of_shape([n.div_ceil(scale_rows), k.div_ceil(group)])?;
    Ok(PackedForm {
        n,
        k,
        format: CodeFormat::E4M3,
        group,
        scale_rows,
        scales: part.scale_type()?,
        levels: LevelForm::Symmetric,
        ordered: false,
    })
}

/// Rows of E4M3 weights.
pub(super) fn read_fp8(
    parts: &Parts<'_>,
    form: &PackedForm,
    rows: Range<usize>,
    names: &[&str],
) -> Result<PackedWeight> {
    let groups = form.k.div_ceil(form.group);
    let scale_rows = form.scale_rows;
    let blocks = rows.start / scale_rows..rows.end.div_ceil(scale_rows);
    let weight = PackedWeight {
        n: rows.len(),
        k: form.k,
        format: form.format,
        group: form.group,
        scale_rows: scale_rows.min(rows.len()),
        codes: parts.get("weight")?.block(rows, form.k, 0..form.k)?,
        scales: scale_part(parts, names)?.scales(blocks, groups, 0..groups)?,
        levels: Levels::Symmetric,
        order: None,
    };
    parts.checked("weight", weight)
}

fn scale_part<'a>(parts: &Parts<'a>, names: &[&str]) -> Result<super::quantised::Part<'a>> {
    for name in names {
        if let Some(part) = parts.find(name)? {
            return Ok(part);
        }
    }
    parts.get(names[0])
}
