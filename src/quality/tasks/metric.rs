//! What is computed of the answers to one document, and of all documents' values.

use super::keys::Keys;
use super::pattern::Pattern;
use super::text;
use crate::error::Result;
use crate::stats;

/// What a task asks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The log-likelihood of each of several choices.
    Choices,
    /// The log-likelihood of one continuation.
    LogLikelihood,
    /// A text.
    Generated,
}

/// One figure of a task.
#[derive(Debug, Clone)]
pub struct Metric(Kind);

#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Whether the likeliest choice is right; of one continuation, whether greedy decoding gives it.
    Acc,
    /// The same by log-likelihood per character of the choice.
    AccNorm,
    /// The same per UTF-8 byte.
    AccBytes,
    /// The same by how much likelier the context makes the choice.
    AccMutualInfo,
    /// `exp` of the mean negative log-likelihood per document.
    Perplexity,
    /// Whether a text equals the reference; of choices, whether greedy decoding gives the right one.
    ExactMatch(Matching),
    /// The harmonic mean of precision and recall of words.
    F1,
    /// The same of the longest common subsequence of words.
    RougeL,
}

/// What is overlooked when texts are compared.
#[derive(Debug, Clone, Default)]
pub(super) struct Matching {
    regexes: Vec<Pattern>,
    case: bool,
    punctuation: bool,
    numbers: bool,
}

impl Metric {
    /// The metrics of a task that names none.
    pub(super) fn usual(output: Output) -> Vec<Self> {
        let kinds = match output {
            Output::Choices => vec![Kind::Acc, Kind::AccNorm],
            Output::LogLikelihood => vec![Kind::Perplexity, Kind::Acc],
            Output::Generated => vec![Kind::ExactMatch(Matching::default())],
        };
        kinds.into_iter().map(Self).collect()
    }

    pub(super) fn new(mut keys: Keys, output: Output) -> Result<Self> {
        let name = keys.required("metric")?;
        let kind = match (name.as_str(), output) {
            ("acc", Output::Choices | Output::LogLikelihood) => Kind::Acc,
            ("acc_norm", Output::Choices) => Kind::AccNorm,
            ("acc_bytes", Output::Choices) => Kind::AccBytes,
            ("acc_mutual_info", Output::Choices) => Kind::AccMutualInfo,
            ("perplexity", Output::LogLikelihood) => Kind::Perplexity,
            ("exact_match", Output::Choices) => Kind::ExactMatch(Matching::default()),
            ("exact_match", Output::Generated) => {
                // The evaluate library's metric of this name has the same options.
                keys.ignore(&["hf_evaluate"]);
                Kind::ExactMatch(Matching::new(&mut keys)?)
            }
            ("f1", Output::Generated) => Kind::F1,
            ("rougeL", Output::Generated) => Kind::RougeL,
            _ => {
                let known = match output {
                    Output::Choices => "acc, acc_norm, acc_bytes, acc_mutual_info, exact_match",
                    Output::LogLikelihood => "acc, perplexity",
                    Output::Generated => "exact_match, f1, rougeL",
                };
                return Err(keys.fault(
                    "metric",
                    format!("'{name}' is not supported for this output_type; known are {known}"),
                ));
            }
        };
        let metric = Self(kind);
        let usual = metric.aggregation();
        if let Some(aggregation) = keys.text("aggregation")?
            && aggregation != usual
        {
            return Err(keys.fault(
                "aggregation",
                format!("'{aggregation}' is not supported for {name}, only {usual}"),
            ));
        }
        if let Some(up) = keys.flag("higher_is_better")?
            && up != metric.higher_is_better()
        {
            return Err(keys.fault("higher_is_better", format!("is the other way for {name}")));
        }
        keys.finish()?;
        Ok(metric)
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.0
    }

