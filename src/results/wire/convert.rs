//! Between the wire and the domain, both ways. Conversions take every struct apart, so that a field forgotten on one side
//! does not compile.

use super::super::record as domain;
use super::{
    Amount, Base, Block, Body, Cell, Check, DeviceTime, Divergence, Energy, EnergyCheck, EnergyUse,
    KlSpread, Load, Loaded, Memory, Model, Outcome, Perplexity, QualityTask, Record, Sampling,
    Scheme, Segment, Speed, Subject, TaskAnswers, TaskFigure, TaskGroup, TaskQuestion,
    TaskUnderLoad, Text, ThrottledTrial, Throttling, Trial, TrueTokenShift, UnderLoad,
    Verification, Version, Work,
};
use crate::units::{Bytes, Joules, Seconds, Watts};

/// Both directions of a conversion between structs whose fields correspond one to one: `wire_name = domain_name`, with
/// the unit type that the domain wraps around the number where it does, or `_` where the field has a conversion of its
/// own.
macro_rules! mirror {
    ($name:ident { $($wire:ident = $field:ident $(: $kind:tt)?),+ $(,)? }) => {
        impl From<domain::$name> for $name {
            fn from(value: domain::$name) -> Self {
                let domain::$name { $($field),+ } = value;
                Self { $($wire: mirror!(@out $field $($kind)?)),+ }
            }
        }

        impl From<$name> for domain::$name {
            fn from(value: $name) -> Self {
                let $name { $($wire),+ } = value;
                Self { $($field: mirror!(@in $wire $($kind)?)),+ }
            }
        }
    };
    (@out $value:ident) => { $value };
    (@in $value:ident) => { $value };
    (@out $value:ident _) => { $value.into() };
    (@in $value:ident _) => { $value.into() };
    (@out $value:ident each) => { $value.into_iter().map(Into::into).collect() };
    (@in $value:ident each) => { $value.into_iter().map(Into::into).collect() };
    (@out $value:ident [$unit:ident]) => { $value.into_iter().map(|x| x.0).collect() };
    (@in $value:ident [$unit:ident]) => { $value.into_iter().map($unit).collect() };
    (@out $value:ident (Option $unit:ident)) => { $value.map(|x| x.0) };
    (@in $value:ident (Option $unit:ident)) => { $value.map($unit) };
    (@out $value:ident maybe) => { $value.map(Into::into) };
    (@in $value:ident maybe) => { $value.map(Into::into) };
    (@out $value:ident boxed) => { $value.map(|x| Box::new((*x).into())) };
    (@in $value:ident boxed) => { $value.map(|x| Box::new((*x).into())) };
    (@out $value:ident $unit:ident) => { $value.0 };
    (@in $value:ident $unit:ident) => { $unit($value) };
}

