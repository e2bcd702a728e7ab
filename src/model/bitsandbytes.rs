//! Checkpoints of bitsandbytes (`functional.py`: `QuantState`; `nn/modules.py`): NF4 and FP4 in blocks, and LLM.int8().
//!
//! Four bits: `weight` U8, two codes a byte, the first in the high half, of the matrix as one long row; `weight.absmax` a
//! scale for every 64 of them, `weight.quant_map` the sixteen numbers that codes name. With double quantisation the scales
//! are codes themselves: `nested_quant_map[absmax] · nested_absmax[i/256] + nested_offset`.
//!
//! Eight bits: `weight` I8 `[N, K]`, `SCB` F32 `[N]`: `w = q · SCB / 127`. Columns of outliers, which the library leaves in
//! 16 bits when the model runs, are not treated apart here.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::quantised::{Parts, Reader, Settings, StoredLinear};
use crate::error::Result;
use crate::scheme::{CodeFormat, DType, LevelForm, Levels, PackedForm, PackedWeight, Scales};

/// The settings of a checkpoint.
#[derive(Debug)]
pub(super) struct BitsAndBytes {
    /// `nf4` or `fp4`; `None` for eight bits.
    four: Option<&'static str>,
}

impl BitsAndBytes {
    /// Reads the object under `quantization_config`.
    pub(super) fn new(path: &Path, keys: &Value) -> Result<Self> {
        let settings = Settings { path, keys };
        let flag = |key| Ok(settings.flag(key)?.unwrap_or(false));
        let four = match (flag("load_in_4bit")?, flag("load_in_8bit")?) {
            (true, _) => match settings.text("bnb_4bit_quant_type")?.unwrap_or("fp4") {
                "nf4" => Some("nf4"),
                "fp4" => Some("fp4"),
                other => {
                    return Err(settings.unsupported(format!("the bnb_4bit_quant_type '{other}'")));
                }
            },
            (false, true) => None,
            (false, false) => {
                return Err(settings.unsupported("neither load_in_4bit nor load_in_8bit is set"));
            }
        };
        Ok(Self { four })
    }
}

/// What stands beside codes of four bits, as JSON in a tensor of bytes.
#[derive(Deserialize)]
struct State {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

impl BitsAndBytes {
    fn state(&self, parts: &Parts<'_>, four: &str) -> Result<State> {
        let name = format!("weight.quant_state.bitsandbytes__{four}");
        let part = parts.get(&name)?.of_type(&["U8"])?;
        let bytes: Vec<u8> = part.all()?;
        let state: State =
            serde_json::from_slice(&bytes).map_err(|e| part.fault(format!("bad JSON: {e}")))?;
        if state.shape != [parts.n, parts.k] {
            return Err(part.fault(format!(
                "says {:?}, the configuration [{}, {}]",
                state.shape, parts.n, parts.k
            )));
        }
        if state.blocksize == 0 || state.nested_blocksize == Some(0) {
            return Err(part.fault("blocks of nothing"));
        }
        Ok(state)
    }

    /// The scales of blocks `blocks`, whatever they are stored as.
    fn scales(
        &self,
        parts: &Parts<'_>,
        state: &State,
        blocks: Range<usize>,
        all: usize,
    ) -> Result<Scales> {
        let part = parts.get("weight.absmax")?;
        let Some(nested) = state.nested_blocksize else {
            return part.scales(0..1, all, blocks);
        };
        let codes: Vec<u8> = part.block(0..1, all, blocks.clone())?;
        let map: Vec<f32> = parts.get("weight.nested_quant_map")?.all()?;
        let outer: Vec<f32> = parts.get("weight.nested_absmax")?.all()?;
        let offset = state.nested_offset.unwrap_or(0.0);
        let scale =
            |(block, &code): (usize, &u8)| map[usize::from(code)] * outer[block / nested] + offset;
        let scales = blocks.zip(&codes).map(scale).collect();
        Ok(Scales::F32(scales))
    }

