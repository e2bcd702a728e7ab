//! A text scored outside a study, as `ppl --json` prints it: `candlepower.perplexity/1`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::study::{Delta, Divergence, Perplexity};

/// The versions of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.perplexity/1")]
    V1,
}

/// What was scored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subject {
    /// The model's name.
    pub model: String,
    /// The variant of it.
    pub variant: String,
    /// The type of activations.
    pub activation_dtype: String,
    /// The format of the KV cache; `auto` is the type of the activations.
    pub kv_cache: String,
    /// `cuda` or `cpu`.
    pub device: String,
}

/// The perplexity of one variant on one text, alone or against a base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScoredText {
    /// The version of this document.
    pub schema: Version,
    /// What was scored.
    #[serde(flatten)]
    pub subject: Subject,
    /// How the text was cut and scored.
    pub protocol: String,
    /// Tokens of context that a segment offers.
    pub context: usize,
    /// Tokens from one window to the next, where the protocol leaves that open.
    pub stride: Option<usize>,
    /// The text's name.
    pub text: String,
    /// A hash of what is scored of it.
    pub text_digest: String,
    /// exp(mean negative log-likelihood per token).
    pub value: f64,
    /// Its standard error over segments, by the delta method; null for one segment.
    pub stderr: Option<f64>,
    /// Its standard error as if tokens were independent, as llama.cpp estimates it.
    pub stderr_over_tokens: Option<f64>,
    /// The sum of negative log-likelihoods, in nats.
    pub nll_sum: f64,
    /// Tokens that were predicted.
    pub tokens_scored: u64,
    /// Segments that were scored.
    pub segments: usize,
    /// Tokens of the whole text.
    pub tokens_total: u64,
    /// Bits per byte of the scored text: comparable across tokenizers.
    pub bits_per_byte: Option<f64>,
    /// exp(sum of negative log-likelihoods / bytes of text), where the protocol counts bytes.
    pub byte_perplexity: Option<f64>,
    /// exp(sum of negative log-likelihoods / words of text), where the protocol counts words.
    pub word_perplexity: Option<f64>,
    /// The sum of negative log-likelihoods of each segment, in nats.
    pub segment_nll: Vec<f64>,
    /// The scored tokens of each segment.
    pub segment_tokens: Vec<u64>,
    /// The variant that it is compared with; null without one, as all that follows.
    pub base: Option<String>,
    /// The base's perplexity.
    pub base_value: Option<f64>,
    /// The base's sum of negative log-likelihoods of each segment, in nats.
    pub base_segment_nll: Option<Vec<f64>>,
    /// 100 × the base's perplexity over this one.
    pub recovery_percent: Option<f64>,
    /// The paired difference to the base on the same segments.
    pub delta_vs_base: Option<Delta>,
    /// How far the predictions are from the base's.
    pub divergence: Option<Divergence>,
    /// How far the base's predictions are from its own in another batch size; null too where the base had been scored
    /// before.
    pub noise_floor: Option<Divergence>,
}

impl ScoredText {
    /// The document of `found`, and of the base's name and figures where there was one.
    pub fn new(subject: Subject, found: Perplexity, base: Option<(String, Perplexity)>) -> Self {
        let (name, base) = base.unzip();
        let (base_value, base_segment_nll, noise_floor) = match base {
            Some(base) => (Some(base.value), Some(base.segment_nll), base.noise_floor),
            None => (None, None, None),
        };
        Self {
            schema: Version::V1,
            subject,
            protocol: found.protocol,
            context: found.context,
            stride: found.stride,
            text: found.text.name,
            text_digest: found.text.digest,
            value: found.value,
            stderr: found.stderr,
            stderr_over_tokens: found.stderr_over_tokens,
            nll_sum: found.nll_sum,
            tokens_scored: found.tokens_scored,
            segments: found.segments,
            tokens_total: found.tokens_total,
            bits_per_byte: found.bits_per_byte,
            byte_perplexity: found.byte_perplexity,
            word_perplexity: found.word_perplexity,
            segment_nll: found.segment_nll,
            segment_tokens: found.segment_tokens,
            base: name,
            base_value,
            base_segment_nll,
            recovery_percent: found.recovery_percent,
            delta_vs_base: found.delta_vs_base,
            divergence: found.divergence,
            noise_floor,
        }
    }
}