mirror!(Subject {
    model = model: _,
    variant = variant,
    scheme = scheme: _,
    activation_dtype = activation_dtype,
    kv_cache = kv_cache,
    engine = engine,
    device = device,
    tool_version = tool_version,
});
mirror!(Model {
    name = name,
    revision = revision,
    digest = digest,
    tokenizer_digest = tokenizer_digest,
    parameters = parameters,
});
mirror!(Scheme {
    bits = bits,
    group_size = group_size,
    symmetric = symmetric,
    activations = activations,
    method = method,
    scale_dtype = scale_dtype,
});
mirror!(Loaded {
    weight_bytes = weight_bytes: Bytes,
    linear_bytes = linear_bytes: Bytes,
    groups_used = groups_used,
    load = load: _,
    verification = verification: _,
});
mirror!(Load {
    load_s = time: Seconds,
    read_bytes = read: Bytes,
    peak_host_bytes = peak_host: (Option Bytes),
});
mirror!(Check { name = name, passed = passed, detail = detail });
mirror!(QualityTask {
    protocol = protocol,
    context = context,
    stride = stride,
    text = text: _,
    base = base: maybe,
});
mirror!(Base { variant = variant, top_k = top_k });
mirror!(Text { name = name, digest = digest });
mirror!(Perplexity {
    segments = segments: each,
    tokens_total = tokens_total,
    bytes_scored = bytes_scored,
    words_scored = words_scored,
    nll_squares = nll_squares,
    divergence = divergence: maybe,
    under_load = under_load: each,
    configuration = configuration,
});
mirror!(UnderLoad {
    batch = batch,
    chunk = chunk,
    tokens = tokens,
    nll = nll,
    nll_alone = nll_alone,
    largest_difference = largest_difference,
});
mirror!(Segment { nll = nll, tokens = tokens });
mirror!(Divergence {
    mean_kl = mean_kl,
    stderr = stderr,
    spread = spread: maybe,
    top1_agreement = top1_agreement,
    top1_stderr = top1_stderr,
    true_token = true_token: maybe,
    outside_top_k = outside_top_k,
    tokens = tokens,
});
mirror!(KlSpread { p50 = p50, p90 = p90, p99 = p99, max = max });
mirror!(TrueTokenShift { mean = mean, rms = rms });
mirror!(TaskQuestion {
    name = name,
    digest = digest,
    num_fewshot = shots,
    documents = documents,
    add_bos = add_bos,
    max_length_tokens = max_length,
    groups = groups: each,
});
mirror!(TaskGroup {
    name = name,
    counts = counts,
    by_size = by_size,
    metric = metric,
});
mirror!(TaskAnswers {
    documents_of_split = of,
    truncated_requests = truncated,
    doc_id = documents,
    figures = figures: each,
    under_load = under_load: each,
    configuration = configuration,
});
mirror!(TaskUnderLoad {
    batch = batch,
    chunk_tokens = chunk,
    documents = documents,
    differing = differing,
    scored_otherwise = scored_otherwise,
    largest_difference = largest_difference,
});
mirror!(TaskFigure {
    metric = metric,
    filter = filter,
    value = value,
    stderr = stderr,
    higher_is_better = higher_is_better,
    values = values,
});
mirror!(Cell {
    batch = batch,
    prompt_tokens = prompt,
    generated_tokens = generate,
    depth = depth,
});
mirror!(Speed {
    trials = trials: each,
    blocks = blocks: each,
    warmup_trials = warmup_trials,
    stop_reason = stop_reason,
    memory = memory: _,
    energy = energy: _,
    work = work: boxed,
    throttling = throttling: _,
    configuration = configuration,
});
mirror!(Throttling {
    left_out = left_out: each,
    counted = counted,
    cooled_s = cooled: Seconds,
});
mirror!(ThrottledTrial { reasons = reasons, trial = trial: _ });
mirror!(Block { begin_s = begin: Seconds, trials = trials });
mirror!(Work { prefill = prefill, decode_step = decode_step, limits = limits });
mirror!(Trial {
    ttft_s = ttft: Seconds,
    prefill_s = prefill: Seconds,
    decode_s = decode: Seconds,
    e2e_s = e2e: Seconds,
    itl_s = itl: [Seconds],
    device = device: maybe,
});
mirror!(DeviceTime { prefill_s = prefill: Seconds, decode_s = decode: Seconds });
mirror!(Memory {
    weights = weights: _,
    kv = kv: _,
    activations = activations: _,
    other = other: _,
    total = total: _,
});
mirror!(Amount {
    predicted_bytes = predicted: (Option Bytes),
    measured_bytes = measured: (Option Bytes),
});
mirror!(EnergyUse {
    prefill_joules = prefill: Joules,
    decode_joules = decode: Joules,
    prefill_window_s = prefill_time: Seconds,
    decode_window_s = decode_time: Seconds,
    prompt_tokens = prompt_tokens,
    generated_tokens = generated_tokens,
    mean_watts = mean_power: (Option Watts),
    idle_without_context_watts = idle_power_without_context: (Option Watts),
    idle_watts = idle_power: (Option Watts),
    after_work_watts = after_work_power: (Option Watts),
    power_limit_watts = power_limit: (Option Watts),
    sm_clock_mhz = sm_clock_mhz,
    memory_clock_mhz = memory_clock_mhz,
    temperature_c = temperature_c,
    throttle_reasons = throttle_reasons,
    prefill_check = prefill_check: maybe,
    decode_check = decode_check: maybe,
    rejected = rejected,
    sampling = sampling: maybe,
    missing = missing,
});
mirror!(EnergyCheck {
    source = source,
    ticks = ticks,
    edge_error = edge_error,
    integrated_joules = integrated: (Option Joules),
    disagreement = disagreement,
    suspect = suspect,
    rounds = rounds,
    pauses_s = pauses: Seconds,
    sm_clock_mhz = sm_clock_mhz,
});
mirror!(Sampling {
    reads = reads,
    mean_s = mean: Seconds,
    p99_s = p99: (Option Seconds),
    max_s = max: Seconds,
    share = share,
});

