//! Questions that tables and charts ask a study.

use super::names;
use super::record::Cell;
use super::study::{Energy, EnergyUse, QualityAxis, Speed, Study, Variant};

/// A figure on the quality axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Perplexity, bits per byte, nats per token, or percent.
    pub value: f64,
    /// Its standard error over segments.
    pub stderr: Option<f64>,
}

impl QualityAxis {
    /// The name in running text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::BitsPerByte => "bits per byte",
            Self::KlDivergence => "KL divergence from the base",
            Self::TaskError => "task error in % (100 − task average)",
        }
    }

    /// The name at the head of a column.
    pub const fn short(self) -> &'static str {
        match self {
            Self::Perplexity => "ppl",
            Self::BitsPerByte => "bits/B",
            Self::KlDivergence => "KL",
            Self::TaskError => "err %",
        }
    }
}

impl Study {
    /// Where a variant stands on the study's quality axis.
    pub fn quality(&self, variant: &Variant) -> Option<Quality> {
        variant.quality(self.quality_axis)
    }

    /// The axis of how well the text itself is predicted: bits per byte as soon as two models cut text differently.
    pub fn text_axis(&self) -> QualityAxis {
        let models = || self.models.iter();
        let first = models().next().map(|model| &model.tokenizer_digest);
        if models().any(|model| Some(&model.tokenizer_digest) != first) {
            QualityAxis::BitsPerByte
        } else {
            QualityAxis::Perplexity
        }
    }

    /// Every cell that some variant has, in the order of depth, prompt, generated tokens and batch.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = self
            .variants
            .iter()
            .flat_map(|variant| variant.speed.iter().map(Speed::cell))
            .collect();
        cells.sort_by_key(|cell| (cell.depth, cell.prompt, cell.generate, cell.batch));
        cells.dedup();
        cells
    }

    /// The shortest name that tells a variant from the others: the engine and the model are added where they differ.
    pub fn label(&self, variant: &Variant) -> String {
        let mut label = variant.name.clone();
        if let Some(format) = &variant.kv_cache {
            label = format!("{label} · kv {format}");
        }
        if self
            .variants
            .iter()
            .any(|other| other.engine != variant.engine)
        {
            label = format!("{label} · {}", variant.engine);
        }
        if self.models.len() > 1 {
            label = format!("{} {label}", self.short_name(&variant.model));
        }
        label
    }

    /// The shortest name that tells a model from the others.
    fn short_name(&self, name: &str) -> String {
        let all = self.models.iter();
        let all: Vec<(&str, &str)> = all
            .map(|model| (model.name.as_str(), model.digest.as_str()))
            .collect();
        let own = all.iter().position(|(other, _)| *other == name);
        let short = own.map(|place| names::shortest(&all).swap_remove(place));
        short.unwrap_or_else(|| name.to_owned())
    }

    /// The variant that this one is compared with.
    pub fn base_of(&self, variant: &Variant) -> Option<&Variant> {
        self.variants
            .iter()
            .find(|other| other.base && other.model == variant.model)
    }

    /// The names of the models, with commas.
    pub fn model_names(&self) -> String {
        let names: Vec<&str> = if self.models.is_empty() {
            self.model.iter().map(|model| model.name.as_str()).collect()
        } else {
            self.models
                .iter()
                .map(|model| model.name.as_str())
                .collect()
        };
        names.join(", ")
    }

    /// The command as one could paste it into a shell.
    pub fn command_line(&self) -> String {
        command_line(&self.command)
    }
}

impl Variant {
    /// Where it stands on an axis.
    pub fn quality(&self, axis: QualityAxis) -> Option<Quality> {
        let perplexity = self.perplexity.as_ref();
        let (value, stderr) = match axis {
            QualityAxis::Perplexity => (perplexity?.value, perplexity?.stderr),
            QualityAxis::BitsPerByte => {
                let perplexity = perplexity?;
                (perplexity.bits_per_byte?, perplexity.bits_per_byte_stderr)
            }
            QualityAxis::KlDivergence if self.base => perplexity.map(|_| (0.0, None))?,
            QualityAxis::KlDivergence => {
                let divergence = perplexity?.divergence?;
                (divergence.mean_kl, divergence.stderr)
            }
            QualityAxis::TaskError => {
                let average = self.task_average?;
                let stderr = average.stderr.map(|stderr| 100.0 * stderr);
                (100.0 * (1.0 - average.value), stderr)
            }
        };
        Some(Quality { value, stderr })
    }

    /// The measurement in one cell.
    pub fn at(&self, cell: Cell) -> Option<&Speed> {
        self.speed.iter().find(|speed| speed.cell() == cell)
    }
}

impl Speed {
    /// The shape of the work.
    pub fn cell(&self) -> Cell {
        Cell {
            batch: self.batch,
            prompt: self.prompt_tokens,
            generate: self.generated_tokens,
            depth: self.depth,
        }
    }

    /// Whether some utilisation names the limit that binds.
    pub(super) fn has_limit(&self) -> bool {
        let both = [&self.prefill_utilisation, &self.decode_utilisation];
        both.into_iter()
            .flatten()
            .any(|utilisation| utilisation.limit.is_some())
    }

    /// The energy, where it was measured.
    pub fn energy_use(&self) -> Option<&EnergyUse> {
        match &self.energy {
            Some(Energy::Measured(energy)) => Some(energy.as_ref()),
            _ => None,
        }
    }
}

/// Words as one could paste them into a shell.
pub(super) fn command_line(command: &[String]) -> String {
    let quoted: Vec<String> = command.iter().map(|word| shell_quoted(word)).collect();
    quoted.join(" ")
}

/// A word as a POSIX shell reads it back.
fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;
    use crate::results::study::Model;

    #[test]
    fn a_command_can_be_pasted() {
        let quoted = ["study", "--out=a b", "it's", "", "512-8192*2"].map(shell_quoted);
        assert_eq!(
            quoted,
            ["study", "'--out=a b'", r"'it'\''s'", "''", "'512-8192*2'"]
        );
    }

    #[test]
    fn labels_say_what_differs_and_no_more() {
        let mut study = fixture::study();
        assert_eq!(study.label(&study.variants[1]), "int8");
        study.variants[0].engine = "candle".to_owned();
        assert_eq!(study.label(&study.variants[0]), "bf16 · candle");
        assert_eq!(study.label(&study.variants[1]), "int8 · candlepower");
        study.variants[1].kv_cache = Some("fp8".to_owned());
        assert_eq!(
            study.label(&study.variants[1]),
            "int8 · kv fp8 · candlepower"
        );
    }

    #[test]
    fn models_of_one_last_name_have_labels_of_their_own() {
        let mut study = fixture::study();
        let first = study.model.clone().unwrap();
        for (variant, name) in study.variants.iter_mut().zip(["a/model", "b/model"]) {
            variant.model = name.to_owned();
            study.models.push(Model {
                name: name.to_owned(),
                ..first.clone()
            });
        }
        assert_eq!(study.label(&study.variants[0]), "a/model bf16");
        assert_eq!(study.label(&study.variants[1]), "b/model int8");
    }
}
