//! Scoring a text with a loaded variant.

use super::base::BaseFile;
use super::plan::QualityPlan;
use super::runner::Runner;
use crate::engine::{Limits, Prompt};
use crate::error::{Error, Result};
use crate::model::{Model, OriginKind, tiny_text};
use crate::quality::{Layout, Rule, Segment, Text, TextFormat, Witness, perplexity};
use crate::results::record::{self, Perplexity, QualityTask, UnderLoad};

/// A text as one model sees it.
pub(super) struct ScoredText {
    pub(super) layout: Layout,
    pub(super) task: QualityTask,
    pub(super) format: TextFormat,
}

impl ScoredText {
    /// The tokens that are scored, one after another.
    pub(super) fn scored_ids(&self) -> Vec<u32> {
        let windows = self.layout.windows.iter();
        windows.flat_map(|w| w.scored().iter().copied()).collect()
    }
}

/// The name that stands for WikiText-2 from the hub, unless a file has it.
const WIKITEXT: &str = "wikitext2";
/// Tokens of a segment with the embedded model, whose text is short.
const TINY_CONTEXT: usize = 256;
/// Tokens that are scored side by side: whole windows, as many as fit.
const TOKENS_AT_ONCE: usize = 4096;
/// Tokens of the samples that show whether figures depend on what runs beside them.
const SAMPLED_TOKENS: usize = 2048;
/// And the fewest of a sequence, however many stand side by side.
const SHORTEST_PIECE: usize = 8;

/// The tokens of a segment that are usual for `rule`, or as many as all of `models` take; and a word on that, if they take
/// fewer.
pub fn usual_context<'a>(
    rule: Rule,
    models: impl IntoIterator<Item = &'a Model>,
) -> (usize, Option<String>) {
    let usual = rule.usual_context();
    let mut found = (usual, None);
    for model in models {
        let is_tiny = model.origin.kind == OriginKind::Embedded;
        let most = model.config.max_positions;
        if is_tiny && TINY_CONTEXT < found.0 {
            found = (TINY_CONTEXT, None);
        } else if most < found.0 {
            let name = &model.name;
            let note = format!(
                "segments of {most} tokens, the context of {name}: the {usual} that are usual for the protocol {rule} do \
                 not fit, and figures do not compare with those of {usual}"
            );
            found = (most, Some(note));
        }
    }
    found
}

/// The text of a plan: its file or folder, or the one that comes with `tiny`.
///
/// # Errors
/// If there is none or it cannot be read.
fn read_text(plan: &QualityPlan, model: &Model) -> Result<Text> {
    let reading = plan.reading();
    let path = plan.text.as_deref();
    let path = path.filter(|path| path.as_os_str() != WIKITEXT || path.exists());
    if path.is_none() && plan.field.is_some() {
        return Err(Error::Usage(
            "--field is for JSON lines: name their file with --text".into(),
        ));
    }
    match path {
        Some(path) => Text::read(path, &reading),
        None if plan.text.is_some() => Text::wikitext2(&reading),
        None if model.origin.kind == OriginKind::Embedded => {
            Text::of("tiny held-out", tiny_text(), &reading)
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
            "segments of {} tokens exceed the context of {}, which is {}: give a smaller --context (of a study, --ppl-context)",
            plan.protocol.context, model.name, model.config.max_positions
        )));
    }
    let layout = plan.protocol.lay_out(&text, tokenizer)?;
    let task = QualityTask {
        protocol: plan.protocol.name().to_owned(),
        context: plan.protocol.context,
        stride: plan.protocol.stride(),
        text: record::Text {
            name: text.name.clone(),
            // Of what is scored, so that another number of segments is another point.
            digest: layout.digest.clone(),
        },
        base: None,
    };
    Ok(ScoredText {
        layout,
        task,
        format: text.format,
    })
}

/// What scoring a text does beside it.
#[derive(Clone, Copy)]
pub(super) enum Role<'a> {
    /// Nothing.
    Alone,
    /// Leaves the predictions for variants to be compared with, and is held against itself in another batch size.
    Base(&'a BaseFile),
    /// Is compared with the base's predictions, which are there.
    Against(&'a BaseFile),
}

/// A text to score, and how.
pub(super) struct Score<'a> {
    pub(super) text: &'a ScoredText,
    pub(super) role: Role<'a>,
    /// Tokens of one forward pass.
    pub(super) chunk: usize,
    /// The most sequences that losses must not depend on; `None` leaves that open.
    pub(super) batch: Option<usize>,
}

/// What came of it.
pub(super) struct Scored {
    pub(super) own: Perplexity,
    /// The base's losses, where there was a comparison.
    pub(super) base: Option<Perplexity>,
}

