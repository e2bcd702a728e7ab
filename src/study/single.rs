//! One variant outside a sweep: its perplexity, its text, its logits.

use super::base::BaseFile;
use super::facts;
use super::finite::explained;
use super::plan::{EngineKind, QualityPlan};
use super::quality::{self, Role, Score, Scored, ScoredText};
use super::quantise::Quantising;
use super::run::{Stage, Watcher};
use super::runner::{Runner, activation_dtype};
use crate::engine::{DeviceWeights, Engine, Limits, Prompt, Sampler, Sampling};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::Interrupt;
use crate::model::{Model, Tokenizer};
use crate::results;
use crate::results::record::{self, QualityTask};
use crate::results::study::Perplexity;
use crate::scheme::{DType, KvFormat, Variant};

/// What is scored, with what.
pub struct Scoring<'a> {
    /// The model.
    pub model: &'a Model,
    /// What its weights are turned into.
    pub variant: &'a Variant,
    /// The type of activations; the device's default where `None`.
    pub act: Option<DType>,
    /// How the KV cache is held.
    pub kv: KvFormat,
    /// Where it runs.
    pub device: &'a Device,
    /// Tokens of one forward pass; a whole segment where `None`.
    pub chunk: Option<usize>,
    /// The text and the protocol; a comparison needs a base, too.
    pub plan: &'a QualityPlan,
    /// The variant that this one is compared with, in the way that the plan says.
    pub base: Option<&'a Variant>,
    /// How variants are made that are not made on loading.
    pub quantising: &'a Quantising,
}

/// A text scored by one variant.
#[derive(Debug, Clone, PartialEq)]
pub struct TextScore {
    /// The type of activations.
    pub act: DType,
    /// The losses, with all that it takes to recompute them, and the difference to the base.
    pub perplexity: Perplexity,
    /// The base's, where there was one; with its noise floor, if it was scored now.
    pub base: Option<Perplexity>,
}

/// Scores a text, after the base has left its predictions, if there is one.
///
/// # Errors
/// If the text is missing or too short, or the model fails.
pub fn score_text(
    wish: &Scoring<'_>,
    interrupt: &Interrupt,
    watcher: &mut dyn Watcher,
) -> Result<TextScore> {
    let text = quality::prepare(wish.plan, wish.model)?;
    watcher.text(&wish.model.name, text.format, text.layout.tokens_total);
    let act = activation_dtype(wish.act, wish.device, wish.model);
    let figures = |task: &QualityTask, losses: &record::Perplexity| {
        results::perplexity(task, losses)
            .ok_or_else(|| Error::Internal("nothing was scored".into()))
    };
    let mut noise_floor = None;
    let base = match (wish.base, &wish.plan.base) {
        (Some(variant), Some(kept)) => {
            let scored_ids = text.scored_ids();
            let read = wish.quantising.samples(
                wish.model,
                std::slice::from_ref(variant),
                Some(&scored_ids),
            )?;
            let subject = facts::subject(wish.model, variant, read.as_ref(), act, wish.device)?;
            let vocab = wish.model.config.vocab;
            let file = BaseFile::of(kept, &subject, &text.task, vocab, &text.layout);
            if !file.exists() {
                let role = Role::Base(&file);
                // The base has the plain cache, whatever the variant has.
                let what = (variant, KvFormat::Auto);
                let found = scored(wish, what, act, &text, role, interrupt, watcher)?;
                noise_floor = figures(&text.task, &found.own)?.noise_floor;
                watcher.note(&variant.name, &file.told());
            }
            Some((variant, file))
        }
        _ => None,
    };
    let role = base
        .as_ref()
        .map_or(Role::Alone, |(_, file)| Role::Against(file));
    let what = (wish.variant, wish.kv);
    let found = scored(wish, what, act, &text, role, interrupt, watcher)?;
    let mut task = text.task.clone();
    task.base = base.map(|(variant, file)| file.named(&variant.name));
    let mut perplexity = figures(&task, &found.own)?;
    let mut base = found
        .base
        .map(|losses| figures(&text.task, &losses))
        .transpose()?;
    if let Some(base) = &mut base {
        base.noise_floor = noise_floor;
        results::compare_quality(base, &mut perplexity);
    }
    Ok(TextScore {
        act,
        perplexity,
        base,
    })
}