    /// Its name in results.
    pub fn name(&self) -> &'static str {
        match self.0 {
            Kind::Acc => "acc",
            Kind::AccNorm => "acc_norm",
            Kind::AccBytes => "acc_bytes",
            Kind::AccMutualInfo => "acc_mutual_info",
            Kind::Perplexity => "perplexity",
            Kind::ExactMatch(_) => "exact_match",
            Kind::F1 => "f1",
            Kind::RougeL => "rougeL",
        }
    }

    /// Whether more is better.
    pub fn higher_is_better(&self) -> bool {
        !matches!(self.0, Kind::Perplexity)
    }

    fn aggregation(&self) -> &'static str {
        match self.0 {
            Kind::Perplexity => "perplexity",
            _ => "mean",
        }
    }

    /// The figure over all documents and its standard error, which a single document does not have.
    ///
    /// Means have the sample's standard error. A perplexity has that of the mean logarithm times the value, where lm_eval
    /// draws from the documents with replacement; both estimate the same.
    pub(super) fn aggregate(&self, values: &[f64]) -> (f64, Option<f64>) {
        let mean = stats::mean(values).unwrap_or(f64::NAN);
        let error = stats::standard_error(values);
        match self.0 {
            Kind::Perplexity => {
                let perplexity = (-mean).exp();
                (perplexity, error.map(|e| e * perplexity))
            }
            _ => (mean, error),
        }
    }
}

impl Matching {
    fn new(keys: &mut Keys) -> Result<Self> {
        let regexes = keys.texts("regexes_to_ignore")?.unwrap_or_default();
        let compiled = regexes
            .iter()
            .map(|source| Pattern::new(source).map_err(|e| keys.fault("regexes_to_ignore", e)));
        Ok(Self {
            regexes: compiled.collect::<Result<_>>()?,
            case: keys.flag("ignore_case")?.unwrap_or(false),
            punctuation: keys.flag("ignore_punctuation")?.unwrap_or(false),
            numbers: keys.flag("ignore_numbers")?.unwrap_or(false),
        })
    }

    fn reduced(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for regex in &self.regexes {
            text = regex.replace(&text, "", 0);
        }
        if self.case {
            text = text.to_lowercase();
        }
        text.retain(|c| {
            !(self.punctuation && c.is_ascii_punctuation() || self.numbers && c.is_ascii_digit())
        });
        // The arrays that lm_eval compares hold strings of fixed width, which lose zero bytes at their end.
        text.truncate(text.trim_end_matches('\0').len());
        text
    }
}

impl Kind {
    /// The score of a generated text against one reference, between 0 and 1.
    pub(super) fn of_text(&self, text: &str, reference: &str) -> f64 {
        match self {
            Self::F1 => text::f1(text, reference),
            Self::RougeL => text::rouge_l(text, reference),
            Self::ExactMatch(matching) => {
                f64::from(matching.reduced(text) == matching.reduced(reference))
            }
            _ => f64::NAN,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn metric(value: serde_json::Value, output: Output) -> Result<Metric> {
        Metric::new(Keys::of(Path::new("t.yaml"), "metric_list", value)?, output)
    }

    #[test]
    fn gsm8k_answers_match_by_their_number() {
        let exact = metric(
            json!({
                "metric": "exact_match", "aggregation": "mean", "higher_is_better": true, "ignore_case": true,
                "ignore_punctuation": false, "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]
            }),
            Output::Generated,
        )
        .unwrap();
        let score = |text| {
            exact
                .kind()
                .of_text(text, "9 * 2 = $<<9*2=1800>>1800\n#### 1,800")
        };
        assert_eq!(score("1800"), 1.0);
        assert_eq!(score("$1,800."), 1.0);
        assert_eq!(score("180"), 0.0);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (value, said) in [
            (json!({"metric": "bleu"}), "'bleu'"),
            (
                json!({"metric": "exact_match", "aggregation": "median"}),
                "'median'",
            ),
            (
                json!({"metric": "exact_match", "ignore_accents": true}),
                "ignore_accents",
            ),
            (json!({"aggregation": "mean"}), "metric: is missing"),
        ] {
            let error = metric(value, Output::Generated).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn figures_have_the_errors_of_their_samples() {
        let acc = metric(json!({"metric": "acc"}), Output::Choices).unwrap();
        let (mean, error) = acc.aggregate(&[1.0, 0.0, 1.0, 1.0]);
        assert_eq!(mean, 0.75);
        assert!((error.unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(acc.aggregate(&[1.0]).1, None);
        let ppl = metric(json!({"metric": "perplexity"}), Output::LogLikelihood).unwrap();
        let (value, error) = ppl.aggregate(&[-1.0, -3.0]);
        assert!((value - 2_f64.exp()).abs() < 1e-12);
        assert!((error.unwrap() - 2_f64.exp()).abs() < 1e-12);
    }
}
