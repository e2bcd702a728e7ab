//! A checkpoint's scheme in the terms of a record.

use std::collections::BTreeMap;

use super::StoredLinear;
use crate::scheme::{DType, LevelForm, PackedForm};

/// What the linear layers of a checkpoint are stored in, by most of their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredScheme {
    /// How it came about, such as `gptq` or `gguf Q4_1`, with what is not as in the other layers.
    pub method: String,
    /// What the numbers are in the file, whatever they stay as: `method` without what becomes of blocks that have no packed
    /// form.
    pub source: String,
    /// Bits of a code, or of a number where nothing is quantised.
    pub bits: usize,
    /// Columns per scale; `None` for whole rows, or where nothing is quantised.
    pub group: Option<usize>,
    /// Whether there are no zero points or offsets; `None` where nothing is quantised.
    pub symmetric: Option<bool>,
    /// Type of the scales, where there are any.
    pub scales: Option<DType>,
    /// What inputs are rounded to, such as `float` or `int8-per-token`.
    pub activations: String,
}

/// The scheme of linear layers: each with its number of weights and either its form or its plain type.
pub(in crate::model) fn summary(
    method: String,
    layers: impl Iterator<Item = (usize, Result<StoredLinear, DType>)>,
) -> StoredScheme {
    let mut kinds: BTreeMap<String, (usize, StoredScheme)> = BTreeMap::new();
    for (weights, stored) in layers {
        let scheme = one(stored);
        let entry = kinds.entry(in_words(&scheme)).or_insert((0, scheme));
        entry.0 += weights;
    }
    let most = kinds.iter().max_by_key(|(_, (weights, _))| *weights);
    let Some((words, (_, scheme))) = most else {
        return StoredScheme {
            source: method.clone(),
            method,
            ..one(Err(DType::F32))
        };
    };
    let others: Vec<&str> = kinds
        .keys()
        .filter(|other| *other != words)
        .map(String::as_str)
        .collect();
    let method = if others.is_empty() {
        method
    } else {
        format!("{method}, in part {}", others.join(" and "))
    };
    StoredScheme {
        source: method.clone(),
        method,
        ..scheme.clone()
    }
}

fn one(stored: Result<StoredLinear, DType>) -> StoredScheme {
    match stored {
        Err(dtype) => StoredScheme {
            method: String::new(),
            source: String::new(),
            bits: dtype.size() * 8,
            group: None,
            symmetric: None,
            scales: None,
            activations: "float".to_owned(),
        },
        Ok(StoredLinear { form, inputs }) => StoredScheme {
            method: String::new(),
            source: String::new(),
            bits: form.format.bits(),
            group: group(&form),
            symmetric: Some(matches!(
                form.levels,
                LevelForm::Symmetric | LevelForm::Codebook
            )),
            scales: Some(form.scales),
            activations: inputs.map_or_else(|| "float".to_owned(), |rounding| rounding.to_string()),
        },
    }
}

fn group(form: &PackedForm) -> Option<usize> {
    (form.group < form.k).then_some(form.group)
}

fn in_words(scheme: &StoredScheme) -> String {
    let group = scheme
        .group
        .map_or(String::new(), |g| format!(" in groups of {g}"));
    let levels = if scheme.symmetric == Some(false) {
        " asymmetric"
    } else {
        ""
    };
    let inputs = match scheme.activations.as_str() {
        "float" => String::new(),
        inputs => format!(" with inputs {inputs}"),
    };
    format!("{} bits{levels}{group}{inputs}", scheme.bits)
}