/// Loads a variant and scores a text with it.
fn scored(
    wish: &Scoring<'_>,
    (variant, kv): (&Variant, KvFormat),
    act: DType,
    text: &ScoredText,
    role: Role<'_>,
    interrupt: &Interrupt,
    watcher: &mut dyn Watcher,
) -> Result<Scored> {
    let name = &variant.name;
    let scored = text.scored_ids();
    let quantising = wish.quantising;
    let samples = quantising.samples(wish.model, std::slice::from_ref(variant), Some(&scored))?;
    // Quantising is work of the same order as scoring: half of the whole, where it happens.
    let mut begin = 0.0;
    let source = quantising.source(
        wish.model,
        variant,
        samples.as_ref(),
        wish.device,
        act,
        &mut |at| {
            begin = 0.5;
            watcher.progress(name, &Stage::Quantise, at.share, at.share / 2.0);
            interrupt.check()
        },
    )?;
    if let Some(told) = source.told() {
        watcher.note(name, &told);
    }
    let mut runner = Runner::load(
        EngineKind::Candlepower,
        source.model(),
        source.variant(),
        act,
        kv,
        wish.device,
        &interrupt.flag(),
        &mut |done, total| {
            let share = done as f64 / total.max(1) as f64;
            watcher.progress(name, &Stage::Load, share, begin);
            interrupt.check()
        },
    )?;
    let score = Score {
        text,
        role,
        chunk: wish.chunk.unwrap_or(wish.plan.protocol.context),
        batch: None,
    };
    let found = score.run(&mut runner, &mut |done, total| {
        let share = done as f64 / total.max(1) as f64;
        let overall = begin + (1.0 - begin) * share;
        watcher.progress(name, &Stage::Quality, share, overall);
        interrupt.check()
    });
    found.map_err(|error| explained(error, wish.model, act))
}

/// The logits after every token of `ids`, `[ids, vocab]`.
///
/// # Errors
/// If the model fails or a token is outside its vocabulary.
pub fn logits(
    model: &Model,
    variant: &Variant,
    quantising: &Quantising,
    act: Option<DType>,
    kv: KvFormat,
    device: &Device,
    ids: &[u32],
) -> Result<Vec<f32>> {
    let act = activation_dtype(act, device, model);
    let samples = quantising.samples(model, std::slice::from_ref(variant), None)?;
    let source = quantising.source(model, variant, samples.as_ref(), device, act, &mut |_| {
        Ok(())
    })?;
    let (model, variant) = (source.model(), source.variant());
    let weights = DeviceWeights::load(model, variant, act, device, &mut |_, _| Ok(()))?;
    let mut engine = Engine::new(
        device.clone(),
        weights,
        Limits::new(1, ids.len(), ids.len()).with_kv(kv),
    )?;
    Ok(engine
        .logits(&[Prompt {
            slot: 0,
            start: 0,
            tokens: ids,
        }])?
        .concat())
}

/// What text is wanted, from what.
pub struct Generation<'a> {
    /// The model.
    pub model: &'a Model,
    /// What its weights are turned into.
    pub variant: &'a Variant,
    /// The type of activations; the device's default where `None`.
    pub act: Option<DType>,
    /// How the KV cache is held.
    pub kv: KvFormat,
    /// Where it runs.
    pub device: &'a Device,
    /// How variants are made that are not made on loading.
    pub quantising: &'a Quantising,
    /// What runs it.
    pub engine: EngineKind,
    /// Tokens of one forward pass; the longest prompt's where `None`.
    pub chunk: Option<usize>,
    /// The prompts; one batch.
    pub prompts: &'a [String],
    /// Tokens to generate for each, at most.
    pub tokens: usize,
    /// Whether the model's end token is a token like any other.
    pub ignore_eos: bool,
    /// How to draw; the most likely token where `None`.
    pub sampling: Option<Sampling>,
}

/// What came of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The prompt.
    pub prompt: String,
    /// Its tokens.
    pub prompt_ids: Vec<u32>,
    /// The generated tokens; an end token is the last.
    pub ids: Vec<u32>,
    /// Their text, without the end token.
    pub text: String,
}

