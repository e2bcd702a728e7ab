//! Scoring a text with a loaded variant.

use super::plan::QualityPlan;
use super::runner::Runner;
use crate::engine::Limits;
use crate::error::{Error, Result};
use crate::model::{Model, OriginKind, TokenisedText, tiny_text};
use crate::quality::{Text, TextFormat, perplexity};
use crate::results::record::{self, Perplexity, QualityTask};

/// A text as one model sees it.
pub(super) struct ScoredText {
    pub(super) tokens: TokenisedText,
    pub(super) task: QualityTask,
    pub(super) format: TextFormat,
}

/// The name that stands for WikiText-2 from the hub, unless a file has it.
const WIKITEXT: &str = "wikitext2";
/// Tokens that are scored side by side: whole segments, as many as fit.
const TOKENS_AT_ONCE: usize = 4096;

/// The text of a plan: its file, or the one that comes with `tiny`.
///
/// # Errors
/// If there is none or it cannot be read.
fn read_text(plan: &QualityPlan, model: &Model) -> Result<Text> {
    match &plan.text {
        Some(path) if path.as_os_str() == WIKITEXT && !path.exists() => Text::wikitext2(),
        Some(path) => Text::read(path, plan.format),
        None if model.origin.kind == OriginKind::Embedded => {
            Ok(Text::new("tiny held-out", tiny_text()))
        }
        None => Err(Error::Usage(format!(
            "no text to score with {}: give --text FILE",
            model.name
        ))),
    }
}

pub(super) fn prepare(plan: &QualityPlan, model: &Model) -> Result<ScoredText> {
    let text = read_text(plan, model)?;
    let tokenizer = model.tokenizer.as_ref().ok_or_else(|| {
        Error::Config(format!(
            "{} has no tokenizer, so no text can be scored: give --tokenizer FILE",
            model.name
        ))
    })?;
    if plan.protocol.context > model.config.max_positions {
        return Err(Error::Config(format!(
            "segments of {} tokens exceed the context of {}, which is {}",
            plan.protocol.context, model.name, model.config.max_positions
        )));
    }
    let tokens = tokenizer.encode_text(&text.content, true)?;
    let segments = plan.protocol.cut(&tokens.ids)?.len();
    // The digest is of what is scored, so that another number of segments is another point.
    let end = tokens.ends[segments * plan.protocol.context - 1];
    let scored = Text {
        content: text.content[..end].to_owned(),
        ..text
    };
    let task = QualityTask {
        protocol: plan.protocol.name().to_owned(),
        context: plan.protocol.context,
        text: record::Text {
            name: scored.name.clone(),
            digest: scored.digest(),
        },
    };
    Ok(ScoredText {
        tokens,
        task,
        format: scored.format,
    })
}

/// Scores a text on an engine that holds whatever fits [`TOKENS_AT_ONCE`].
pub(super) fn run(
    runner: &mut Runner,
    plan: &QualityPlan,
    text: &ScoredText,
    chunk: usize,
    progress: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Perplexity> {
    let context = plan.protocol.context;
    let segments = plan.protocol.cut(&text.tokens.ids)?.len();
    let slots = (TOKENS_AT_ONCE / context).clamp(1, segments);
    let engine = runner.own(Limits::new(slots, context, chunk))?;
    let scored = perplexity(engine, &text.tokens, &plan.protocol, progress)?;
    Ok(Perplexity {
        segments: scored
            .segments
            .iter()
            .map(|s| record::Segment {
                nll: s.nll,
                tokens: s.tokens,
            })
            .collect(),
        tokens_total: scored.tokens_total,
        bytes_scored: Some(scored.bytes_scored),
        divergence: None,
    })
}