    fn describe_four(&self, parts: &Parts<'_>, four: &str) -> Result<Option<StoredLinear>> {
        if parts.find("weight.absmax")?.is_none() {
            return Ok(None);
        }
        let (n, k) = (parts.n, parts.k);
        let state = self.state(parts, four)?;
        let block = state.blocksize;
        if !k.is_multiple_of(block) {
            return Err(parts.unsupported(format!(
                "blocks of {block} that reach over the ends of rows of {k}"
            )));
        }
        let blocks = n * (k / block);
        parts
            .get("weight")?
            .of_type(&["U8"])?
            .of_shape([n * k / 2, 1])?;
        parts
            .get("weight.quant_map")?
            .of_type(&["F32"])?
            .of_shape([1, 16])?;
        let absmax = parts.get("weight.absmax")?.of_shape([1, blocks])?;
        if let Some(nested) = state.nested_blocksize {
            absmax.of_type(&["U8"])?;
            parts
                .get("weight.nested_quant_map")?
                .of_type(&["F32"])?
                .of_shape([1, 256])?;
            let outer = parts.get("weight.nested_absmax")?.of_type(&["F32"])?;
            outer.of_shape([1, blocks.div_ceil(nested)])?;
        } else {
            absmax.of_type(&["F32"])?;
        }
        let form = PackedForm {
            n,
            k,
            format: CodeFormat::U4,
            group: block,
            scale_rows: 1,
            scales: DType::F32,
            levels: LevelForm::Codebook,
            ordered: false,
        };
        Ok(Some(StoredLinear { form, inputs: None }))
    }

    fn read_four(
        &self,
        parts: &Parts<'_>,
        form: &PackedForm,
        rows: Range<usize>,
        four: &str,
    ) -> Result<PackedWeight> {
        let PackedForm {
            n,
            k,
            format,
            group,
            ..
        } = *form;
        let state = self.state(parts, four)?;
        let per_row = k / group;
        let mut codes: Vec<u8> = parts.get("weight")?.block(rows.clone(), k / 2, 0..k / 2)?;
        let mut single = vec![0; k];
        for row in codes.chunks_exact_mut(k / 2) {
            for (pair, out) in row.iter().zip(single.chunks_exact_mut(2)) {
                out.copy_from_slice(&[pair >> 4, pair & 15]);
            }
            format.pack_row(&single, row);
        }
        let map: Vec<f32> = parts.get("weight.quant_map")?.all()?;
        let book = map
            .try_into()
            .map_err(|_| parts.fault("weight.quant_map", "expected sixteen numbers"))?;
        let blocks = rows.start * per_row..rows.end * per_row;
        let weight = PackedWeight {
            n: rows.len(),
            k,
            format,
            group,
            scale_rows: 1,
            codes,
            scales: self.scales(parts, &state, blocks, n * per_row)?,
            levels: Levels::Codebook(book),
            order: None,
        };
        parts.checked("weight", weight)
    }
}

impl Reader for BitsAndBytes {
    fn method(&self) -> String {
        format!("bitsandbytes {}", self.four.unwrap_or("int8"))
    }

    fn describe(&self, parts: &Parts<'_>) -> Result<Option<StoredLinear>> {
        if let Some(four) = self.four {
            return self.describe_four(parts, four);
        }
        let Some(scales) = parts.find("SCB")? else {
            return Ok(None);
        };
        let (n, k) = (parts.n, parts.k);
        parts.get("weight")?.of_type(&["I8"])?.of_shape([n, k])?;
        scales.of_type(&["F32"])?.of_shape([n, 1])?;
        if let Some(part) = parts.find("weight_format")?
            && part.all::<u8>()?.iter().any(|&order| order != 0)
        {
            return Err(part.fault("weights in another order than by rows are not supported"));
        }
        let form = PackedForm {
            n,
            k,
            format: CodeFormat::I8,
            group: k,
            scale_rows: 1,
            scales: DType::F32,
            levels: LevelForm::Symmetric,
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
        if let Some(four) = self.four {
            return self.read_four(parts, form, rows, four);
        }
        let largest: Vec<f32> = parts.get("SCB")?.block(rows.clone(), 1, 0..1)?;
        let weight = PackedWeight {
            n: rows.len(),
            k: form.k,
            format: form.format,
            group: form.k,
            scale_rows: 1,
            codes: parts.get("weight")?.block(rows, form.k, 0..form.k)?,
            scales: Scales::F32(largest.iter().map(|largest| largest / 127.0).collect()),
            levels: Levels::Symmetric,
            order: None,
        };
        parts.checked("weight", weight)
    }
}
