//! Perplexity by the protocol of the GPTQ, AWQ and SmoothQuant papers.
//!
//! The text is tokenised once, with whatever the tokenizer adds at its start, and cut into segments of one context
//! each; a last, shorter one is dropped. Each segment starts at position 0 and predicts its tokens after the first.
//! Perplexity is `exp` of the mean loss (natural logarithm) over segments, which have equal lengths (IST-DASLab/gptq
//! `llama.py`, llm-awq `entry.py`).

use crate::engine::{Engine, Prompt};
use crate::error::{Error, Result};
use crate::model::TokenisedText;

/// What is scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// Tokens of a segment.
    pub context: usize,
    /// At most this many segments, from the start; all where `None`.
    pub segments: Option<usize>,
}

/// The name of this protocol.
const NAME: &str = "gptq";

/// One scored segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment {
    /// Sum of the negative log-likelihoods of its tokens after the first, in nats.
    pub nll: f64,
    /// How many those are.
    pub tokens: u64,
}

/// The losses of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// In the order of the text.
    pub segments: Vec<Segment>,
    /// Tokens of the whole text.
    pub tokens_total: u64,
    /// UTF-8 bytes that the scored tokens stand for.
    pub bytes_scored: u64,
}

impl Protocol {
    /// Its name in records.
    pub const fn name(&self) -> &'static str {
        NAME
    }

    /// The segments of a tokenised text.
    ///
    /// # Errors
    /// If the text is shorter than one segment or the context cannot hold two tokens.
    pub fn cut<'a>(&self, ids: &'a [u32]) -> Result<Vec<&'a [u32]>> {
        if self.context < 2 {
            return Err(Error::Usage(
                "a segment needs at least 2 tokens, for it predicts all but its first: raise --context (of a study, --ppl-context)".into(),
            ));
        }
        let whole = ids
            .chunks_exact(self.context)
            .take(self.segments.unwrap_or(usize::MAX));
        let segments: Vec<&[u32]> = whole.collect();
        if segments.is_empty() {
            return Err(Error::Config(format!(
                "the text has {} tokens, fewer than one segment of {}: give a longer text or a smaller --context (of a study, --ppl-context)",
                ids.len(),
                self.context
            )));
        }
        Ok(segments)
    }
}

/// Scores `text` on `engine`, as many segments at a time as it has slots. `progress` is told segments done and in all,
/// and may stop the work.
///
/// # Errors
/// If the text is too short, or a loss is not finite.
pub fn perplexity(
    engine: &mut Engine,
    text: &TokenisedText,
    protocol: &Protocol,
    mut progress: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Scored> {
    let cut = protocol.cut(&text.ids)?;
    let mut segments = Vec::with_capacity(cut.len());
    let mut bytes = 0;
    progress(0, cut.len())?;
    for batch in cut.chunks(engine.limits().slots) {
        let prompts: Vec<Prompt<'_>> = batch
            .iter()
            .enumerate()
            .map(|(slot, tokens)| Prompt {
                slot,
                start: 0,
                tokens,
            })
            .collect();
        for log_probs in engine.log_probs(&prompts)? {
            let nll = -log_probs.iter().map(|&p| f64::from(p)).sum::<f64>();
            let first = segments.len() * protocol.context;
            segments.push(Segment {
                nll,
                tokens: log_probs.len() as u64,
            });
            bytes += text.ends[first + protocol.context - 1] - text.ends[first];
        }
        progress(segments.len(), cut.len())?;
    }
    Ok(Scored {
        segments,
        tokens_total: text.ids.len() as u64,
        bytes_scored: bytes as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_do_not_overlap_and_the_tail_is_dropped() {
        let ids: Vec<u32> = (0..11).collect();
        let protocol = |context, segments| Protocol { context, segments };
        assert_eq!(
            protocol(4, None).cut(&ids).unwrap(),
            [&[0, 1, 2, 3][..], &[4, 5, 6, 7]]
        );
        assert_eq!(protocol(4, Some(1)).cut(&ids).unwrap().len(), 1);
        assert_eq!(protocol(12, None).cut(&ids).unwrap_err().exit_code(), 64);
        assert_eq!(protocol(1, None).cut(&ids).unwrap_err().exit_code(), 2);
    }
}
