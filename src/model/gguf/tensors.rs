//! The tensors of a GGUF file under their names in the transformers library, in its row order.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;

use super::blocks::BlockType;
use super::config::ROPE_FACTORS;
use super::file::{GgufFile, TensorInfo};
use super::packed;
use crate::error::{Error, Result};
use crate::model::blob::Blob;
use crate::model::config::{Family, ModelConfig};
use crate::model::host::{HostSliceMut, read_plain};
use crate::model::quantised::StoredLinear;
use crate::scheme::{BLOCK, DType, PackedForm, PackedWeight};

/// Elements that are decoded at a time, but at least a row.
const CHUNK: usize = 64 << 10;

/// The weights of an opened file.
#[derive(Debug)]
pub(in crate::model) struct GgufWeights {
    blob: Blob,
    tensors: HashMap<String, Tensor>,
    /// What of the file the configuration does not name, by the file's names, in order.
    unused: Vec<String>,
}

#[derive(Debug)]
struct Tensor {
    info: TensorInfo,
    /// The head dimension, if the rows of each head are interleaved.
    interleaved: Option<usize>,
}

impl GgufWeights {
    /// Takes what `config` names out of the file's table; what is missing shows when the weights are checked.
    pub(super) fn new(file: GgufFile, config: &ModelConfig) -> Self {
        let GgufFile {
            blob, mut tensors, ..
        } = file;
        let mut named = HashMap::new();
        for wanted in config.tensors() {
            let Some(info) = gguf_name(&wanted.name).and_then(|name| tensors.remove(&name)) else {
                continue;
            };
            // Llama files are written for a rotation of neighbouring components, Qwen files for that of halves.
            let rotated = wanted.name.contains(".q_proj.") || wanted.name.contains(".k_proj.");
            let interleaved =
                (rotated && config.family == Family::Llama).then_some(config.head_dim);
            named.insert(wanted.name, Tensor { info, interleaved });
        }
        // These went into the configuration.
        tensors.remove(ROPE_FACTORS);
        let mut unused: Vec<String> = tensors.into_keys().collect();
        unused.sort_unstable();
        Self {
            blob,
            tensors: named,
            unused,
        }
    }

    /// What of the file is not used, by the file's own names.
    pub(in crate::model) fn unused(&self) -> Vec<&str> {
        self.unused.iter().map(String::as_str).collect()
    }

    pub(in crate::model) fn path(&self) -> &Path {
        self.blob.path()
    }

    pub(in crate::model) fn file_bytes(&self) -> u64 {
        self.blob.len()
    }

