//! Linear layers of a compressed-tensors checkpoint.
//!
//! | format | tensor | stored as |
//! |---|---|---|
//! | `pack-quantized` | `weight_packed` | I32 `[N, K·b/32]`: codes plus half their number, low bits first |
//! | | `weight_zero_point` | I32 `[N·b/32, groups]`, packed along N |
//! | | `weight_shape` | I64 `[2]` |
//! | | `weight_g_idx` | I32 `[K]`, the group of each column, by older writers |
//! | `int-quantized` | `weight`, `weight_zero_point` | I8 `[N, K]`, I8 like the scales |
//! | `float-quantized`, `naive-quantized` | `weight` | F8_E4M3 `[N, K]` (or I8, as above) |
//! | all | `weight_scale` | `[N, groups]`, `[N, 1]`, `[1]`, or `[N/128, K/128]` |
//! | | `input_scale` | `[1]`, where it is not found on the fly |
//!
//! Which it is, the tensors say; the format only has to agree.

use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use super::config::{
    ActOrder, Arguments, Dynamic, Format, Number, QuantizationConfig, Scheme, Strategy,
};
use crate::error::{Error, Result};
use crate::model::fp8::{fp8_form, read_fp8};
use crate::model::gptq::{has_order, order_of};
use crate::model::quantised::{Part, Parts, Reader, StoredLinear, WORDS, group_of, unpack};
use crate::scheme::{
    CodeFormat, InputNumber, InputRounding, InputScale, LevelForm, Levels, PackedForm, PackedWeight,
};

const SCALE: &str = "weight_scale";

/// The layers of a checkpoint.
#[derive(Debug)]
pub(in crate::model) struct CompressedTensors(QuantizationConfig);

/// Reads the object under `quantization_config`.
pub(in crate::model) fn reader(path: &Path, settings: &Value) -> Result<CompressedTensors> {
    let config: QuantizationConfig = serde_json::from_value(settings.clone())
        .map_err(|e| Error::data(path, format!("quantization_config: {e}")))?;
    let refuse = |what: String| Err(Error::Config(format!("{}: {what}", path.display())));
    let says_more = |value: &Option<Value>| {
        let keys = value.as_ref().and_then(Value::as_object);
        keys.is_some_and(|keys| !keys.is_empty())
    };
    if says_more(&config.transform_config) {
        return refuse("transforms of activations (transform_config) are not supported".to_owned());
    }
    let sparse = config
        .sparsity_config
        .as_ref()
        .and_then(|value| value.get("format"));
    if let Some(sparse) = sparse
        .and_then(Value::as_str)
        .filter(|&format| format != "dense")
    {
        return refuse(format!("the sparse format '{sparse}' is not supported"));
    }
    for (name, scheme) in &config.config_groups {
        if let Format::Other(format) = config.format_of(scheme) {
            return refuse(format!(
                "{name}: the format '{format}' is not supported (supported: pack-quantized, int-quantized, float-quantized, \
                 naive-quantized)"
            ));
        }
        let arguments = [&scheme.weights, &scheme.input_activations];
        for arguments in arguments.into_iter().flatten() {
            if let Some((key, value)) = arguments.unknown() {
                return refuse(format!("{name}: the key '{key}' ({value}) is not known"));
            }
        }
    }
    Ok(CompressedTensors(config))
}