/// Generates text from prompts, side by side.
///
/// # Errors
/// If the model has no tokenizer, a prompt is empty or too long, or the model fails.
pub fn generate(wish: &Generation<'_>, interrupt: &Interrupt) -> Result<Vec<Generated>> {
    let no_tokenizer = || {
        Error::Config(format!(
            "{} has no tokenizer: give --tokenizer FILE",
            wish.model.name
        ))
    };
    let tokenizer = wish.model.tokenizer.as_ref().ok_or_else(no_tokenizer)?;
    let prompt_ids = wish
        .prompts
        .iter()
        .map(|p| tokenizer.encode(p, true))
        .collect::<Result<Vec<_>>>()?;
    if prompt_ids.iter().any(Vec::is_empty) {
        return Err(Error::Usage("--prompt is empty".into()));
    }
    let act = activation_dtype(wish.act, wish.device, wish.model);
    let flag = interrupt.flag();
    let variants = std::slice::from_ref(wish.variant);
    let samples = wish.quantising.samples(wish.model, variants, None)?;
    let source = wish.quantising.source(
        wish.model,
        wish.variant,
        samples.as_ref(),
        wish.device,
        act,
        &mut |_| interrupt.check(),
    )?;
    let mut runner = Runner::load(
        wish.engine,
        source.model(),
        source.variant(),
        act,
        wish.kv,
        wish.device,
        &flag,
        &mut |_, _| interrupt.check(),
    )?;
    let ids = if matches!(runner, Runner::Candle(_)) {
        if wish.sampling.is_some() {
            return Err(Error::Usage(
                "candle's engines are greedy: leave --temperature out".into(),
            ));
        }
        prompt_ids
            .iter()
            .map(|ids| by_candle(&mut runner, ids, wish, tokenizer))
            .collect::<Result<Vec<_>>>()
    } else {
        by_own(&mut runner, &prompt_ids, wish, tokenizer)
    };
    let ids = ids.map_err(|error| explained(error, wish.model, act))?;
    let rows = wish.prompts.iter().zip(prompt_ids).zip(ids);
    rows.map(|((prompt, prompt_ids), ids)| {
        let end = ids
            .iter()
            .rposition(|id| !is_end(*id, wish, tokenizer))
            .map_or(0, |last| last + 1);
        let text = tokenizer.decode(&ids[..end])?;
        Ok(Generated {
            prompt: prompt.clone(),
            prompt_ids,
            ids,
            text,
        })
    })
    .collect()
}

fn is_end(id: u32, wish: &Generation<'_>, tokenizer: &Tokenizer) -> bool {
    !wish.ignore_eos && tokenizer.eos().contains(&id)
}

fn by_candle(
    runner: &mut Runner,
    prompt: &[u32],
    wish: &Generation<'_>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let mut ids = runner.prefill(&[prompt.to_vec()], 0)?;
    while ids.len() < wish.tokens && !is_end(ids[ids.len() - 1], wish, tokenizer) {
        let next = runner.decode(&ids[ids.len() - 1..], prompt.len() + ids.len() - 1)?;
        ids.extend(next);
    }
    Ok(ids)
}

/// All prompts as one ragged batch; a finished row leaves it.
fn by_own(
    runner: &mut Runner,
    prompts: &[Vec<u32>],
    wish: &Generation<'_>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<u32>>> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let limits = Limits::new(
        prompts.len(),
        longest + wish.tokens,
        wish.chunk.unwrap_or(longest.max(prompts.len())),
    );
    let engine = runner.own(limits)?;
    let mut rows = prompts.to_vec();
    let mut samplers: Vec<Sampler> = wish.sampling.map_or_else(Vec::new, |s| {
        (0..rows.len() as u64).map(|i| Sampler::new(s, i)).collect()
    });
    let mut open: Vec<usize> = (0..rows.len()).collect();
    let mut held = vec![0; rows.len()];
    while !open.is_empty() {
        let step: Vec<Prompt<'_>> = open
            .iter()
            .map(|&slot| Prompt {
                slot,
                start: held[slot],
                tokens: &rows[slot][held[slot]..],
            })
            .collect();
        let next = if samplers.is_empty() {
            engine.prefill(&step)?
        } else {
            let mut of_open: Vec<&mut Sampler> = samplers
                .iter_mut()
                .enumerate()
                .filter(|(i, _)| open.contains(i))
                .map(|(_, s)| s)
                .collect();
            engine.prefill_sampled(&step, &mut of_open)?
        };
        for (&slot, token) in open.iter().zip(next) {
            held[slot] = rows[slot].len();
            rows[slot].push(token);
        }
        let done = |slot: usize| {
            let made = rows[slot].len() - prompts[slot].len();
            made >= wish.tokens || is_end(rows[slot][rows[slot].len() - 1], wish, tokenizer)
        };
        open.retain(|&slot| !done(slot));
    }
    Ok(rows
        .into_iter()
        .zip(prompts)
        .map(|(row, prompt)| row[prompt.len()..].to_vec())
        .collect())
}