    pub(in crate::model) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(in crate::model) fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.find(name)?.info.shape.clone())
    }

    pub(in crate::model) fn stored(&self, name: &str) -> Result<String> {
        Ok(self.find(name)?.info.kind.name.to_owned())
    }

    pub(in crate::model) fn precision(&self, name: &str) -> Result<DType> {
        Ok(self.find(name)?.info.kind.plain.unwrap_or(DType::F32))
    }

    /// Rows of `width` elements, for a range that has been checked.
    pub(in crate::model) fn read_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        width: usize,
        mut out: HostSliceMut<'_>,
    ) -> Result<()> {
        let Tensor { info, interleaved } = self.find(name)?;
        let row_bytes = info.kind.bytes_of(width);
        let offset_of = |row: usize| info.offset + row as u64 * row_bytes as u64;
        if let (Some(dtype), None) = (info.kind.plain, interleaved) {
            return read_plain(&self.blob, offset_of(rows.start), dtype, out);
        }
        let vector = info.shape.len() == 1;
        // Rows that lie one after another in the file are read together.
        let step = match interleaved {
            Some(_) => 1,
            None => (CHUNK / width).max(1),
        };
        let mut stored = vec![0; step.min(rows.len()) * row_bytes];
        let mut values = vec![0.0; step.min(rows.len()) * width];
        for first in rows.clone().step_by(step) {
            let count = step.min(rows.end - first);
            let place = match interleaved {
                Some(head_dim) if !vector => interleaved_row(first, *head_dim),
                _ => first,
            };
            let stored = &mut stored[..count * row_bytes];
            let values = &mut values[..count * width];
            self.blob.read_exact_at(offset_of(place), stored)?;
            info.kind.decode(stored, values);
            let at = (first - rows.start) * width;
            match interleaved {
                // A bias has one element where the matrix has a row.
                Some(head_dim) if vector => out.put(at, &halved(values, *head_dim)),
                _ => out.put(at, values),
            }
        }
        Ok(())
    }

    /// What is stored under the name of this weight, if it is in blocks that are kept packed.
    pub(in crate::model) fn linear(&self, name: &str) -> Option<StoredLinear> {
        let Tensor { info, .. } = self.tensors.get(name)?;
        let [n, k] = *info.shape.as_slice() else {
            return None;
        };
        // The table of embeddings is looked up by rows.
        if name == "model.embed_tokens.weight" {
            return None;
        }
        let (format, levels) = packed::form_of(info.kind)?;
        let form = PackedForm {
            n,
            k,
            format,
            group: BLOCK.min(k),
            scale_rows: 1,
            scales: DType::F16,
            levels,
            ordered: false,
        };
        Some(StoredLinear { form, inputs: None })
    }

    /// A weight of that form.
    pub(in crate::model) fn read_packed(
        &self,
        name: &str,
        form: &PackedForm,
    ) -> Result<PackedWeight> {
        let Tensor { info, interleaved } = self.find(name)?;
        let row_bytes = info.kind.bytes_of(form.k);
        let mut blocks = packed::Blocks::new(form);
        let mut stored = vec![0; row_bytes];
        for row in 0..form.n {
            let place = interleaved.map_or(row, |head_dim| interleaved_row(row, head_dim));
            let offset = info.offset + place as u64 * row_bytes as u64;
            self.blob.read_exact_at(offset, &mut stored)?;
            blocks.push_row(&stored);
        }
        let weight = blocks.finish();
        let fault = |what| Error::data(self.blob.path(), format!("tensor '{name}': {what}"));
        weight.check().map_err(fault)?;
        Ok(weight)
    }

    /// The type that a weight is kept in unless it is packed.
    pub(in crate::model) fn kept_type(&self, name: &str) -> Result<DType> {
        Ok(self.find(name)?.info.kind.plain.unwrap_or(DType::BF16))
    }

    /// How the linear layers are stored and what becomes of them where they stay as they are, for records.
    pub(in crate::model) fn method(&self) -> String {
        self.in_words(|kind| {
            let kept = kind.plain.is_some() || packed::form_of(kind).is_some();
            format!("{}{}", kind.name, if kept { "" } else { " as bf16" })
        })
    }

    /// How the linear layers are stored.
    pub(in crate::model) fn kinds(&self) -> String {
        self.in_words(|kind| kind.name.to_owned())
    }

    fn in_words(&self, named: impl Fn(&BlockType) -> String) -> String {
        let linear = self.tensors.iter();
        let linear = linear.filter(|(name, _)| name.contains("_proj.weight"));
        let kinds: BTreeSet<String> = linear.map(|(_, tensor)| named(tensor.info.kind)).collect();
        let kinds: Vec<String> = kinds.into_iter().collect();
        format!("gguf {}", kinds.join(", "))
    }

    fn find(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            let own = gguf_name(name).unwrap_or_else(|| name.to_owned());
            Error::data(
                self.blob.path(),
                format!("tensor '{own}' ('{name}'): missing"),
            )
        })
    }
}

/// Where the file keeps row `row`: component `i` of the first half of a head is its row `2 i`, of the second `2 i + 1`.
const fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, component) = (row / head_dim, row % head_dim);
    let (half, i) = (component / (head_dim / 2), component % (head_dim / 2));
    head * head_dim + 2 * i + half
}

fn halved(values: &[f32], head_dim: usize) -> Vec<f32> {
    (0..values.len())
        .map(|row| values[interleaved_row(row, head_dim)])
        .collect()
}

/// The file's name for a tensor.
fn gguf_name(name: &str) -> Option<String> {
    let global = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(global) = global {
        return Some(global.to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, part) = rest.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_to_the_files_own() {
        let mapped = ["model.layers.3.self_attn.q_proj.bias", "lm_head.weight"].map(gguf_name);
        assert_eq!(
            mapped.map(Option::unwrap),
            ["blk.3.attn_q.bias", "output.weight"]
        );
        assert_eq!(gguf_name("model.layers.3.self_attn.rotary.inv_freq"), None);
    }

    #[test]
    fn interleaved_rows_return_to_halves() {
        let file: Vec<f32> = [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
            .map(|x| x as f32)
            .into();
        let expected: Vec<f32> = (0..16).map(|x| x as f32).collect();
        assert_eq!(halved(&file, 8), expected);
    }
}