impl From<domain::Verification> for Verification {
    fn from(value: domain::Verification) -> Self {
        Self {
            passed: value.passed(),
            checks: value.checks.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Verification> for domain::Verification {
    fn from(value: Verification) -> Self {
        // `passed` is for readers of the file; here it follows from the checks.
        let Verification { passed: _, checks } = value;
        Self {
            checks: checks.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<domain::Energy> for Energy {
    fn from(value: domain::Energy) -> Self {
        match value {
            domain::Energy::Unavailable { reason } => Self::Unavailable { reason },
            domain::Energy::Measured(energy) => Self::Measured(Box::new((*energy).into())),
        }
    }
}

impl From<Energy> for domain::Energy {
    fn from(value: Energy) -> Self {
        match value {
            Energy::Unavailable { reason } => Self::Unavailable { reason },
            Energy::Measured(energy) => Self::Measured(Box::new((*energy).into())),
        }
    }
}

impl<D: Into<W>, W> From<Result<D, domain::Failure>> for Outcome<W> {
    fn from(value: Result<D, domain::Failure>) -> Self {
        match value {
            Ok(result) => Self::Ok {
                result: result.into(),
            },
            Err(domain::Failure { reason }) => Self::Failed { reason },
        }
    }
}

impl<W> Outcome<W> {
    fn into_result<D: From<W>>(self) -> Result<D, domain::Failure> {
        match self {
            Self::Ok { result } => Ok(result.into()),
            Self::Failed { reason } => Err(domain::Failure { reason }),
        }
    }
}

impl From<domain::Record> for Record {
    fn from(value: domain::Record) -> Self {
        let domain::Record {
            key,
            subject,
            loaded,
            body,
            environment,
        } = value;
        let body = match body {
            domain::Body::Quality { task, outcome } => Body::Quality {
                task: task.into(),
                outcome: outcome.into(),
            },
            domain::Body::Task { task, outcome } => Body::Task {
                task: task.into(),
                outcome: outcome.into(),
            },
            domain::Body::Speed { cell, outcome } => Body::Speed {
                cell: cell.into(),
                outcome: outcome.into(),
            },
        };
        Self {
            schema: Version::V1,
            key: key.0,
            subject: subject.into(),
            loaded: loaded.map(Into::into),
            body,
            environment,
            checksum: None,
        }
    }
}

impl From<Record> for domain::Record {
    fn from(value: Record) -> Self {
        let Record {
            schema: Version::V1,
            key,
            subject,
            loaded,
            body,
            environment,
            checksum: _,
        } = value;
        let body = match body {
            Body::Quality { task, outcome } => domain::Body::Quality {
                task: task.into(),
                outcome: outcome.into_result(),
            },
            Body::Task { task, outcome } => domain::Body::Task {
                task: task.into(),
                outcome: outcome.into_result(),
            },
            Body::Speed { cell, outcome } => domain::Body::Speed {
                cell: cell.into(),
                outcome: outcome.into_result(),
            },
        };
        Self {
            key: domain::Key(key),
            subject: subject.into(),
            loaded: loaded.map(Into::into),
            body,
            environment,
        }
    }
}
