//! One face for the engines that a cell can be timed on.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::plan::EngineKind;
use crate::engine::{
    Arrivals, CandleEngine, DeviceWeights, Engine, Footprint, Limits, Prompt, StepPlan,
};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::model::{Model, OriginKind};
use crate::scheme::{DType, KvFormat, Variant, WeightScheme};
use crate::units::{Bytes, Clock};

/// A loaded variant.
pub(super) enum Runner {
    /// Our engine; `None` only while it is being rebuilt for other limits.
    Own(Option<Box<Engine>>, Arc<AtomicBool>),
    /// candle's.
    Candle(Box<CandleEngine>),
}

/// The type of activations, and of a cache without codes: what was asked for, else f32 on the CPU and the checkpoint's
/// 16-bit type (bf16 where it has none) on a GPU.
pub fn activation_dtype(wish: Option<DType>, device: &Device, model: &Model) -> DType {
    wish.unwrap_or(match (device.kind(), model.config.dtype) {
        ("cpu", _) => DType::F32,
        (_, DType::F32) => DType::BF16,
        (_, dtype) => dtype,
    })
}

/// Refuses a cache in codes where candle keeps it.
///
/// # Errors
/// [`Error::Usage`] that names the flags.
pub(super) fn check_kv(kind: EngineKind, kv: KvFormat) -> Result<()> {
    if kind != EngineKind::Candlepower && kv != KvFormat::Auto {
        return Err(Error::Usage(format!(
            "--kv-cache {kv} is for candlepower's engine: --engine {} keeps its cache in the type of the activations",
            kind.name()
        )));
    }
    Ok(())
}

/// One prompt for each slot from the first on.
fn in_slots(prompts: &[Vec<u32>], start: usize) -> Vec<Prompt<'_>> {
    let rows = prompts.iter().enumerate();
    rows.map(|(slot, tokens)| Prompt {
        slot,
        start,
        tokens,
    })
    .collect()
}