impl Score<'_> {
    pub(super) fn run(
        &self,
        runner: &mut Runner,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Scored> {
        let layout = &self.text.layout;
        let mut base = None;
        let mut own = match self.role {
            Role::Base(file) if !file.exists() => {
                let mut recorder = file.recorder()?;
                let own = self.pass(runner, layout, self.slots(), Some(&mut recorder), progress)?;
                recorder.finish()?;
                own
            }
            Role::Alone | Role::Base(_) => {
                self.pass(runner, layout, self.slots(), None, progress)?
            }
            Role::Against(file) => {
                let mut comparison = file.comparison(layout)?;
                let slots = self.slots();
                let mut own = self.pass(runner, layout, slots, Some(&mut comparison), progress)?;
                let found = comparison.finish()?;
                own.divergence = Some(file.summary(&found));
                base = Some(losses(layout, &found.base));
                own
            }
        };
        if let Role::Base(file) = self.role {
            own.divergence = Some(self.noise_floor(runner, file)?);
        }
        if let Some(batch) = self.batch {
            own.under_load = under_load(runner, layout, batch)?;
        }
        Ok(Scored { own, base })
    }

    /// Windows side by side.
    fn slots(&self) -> usize {
        let layout = &self.text.layout;
        (TOKENS_AT_ONCE / layout.longest().max(1)).clamp(1, layout.windows.len().max(1))
    }

    fn pass(
        &self,
        runner: &mut Runner,
        layout: &Layout,
        slots: usize,
        witness: Option<&mut dyn Witness>,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Perplexity> {
        let limits = Limits::new(slots, layout.longest(), self.chunk);
        let engine = runner.own_for_scoring(limits)?;
        Ok(losses(
            layout,
            &perplexity(engine, layout, witness, progress)?,
        ))
    }

    /// The first windows again in another batch size, against what was kept of them.
    fn noise_floor(&self, runner: &mut Runner, file: &BaseFile) -> Result<record::Divergence> {
        let mut few = self.text.layout.clone();
        let whole = SAMPLED_TOKENS / few.longest().max(1);
        few.windows.truncate(whole.max(2));
        let other = if self.slots() > 1 { 1 } else { 2 };
        let mut comparison = file.comparison(&few)?;
        self.pass(runner, &few, other, Some(&mut comparison), &mut |_, _| {
            Ok(())
        })?;
        Ok(file.summary(&comparison.finish()?))
    }
}

/// Scores pieces of a text each alone and in one pass, then `batch` side by side, then each alone but in chunks of a third.
fn under_load(runner: &mut Runner, layout: &Layout, batch: usize) -> Result<Vec<UnderLoad>> {
    let length = (SAMPLED_TOKENS / batch.max(1)).clamp(SHORTEST_PIECE, layout.longest().max(2));
    let pieces: Vec<&[u32]> = layout
        .windows
        .iter()
        .flat_map(|window| window.given().chunks_exact(length))
        .take(batch.max(1))
        .collect();
    let batch = pieces.len();
    let mut scored = |slots: usize, chunk: usize| -> Result<Vec<f32>> {
        let engine = runner.own_for_scoring(Limits::new(slots, length, chunk))?;
        let mut all = Vec::new();
        for side_by_side in pieces.chunks(slots) {
            let prompts = side_by_side
                .iter()
                .enumerate()
                .map(|(slot, tokens)| Prompt {
                    slot,
                    start: 0,
                    tokens,
                });
            let found = engine.log_probs(&prompts.collect::<Vec<_>>())?;
            all.extend(found.into_iter().flatten());
        }
        Ok(all)
    };
    if batch == 0 {
        return Ok(Vec::new());
    }
    let alone = scored(1, length)?;
    let nll = |log_probs: &[f32]| -log_probs.iter().map(|&p| f64::from(p)).sum::<f64>();
    let whole = (batch > 1).then_some((batch, batch * length));
    let third = (1, length.div_ceil(3));
    whole
        .into_iter()
        .chain([third])
        .map(|(batch, chunk)| {
            let found = scored(batch, chunk)?;
            let differences = found.iter().zip(&alone).map(|(a, b)| (a - b).abs());
            Ok(UnderLoad {
                batch,
                chunk,
                tokens: alone.len() as u64,
                nll: nll(&found),
                nll_alone: nll(&alone),
                largest_difference: f64::from(differences.fold(0.0, f32::max)),
            })
        })
        .collect()
}

/// The losses of a text in the terms of records.
fn losses(layout: &Layout, segments: &[Segment]) -> Perplexity {
    Perplexity {
        segments: segments
            .iter()
            .map(|s| record::Segment {
                nll: s.nll,
                tokens: s.tokens,
            })
            .collect(),
        tokens_total: layout.tokens_total,
        bytes_scored: Some(layout.bytes_scored),
        words_scored: layout.words_scored,
        nll_squares: Some(segments.iter().map(|s| s.nll_squares).sum()),
        divergence: None,
        under_load: Vec::new(),
        configuration: None,
    }
}