/// The codes of a layer, by the tensors that are there.
enum Codes<'a> {
    Packed(Part<'a>),
    Bytes(Part<'a>),
    Float(Part<'a>),
}

impl<'a> Codes<'a> {
    fn find(parts: &Parts<'a>) -> Result<Option<Self>> {
        if let Some(part) = parts.find("weight_packed")? {
            return Ok(Some(Self::Packed(part)));
        }
        Ok(parts.find("weight")?.and_then(|part| match part.stored {
            "I8" => Some(Self::Bytes(part)),
            "F8_E4M3" => Some(Self::Float(part)),
            _ => None,
        }))
    }
}

impl CompressedTensors {
    fn scheme(&self, parts: &Parts<'_>) -> Result<Option<&Scheme>> {
        self.0
            .scheme_of(parts.module)
            .map_err(|what| parts.unsupported(what))
    }

    /// The form of integer codes.
    fn integers(
        &self,
        parts: &Parts<'_>,
        codes: Codes<'_>,
        arguments: &Arguments,
    ) -> Result<PackedForm> {
        let (n, k) = (parts.n, parts.k);
        let bits = arguments.num_bits as usize;
        let per_word = 32 / bits.max(1);
        if !matches!(bits, 4 | 8) || arguments.number != Number::Int {
            return Err(
                parts.unsupported(format!("integer codes of {bits} bits (supported: 4 and 8)"))
            );
        }
        let packed = match codes {
            Codes::Packed(part) => {
                part.of_type(WORDS)?.of_shape([n, k.div_ceil(per_word)])?;
                self.check_shape(parts)?;
                true
            }
            Codes::Bytes(part) | Codes::Float(part) => {
                part.of_type(&["I8"])?.of_shape([n, k])?;
                false
            }
        };
        let [scale_rows, group] = sharing(parts, arguments)?;
        let [scale_rows_count, groups] = [n.div_ceil(scale_rows), k.div_ceil(group)];
        let scale = parts.get(SCALE)?.of_shape([scale_rows_count, groups])?;
        let zeros = parts.find("weight_zero_point")?;
        // Older writers put zero points of zero beside symmetric codes.
        let levels = match zeros {
            Some(zeros) if !arguments.symmetric => {
                if packed && scale_rows == 1 {
                    zeros
                        .of_type(WORDS)?
                        .of_shape([n.div_ceil(per_word), groups])?;
                } else {
                    zeros
                        .of_type(&["I8"])?
                        .of_shape([scale_rows_count, groups])?;
                }
                LevelForm::Zeros
            }
            None if !arguments.symmetric => {
                parts.get("weight_zero_point")?;
                LevelForm::Zeros
            }
            _ => LevelForm::Symmetric,
        };
        let ordered = match parts.find("weight_g_idx")? {
            Some(index) => {
                let index = index.of_type(WORDS)?.of_shape([1, k])?;
                // An order is counted where there is one, whatever the settings call it.
                groups > 1
                    && (arguments.actorder == Some(ActOrder::Group) || has_order(&index, group)?)
            }
            None => false,
        };
        Ok(PackedForm {
            n,
            k,
            format: if bits == 4 {
                CodeFormat::U4
            } else {
                CodeFormat::I8
            },
            group,
            scale_rows,
            scales: scale.scale_type()?,
            levels,
            ordered,
        })
    }

    fn check_shape(&self, parts: &Parts<'_>) -> Result<()> {
        let Some(part) = parts.find("weight_shape")? else {
            return Ok(());
        };
        let part = part.of_type(&["I64", "I32"])?.of_shape([1, 2])?;
        let said: Vec<i64> = match part.stored {
            "I64" => part.all()?,
            _ => part.all::<i32>()?.into_iter().map(i64::from).collect(),
        };
        if said != [parts.n as i64, parts.k as i64] {
            return Err(part.fault(format!(
                "says {said:?}, the configuration [{}, {}]",
                parts.n, parts.k
            )));
        }
        Ok(())
    }

    fn levels(&self, parts: &Parts<'_>, form: &PackedForm, rows: &Range<usize>) -> Result<Levels> {
        if form.levels != LevelForm::Zeros {
            return Ok(Levels::Symmetric);
        }
        let groups = form.k.div_ceil(form.group);
        let blocks = rows.start / form.scale_rows..rows.end.div_ceil(form.scale_rows);
        let part = parts.get("weight_zero_point")?;
        if part.stored == "I8" {
            let signed: Vec<u8> = part.block(blocks, groups, 0..groups)?;
            let middle = form.format.middle();
            let (low, high) = (-i16::from(middle), 15 - i16::from(middle));
            for (at, &zero) in signed.iter().enumerate() {
                let zero = i16::from(zero.cast_signed());
                if form.format == CodeFormat::U4 && !(low..=high).contains(&zero) {
                    return Err(
                        part.fault(format!("number {at} is {zero}: expected {low} to {high}"))
                    );
                }
            }
            return Ok(Levels::Zeros(
                signed
                    .iter()
                    .map(|zero| zero.wrapping_add(middle))
                    .collect(),
            ));
        }
        let bits = form.format.bits();
        let each = 32 / bits;
        let words = rows.start / each..rows.end.div_ceil(each);
        let held: Vec<u32> = part.block(words, groups, 0..groups)?;
        let mut zeros = vec![0; rows.len() * groups];
        let mut eight = [0; 8];
        for (word, line) in held.chunks_exact(groups).enumerate() {
            for (group, &word_of_group) in line.iter().enumerate() {
                unpack(&[word_of_group], bits as u32, &mut eight[..each]);
                for (i, &zero) in eight[..each].iter().enumerate() {
                    if let Some(out) = zeros.get_mut((word * each + i) * groups + group) {
                        *out = canonical(form.format, zero);
                    }
                }
            }
        }
        Ok(Levels::Zeros(zeros))
    }
}

/// A packed code, which half the number of codes was added to, in the canonical format.
const fn canonical(format: CodeFormat, code: u8) -> u8 {
    match format {
        CodeFormat::U4 => code,
        CodeFormat::I8 | CodeFormat::E4M3 => code ^ 0x80,
    }
}

/// Rows and columns that share a scale.
fn sharing(parts: &Parts<'_>, arguments: &Arguments) -> Result<[usize; 2]> {
    let (n, k) = (parts.n, parts.k);
    let scales = parts.get(SCALE)?.shape.iter().product::<usize>();
    Ok(match (arguments.strategy(), arguments.group_size) {
        (Strategy::Tensor, _) if scales == 1 => [n, k],
        // What is called W8A16 has had a scale per row and per 128 columns: their number says which.
        (Strategy::Channel | Strategy::Tensor, _) | (Strategy::Group, Some(-1)) if scales == n => {
            [1, k]
        }
        (Strategy::Channel, _) => [1, 128.min(k)],
        (Strategy::Group, Some(size)) => {
            let group = group_of(size, k)
                .filter(|&group| k.is_multiple_of(group))
                .ok_or_else(|| {
                    parts.unsupported(format!("groups of {size} do not divide K = {k}"))
                })?;
            [1, group]
        }
        (Strategy::Block, _) => match arguments.block_structure {
            Some(block) if block.0 > 0 && block.1 > 0 => [block.0.min(n), block.1.min(k)],
            _ => return Err(parts.unsupported("blocks of no size")),
        },
        (strategy, size) => {
            return Err(parts.unsupported(format!(
                "weights with the strategy {strategy:?} and a group_size of {size:?}"
            )));
        }
    })
}

/// What inputs are rounded to.
fn inputs(parts: &Parts<'_>, scheme: &Scheme) -> Result<Option<InputRounding>> {
    let cache = ["k_proj", "v_proj"]
        .iter()
        .any(|name| parts.module.ends_with(name));
    if scheme.output_activations.is_some() && !cache {
        return Err(parts.unsupported("quantised outputs"));
    }
    let Some(arguments) = &scheme.input_activations else {
        return Ok(None);
    };
    if arguments.num_bits != 8 || !arguments.symmetric {
        let how = if arguments.symmetric {
            "symmetric"
        } else {
            "asymmetric"
        };
        let bits = arguments.num_bits;
        return Err(parts.unsupported(format!(
            "{how} inputs of {bits} bits (supported: 8, symmetric)"
        )));
    }
    let scale = match (arguments.strategy(), arguments.dynamic) {
        (Strategy::Token, Dynamic::Yes) => InputScale::Token,
        (Strategy::Group, Dynamic::Yes) => {
            let size = arguments.group_size.unwrap_or(-1);
            match group_of(size, parts.k) {
                Some(columns) => InputScale::Columns(columns),
                None => return Err(parts.unsupported(format!("inputs in groups of {size}"))),
            }
        }
        (Strategy::Tensor, Dynamic::No) => InputScale::Fixed(parts.get("input_scale")?.single()?),
        (strategy, dynamic) => {
            return Err(parts.unsupported(format!(
                "inputs with the strategy {strategy:?}, dynamic: {dynamic:?}"
            )));
        }
    };
    let number = match arguments.number {
        Number::Int => InputNumber::Int8,
        Number::Float => InputNumber::E4M3,
    };
    Ok(Some(InputRounding { number, scale }))
}

impl Reader for CompressedTensors {
    fn method(&self) -> String {
        let mut formats: Vec<&str> = self
            .0
            .config_groups
            .iter()
            .map(|(_, scheme)| self.0.format_of(scheme).name())
            .collect();
        formats.dedup();
        format!("compressed-tensors {}", formats.join(" and "))
    }

    fn describe(&self, parts: &Parts<'_>) -> Result<Option<StoredLinear>> {
        let scheme = self.scheme(parts)?;
        let codes = Codes::find(parts)?;
        let (codes, scheme, arguments) = match (codes, scheme) {
            (None, None) => return Ok(None),
            (None, Some(_)) => {
                // Scales beside plain weights ask for a rounding that nobody has done yet.
                return match parts.find(SCALE)? {
                    None => Ok(None),
                    Some(_) => Err(parts.unsupported(
                        "plain weights with scales beside them (saved before they were compressed)",
                    )),
                };
            }
            (Some(_), None) => {
                return Err(parts.unsupported(
                    "is quantised, but no group of the quantization_config names it",
                ));
            }
            (Some(codes), Some(scheme)) => match &scheme.weights {
                Some(arguments) => (codes, scheme, arguments),
                None => {
                    return Err(
                        parts.unsupported("is quantised, but its group says nothing about weights")
                    );
                }
            },
        };
        let form = match codes {
            Codes::Float(part) => {
                part.of_shape([parts.n, parts.k])?;
                if arguments.number != Number::Float || arguments.num_bits != 8 {
                    return Err(parts.unsupported(
                        "FP8 codes that the quantization_config calls something else",
                    ));
                }
                // What shares a scale, the strategy says: a block may well have more rows than the layer.
                let block = sharing(parts, arguments)?;
                fp8_form(parts, Some(block), &[SCALE])?
            }
            codes => self.integers(parts, codes, arguments)?,
        };
        let inputs = inputs(parts, scheme)?;
        Ok(Some(StoredLinear { form, inputs }))
    }

    fn read(
        &self,
        parts: &Parts<'_>,
        form: &PackedForm,
        rows: Range<usize>,
    ) -> Result<PackedWeight> {
        let Some(codes) = Codes::find(parts)? else {
            return Err(parts.fault("weight", "missing"));
        };
        let PackedForm {
            k, format, group, ..
        } = *form;
        let (groups, width) = (k.div_ceil(group), format.row_bytes(k));
        let order = match parts.find("weight_g_idx")? {
            Some(index) => order_of(&index.all::<i32>()?, group)
                .map_err(|what| parts.fault("weight_g_idx", what))?,
            None => None,
        };
        let (name, codes) = match codes {
            Codes::Float(_) => return read_fp8(parts, form, rows, &[SCALE]),
            Codes::Bytes(part) if format == CodeFormat::I8 && order.is_none() => {
                ("weight", part.block(rows.clone(), k, 0..k)?)
            }
            Codes::Bytes(part) => {
                let signed: Vec<u8> = part.block(rows.clone(), k, 0..k)?;
                let mut codes = vec![0; rows.len() * width];
                let middle = format.middle();
                let mut single = vec![0; k];
                for (row, out) in signed.chunks_exact(k).zip(codes.chunks_exact_mut(width)) {
                    for (j, code) in single.iter_mut().enumerate() {
                        let from = order.as_ref().map_or(j, |order| order[j] as usize);
                        *code = row[from].wrapping_add(middle);
                        if format == CodeFormat::U4 && *code > 15 {
                            return Err(part.fault(format!(
                                "the code {} has more than four bits",
                                row[from].cast_signed()
                            )));
                        }
                    }
                    format.pack_row(&single, out);
                }
                ("weight", codes)
            }
            Codes::Packed(part) => {
                let bits = format.bits();
                let words_per_row = k.div_ceil(32 / bits);
                let words: Vec<u32> = part.block(rows.clone(), words_per_row, 0..words_per_row)?;
                let mut codes = vec![0; rows.len() * width];
                let (mut single, mut ordered) = (vec![0; k], vec![0; k]);
                for (row, out) in words
                    .chunks_exact(words_per_row)
                    .zip(codes.chunks_exact_mut(width))
                {
                    unpack(row, bits as u32, &mut single);
                    for (j, code) in ordered.iter_mut().enumerate() {
                        let from = order.as_ref().map_or(j, |order| order[j] as usize);
                        *code = canonical(format, single[from]);
                    }
                    format.pack_row(&ordered, out);
                }
                ("weight_packed", codes)
            }
        };
        let blocks = rows.start / form.scale_rows..rows.end.div_ceil(form.scale_rows);
        let weight = PackedWeight {
            n: rows.len(),
            k,
            format,
            group,
            scale_rows: form.scale_rows.min(rows.len()),
            codes,
            scales: parts.get(SCALE)?.scales(blocks, groups, 0..groups)?,
            levels: self.levels(parts, form, &rows)?,
            order,
        };
        parts.checked(name, weight)
    }
}
