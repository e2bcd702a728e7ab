//! The parts of the page as values for the template.

use minijinja::context;
use minijinja::value::Value;

use super::super::charts::{self, Figure};
use super::super::columns::Column;
use super::super::environment::Environment;
use super::super::format::{self, or_none};
use super::super::record::Cell;
use super::super::study::{QualityAxis, Speed, Study, Variant};
use super::super::table;
use super::safe;
use crate::units::{Bytes, Joules, Seconds};

/// Where and when, with what.
pub(in super::super) fn subtitle(environment: &Environment) -> Value {
    let version = format!("candlepower {}", environment.tool_version);
    let day = |moment: &String| moment.chars().take("2026-01-31".len()).collect::<String>();
    [
        environment.device.name.clone(),
        environment.started.as_ref().map(day),
        (!environment.tool_version.is_empty()).then_some(version),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The few figures that are read from afar.
pub(super) fn tiles(study: &Study) -> Value {
    let measured = || study.variants.iter().filter(|variant| !variant.failed);
    let cells = || measured().flat_map(|v| v.speed.iter().map(move |speed| (speed, v)));
    let first = study.cells().first().copied();
    let rated = |(speed, variant): (&'_ Speed, _)| {
        Some((speed.decode_tokens_per_second?, speed.batch, variant))
    };
    let fastest = cells()
        .filter(|(speed, _)| Some(speed.cell()) == first)
        .filter_map(rated)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let most = cells()
        .filter(|(speed, _)| Some(speed.cell()) != first)
        .filter_map(rated)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let smallest = measured()
        .filter_map(|variant| Some((variant.weight_bytes?, variant)))
        .min_by_key(|(bytes, _)| *bytes);
    let thrifty = cells()
        .filter_map(|(s, v)| Some((s.energy_use()?.j_per_generated_token?, s.batch, v)))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    let tile = |figure: String, what: &str, whose: String| {
        context! { figure, what => format!("{what}: {whose}") }
    };
    let at = |variant: &Variant, batch: usize| format!("{}, batch {batch}", study.label(variant));
    [
        fastest.map(|(rate, batch, v)| tile(format::rate(rate), "tokens/s decoded", at(v, batch))),
        most.map(|(rate, batch, v)| tile(format::rate(rate), "tokens/s at most", at(v, batch))),
        smallest
            .map(|(bytes, v)| tile(Bytes(bytes).to_string(), "smallest weights", study.label(v))),
        thrifty.map(|(joules, batch, v)| {
            tile(
                Joules(joules).to_string(),
                "per token at least",
                at(v, batch),
            )
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The marker of each variant that has figures.
pub(super) fn legend(study: &Study) -> Value {
    let shown = study.variants.iter().enumerate().filter(|(_, v)| !v.failed);
    shown
        .map(|(place, variant)| {
            context! { marker => safe(&charts::legend_marker(place)), label => study.label(variant) }
        })
        .collect()
}

/// A table, head by head and row by row; `names` is the column that heads its rows.
pub(in super::super) fn grid(columns: &[Column]) -> Option<Value> {
    let names = columns.iter().position(Column::is_names)?;
    let rows = columns[names].cells.len();
    let row = |row: usize| {
        columns
            .iter()
            .map(|c| c.cells[row].as_str())
            .collect::<Value>()
    };
    (rows > 0).then(|| {
        context! {
            heads => columns.iter().map(|column| column.head.as_str()).collect::<Value>(),
            names,
            rows => (0..rows).map(row).collect::<Value>(),
        }
    })
}

/// What is shown of each cell.
pub(super) fn cells(study: &Study, cells: &[Cell]) -> Value {
    let several_shapes = cells.iter().any(|cell| !same_shape(*cell, cells[0]));
    let part = |&cell: &Cell| {
        let title = table::cell_title(cell);
        let short = if several_shapes {
            title.clone()
        } else {
            format!("batch {}", cell.batch)
        };
        context! {
            title,
            short,
            tradeoff => charts::tradeoff(study, cell).as_deref().map(safe),
            speed => grid(&table::speed_columns(study, cell)),
            spread => charts::spread(study, cell).as_deref().map(safe),
            memory => charts::memory(study, cell).as_deref().map(safe),
        }
    };
    cells.iter().map(part).collect()
}

/// Whether two cells differ in batch alone.
fn same_shape(one: Cell, other: Cell) -> bool {
    let batch = other.batch;
    Cell { batch, ..one } == other
}

/// The charts over batch sizes, one group for each shape of work.
pub(super) fn by_batch(study: &Study, cells: &[Cell]) -> Value {
    let several_shapes = cells.iter().any(|cell| !same_shape(*cell, cells[0]));
    let group = |shape: &[Cell]| {
        let charts: Vec<Value> = Figure::ALL
            .into_iter()
            .filter_map(|figure| {
                let drawn = charts::by_batch(study, shape, figure)?;
                Some(
                    [Value::from(figure.name()), safe(&drawn)]
                        .into_iter()
                        .collect(),
                )
            })
            .collect();
        let whole = table::cell_title(shape[0]);
        // The title of a cell begins with its batch, which is the axis here.
        let title = whole.split_once(" · ").map_or("", |(_, rest)| rest);
        let title = if several_shapes { title } else { "" };
        (!charts.is_empty()).then(|| context! { title, charts })
    };
    cells
        .chunk_by(|a, b| same_shape(*a, *b))
        .filter_map(group)
        .collect()
}

/// How each variant is stored, loaded and checked.
pub(super) fn variants(study: &Study) -> Value {
    let part = |variant: &Variant| {
        let (load, verification) = (variant.load?, variant.verification.as_ref()?);
        let bytes = |bytes| or_none(bytes, |bytes| Bytes(bytes).to_string());
        let checks = verification.checks.iter().map(|check| {
            context! { passed => check.passed, name => &check.name, detail => &check.detail }
        });
        Some(context! {
            label => study.label(variant),
            scheme => stored_as(variant),
            linear => bytes(variant.linear_bytes),
            load => Seconds(load.seconds).to_string(),
            rate => or_none(load.gb_per_s, |rate| format!("{} GB/s", format::plain(rate))),
            peak => bytes(load.peak_host_bytes),
            verdict => match (verification.passed, verification.checks.is_empty()) {
                (true, _) => "passed",
                (false, true) => "not run",
                (false, false) => "failed",
            },
            checks => checks.collect::<Value>(),
        })
    };
    study.variants.iter().filter_map(part).collect()
}

fn stored_as(variant: &Variant) -> String {
    let (scheme, activation_dtype) = (&variant.scheme, &variant.activation_dtype);
    let mut text = format!("{} bit", scheme.bits);
    if scheme.method != "none" {
        text += &format!(" {}", scheme.method);
    }
    text += &format!(", {} activations in {activation_dtype}", scheme.activations);
    if let Some(format) = &variant.kv_cache {
        text += &format!(", KV cache in {format}");
    }
    let groups = scheme.groups_used.iter();
    let groups: Vec<String> = groups
        .map(|(group, layers)| match group.as_str() {
            "row" => format!("{layers} layers with a scale per row"),
            columns => format!("{layers} layers in groups of {columns}"),
        })
        .collect();
    if !groups.is_empty() {
        text += &format!("; {}", groups.join(", "));
    }
    text
}

/// Every point without figures and why.
pub(super) fn failures(study: &Study) -> Value {
    let mut failures: Vec<Value> = Vec::new();
    let mut add = |point: String, reason: &String| failures.push(context! { point, reason });
    for variant in &study.variants {
        let label = study.label(variant);
        if let Some(reason) = &variant.reason {
            add(label.clone(), reason);
        }
        for task in &variant.tasks {
            if let Some(reason) = &task.reason {
                add(format!("{label}, {}", task.name), reason);
            }
        }
        for speed in &variant.speed {
            if let Some(reason) = &speed.reason {
                add(
                    format!("{label}, {}", table::cell_title(speed.cell())),
                    reason,
                );
            }
        }
    }
    failures.into_iter().collect()
}

/// The facts about the machine that are known, by name.
pub(in super::super) fn environment(environment: &Environment) -> Value {
    let (device, cpu) = (&environment.device, &environment.cpu);
    let bytes = |bytes: Option<u64>| bytes.map(|bytes| Bytes(bytes).to_string());
    let program = [
        Some(environment.tool_version.clone()).filter(|version| !version.is_empty()),
        environment
            .git_commit
            .as_ref()
            .map(|commit| format!("commit {commit}")),
        (!environment.features.is_empty())
            .then(|| format!("features {}", environment.features.join(" "))),
    ];
    let extra = environment
        .extra
        .iter()
        .map(|(name, value)| Some(format!("{name} {value}")));
    let facts = [
        (
            "Device",
            joined([
                device.name.clone(),
                bytes(device.memory_bytes),
                device
                    .multiprocessors
                    .map(|n| format!("{n} multiprocessors")),
            ]),
        ),
        (
            "Driver",
            joined([
                device.driver.clone(),
                device
                    .cuda
                    .as_ref()
                    .map(|version| format!("CUDA {version}")),
                device
                    .compute_capability
                    .as_ref()
                    .map(|cc| format!("compute capability {cc}")),
            ]),
        ),
        (
            "Power limit",
            device
                .power_limit_watts
                .map(|watts| format!("{watts:.0} W")),
        ),
        (
            "Clocks",
            joined([
                device
                    .max_sm_clock_mhz
                    .map(|mhz| format!("SM up to {mhz} MHz")),
                device
                    .application_sm_clock_mhz
                    .map(|mhz| format!("applications at {mhz} MHz")),
                device
                    .max_memory_clock_mhz
                    .map(|mhz| format!("memory up to {mhz} MHz")),
            ]),
        ),
        ("Measured ceilings", ceilings(environment)),
        (
            "Host",
            joined([
                cpu.model.clone(),
                cpu.cores.map(|n| format!("{n} cores")),
                bytes(cpu.memory_bytes),
            ]),
        ),
        ("System", environment.os.clone()),
        ("Threads", environment.threads.map(|n| n.to_string())),
        ("Started", environment.started.clone()),
        ("candlepower", joined(program)),
        ("Also", joined(extra)),
    ];
    facts
        .into_iter()
        .filter_map(|(name, value)| Some(context! { name, value => value? }))
        .collect()
}

fn ceilings(environment: &Environment) -> Option<String> {
    let ceilings = environment.ceilings.as_ref()?;
    let bandwidths = [
        ceilings
            .read_gb_per_s
            .map(|rate| format!("read {rate:.0} GB/s")),
        ceilings
            .copy_gb_per_s
            .map(|rate| format!("copy {rate:.0} GB/s")),
    ];
    let products = ceilings.matmul_tflop_per_s.iter();
    let products = products
        .map(|(dtype, rate)| Some(format!("{dtype} products {} TFLOP/s", format::plain(*rate))));
    joined(bandwidths.into_iter().chain(products))
}

/// What is known of these, with commas; `None` if nothing is.
fn joined(parts: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// What the method notes depend on.
pub(super) fn method(study: &Study, cells: &[Cell]) -> Value {
    let perplexity = study.variants.iter().find_map(|v| v.perplexity.as_ref());
    let speeds = || study.variants.iter().flat_map(|variant| &variant.speed);
    let protocol = perplexity.map(|p| {
        format!(
            "protocol {}: {} ({}) with {} tokens of context, {} of {} tokens scored in {} segments",
            p.protocol,
            p.text.name,
            format::shortened(&p.text.digest, 24),
            format::grouped(p.context as u64),
            format::grouped(p.tokens_scored),
            format::grouped(p.tokens_total),
            p.segments,
        )
    });
    context! {
        axis => study.quality_axis.name(),
        text_axis => study.text_axis().name(),
        tasks => study.variants.iter().any(|variant| variant.task_average.is_some()),
        paired => matches!(
            study.quality_axis,
            QualityAxis::Perplexity | QualityAxis::TaskError
        ),
        tokenizers_differ => study.text_axis() == QualityAxis::BitsPerByte,
        protocol,
        energy => speeds().any(|speed| speed.energy_use().is_some()),
        tradeoff => study.variants.iter().any(|variant| variant.on_pareto_front),
        limits => speeds().any(Speed::has_limit),
        several_cells => cells.len() > 1,
        on_cpu => study.environment.device.kind.as_deref() == Some("cpu"),
    }
}