impl Runner {
    #[expect(
        clippy::too_many_arguments,
        reason = "everything that a variant on a device is"
    )]
    pub(super) fn load(
        kind: EngineKind,
        model: &Model,
        variant: &Variant,
        act: DType,
        kv: KvFormat,
        device: &Device,
        stop: &Arc<AtomicBool>,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Self> {
        check_kv(kind, kv)?;
        match (kind, variant.weights) {
            (EngineKind::Candlepower, _) => {
                let weights = DeviceWeights::load(model, variant, act, device, progress)?;
                let limits = Limits::new(1, 2, 2).with_kv(kv);
                let engine = Engine::new(device.clone(), weights, limits)?;
                Ok(Self::Own(Some(Box::new(engine)), stop.clone()))
            }
            (EngineKind::Candle, WeightScheme::Plain(dtype)) => Ok(Self::Candle(Box::new(
                CandleEngine::load(model, dtype, act, device)?,
            ))),
            (EngineKind::Candle, _) => Err(Error::Usage(format!(
                "--engine candle runs plain weights only (bf16, f16, f32), not '{variant}'"
            ))),
            (EngineKind::CandleGguf, _) => match (model.origin.kind, model.origin.paths.first()) {
                (OriginKind::Gguf, Some(path)) => Ok(Self::Candle(Box::new(
                    CandleEngine::load_gguf(path, model.config.family, device)?,
                ))),
                _ => Err(Error::Usage(
                    "--engine candle-gguf runs GGUF files only".into(),
                )),
            },
        }
    }

    /// Our engine within `limits`, rebuilt where the present one has others; its cache stays in the format that it was
    /// loaded with.
    pub(super) fn own(&mut self, limits: Limits) -> Result<&mut Engine> {
        let Self::Own(slot, _) = self else {
            return Err(Error::Usage(
                "candle's engine has no logits to score: use --engine candlepower".into(),
            ));
        };
        let fits = |engine: &Engine| engine.limits() == limits.with_kv(engine.limits().kv);
        if !slot.as_deref().is_some_and(fits) {
            self.renew(limits)?;
        }
        match self {
            Self::Own(Some(engine), _) => Ok(engine),
            _ => Err(Error::Internal("the engine was lost".into())),
        }
    }

    /// Makes our engine anew of its weights, so that it is as the device is switched now; nothing of its cache or of what
    /// it has recorded remains.
    ///
    /// # Errors
    /// If the memory is not there.
    pub(super) fn renew(&mut self, limits: Limits) -> Result<()> {
        if let Self::Own(slot, stop) = self {
            let engine = slot
                .take()
                .ok_or_else(|| Error::Internal("the engine was lost".into()))?;
            let limits = limits.with_kv(engine.limits().kv);
            let device = engine.device().clone();
            let replays = engine.replays();
            // The old scratch goes before the new one comes.
            let mut engine = Engine::new(device, engine.into_weights(), limits)?;
            engine.set_replays(replays);
            engine.stop_when(stop.clone());
            *slot = Some(Box::new(engine));
        }
        Ok(())
    }

    /// From now on, gives up before the next step of the model once `flag` is set; candle's engine has no such place.
    pub(super) fn stop_when(&mut self, flag: Arc<AtomicBool>) {
        if let Self::Own(engine, stop) = self {
            if let Some(engine) = engine {
                engine.stop_when(flag.clone());
            }
            *stop = flag;
        }
    }

    /// As [`Runner::own`], for scoring texts.
    pub(super) fn own_for_scoring(&mut self, limits: Limits) -> Result<&mut Engine> {
        let limits = match self {
            Self::Own(Some(engine), _) => limits.for_scoring(engine.device()),
            _ => limits,
        };
        self.own(limits)
    }

    /// Whether our engine records its decode steps; candle's does not.
    pub(super) fn set_replays(&mut self, enabled: bool) {
        if let Self::Own(Some(engine), _) = self {
            engine.set_replays(enabled);
        }
    }

    /// A digest of how the model really runs: what runs it, on what, in which types and forms, and with what switched on.
    /// Figures of one variant belong together only where this is the same, whatever was asked for.
    pub(super) fn configuration(&self) -> String {
        let text = match self {
            Self::Own(Some(engine), _) => {
                let weights = engine.weights();
                let device = engine.device();
                let switches = match device {
                    Device::Cpu => None,
                    Device::Gpu(gpu) => {
                        let all = (
                            gpu.fuses(),
                            gpu.overlaps(),
                            engine.replays(),
                            gpu.persistent(),
                        );
                        Some(all)
                    }
                };
                format!(
                    "{:?} {:?} {:?} {:?} {:?} {} {:?} {:?} {:?}",
                    weights.config,
                    weights.act,
                    weights.bytes(),
                    weights.linear_bytes(),
                    weights.groups(),
                    device.kind(),
                    engine.limits().kv,
                    engine.plan(),
                    switches,
                )
            }
            Self::Own(None, _) => String::new(),
            Self::Candle(engine) => format!("candle {}", engine.weight_bytes()),
        };
        let digest = blake3::hash(text.as_bytes()).to_hex();
        format!("blake3:{}", &digest[..16])
    }

    /// Which launches our engine fuses.
    pub(super) fn step_plan(&self) -> Option<StepPlan> {
        match self {
            Self::Own(engine, _) => engine.as_ref().map(|engine| engine.plan()),
            Self::Candle(_) => None,
        }
    }

    /// What is allocated, where that is known.
    pub(super) fn footprint(&self) -> Option<Footprint> {
        match self {
            Self::Own(engine, _) => engine.as_ref().map(|engine| engine.footprint()),
            Self::Candle(_) => None,
        }
    }

    pub(super) fn weights(&self) -> Option<&DeviceWeights> {
        match self {
            Self::Own(engine, _) => engine.as_ref().map(|engine| engine.weights()),
            Self::Candle(_) => None,
        }
    }

    pub(super) fn weight_bytes(&self) -> Bytes {
        match self {
            Self::Own(engine, _) => engine
                .as_ref()
                .map_or(Bytes(0), |engine| engine.weights().bytes()),
            Self::Candle(engine) => Bytes(engine.weight_bytes()),
        }
    }

    /// Makes room for a cell.
    pub(super) fn prepare(&mut self, limits: Limits) -> Result<()> {
        if matches!(self, Self::Own(..)) {
            self.own(limits)?;
        }
        Ok(())
    }

    /// Runs prompts from position `start` of each slot; gives the next token of each.
    pub(super) fn prefill(&mut self, prompts: &[Vec<u32>], start: usize) -> Result<Vec<u32>> {
        match self {
            Self::Own(engine, _) => {
                let engine = engine
                    .as_deref_mut()
                    .ok_or_else(|| Error::Internal("the engine was lost".into()))?;
                engine.prefill(&in_slots(prompts, start))
            }
            Self::Candle(engine) => {
                let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
                engine.prefill(&rows)
            }
        }
    }

    /// Runs prompts from position `start` of each slot and `steps - 1` steps after them, every token stamped.
    pub(super) fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        start: usize,
        steps: usize,
        clock: &dyn Clock,
    ) -> Result<Arrivals> {
        match self {
            Self::Own(engine, _) => {
                let engine = engine
                    .as_deref_mut()
                    .ok_or_else(|| Error::Internal("the engine was lost".into()))?;
                engine.generate(&in_slots(prompts, start), steps, clock, &mut |_| true)
            }
            Self::Candle(engine) => {
                let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
                let begin = clock.now();
                // A prompt of one token behind others is what a decode step appends.
                let mut next = match (start, rows.iter().all(|row| row.len() == 1)) {
                    (1.., true) => engine.decode(&rows.concat())?,
                    _ => engine.prefill(&rows)?,
                };
                let mut at = vec![clock.now()];
                let mut tokens = next.clone();
                for _ in 1..steps {
                    next = engine.decode(&next)?;
                    at.push(clock.now());
                    tokens.extend(&next);
                }
                Ok(Arrivals {
                    start: begin,
                    at,
                    tokens,
                    device: None,
                })
            }
        }
    }

    /// Appends one token at `position` of every slot.
    pub(super) fn decode(&mut self, tokens: &[u32], position: usize) -> Result<Vec<u32>> {
        match self {
            Self::Own(engine, _) => {
                let engine = engine
                    .as_deref_mut()
                    .ok_or_else(|| Error::Internal("the engine was lost".into()))?;
                engine.decode(tokens, &vec![position; tokens.len()])
            }
            Self::Candle(engine) => engine.decode(tokens),
        }
    }
}
