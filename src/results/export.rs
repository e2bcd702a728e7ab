//! A study for other programs: flat CSV, and Markdown for a page or a pull request.

use std::fmt::Write;

use serde::Serialize;

use super::study::{Amount, Interval, Memory, Speed, Stats, Study, Variant};
use super::table::{self, Column};
use crate::error::{Error, Result};

/// One variant in one cell. The names are the header, units included.
#[derive(Debug, Serialize)]
struct Row<'a> {
    model: &'a str,
    variant: &'a str,
    engine: &'a str,
    base: bool,
    failed: bool,
    reason: Option<&'a str>,
    bits: usize,
    group_size: Option<usize>,
    symmetric: Option<bool>,
    activations: &'a str,
    method: &'a str,
    activation_dtype: &'a str,
    weight_bytes: Option<u64>,
    linear_bytes: Option<u64>,
    verified: Option<bool>,
    load_s: Option<f64>,
    perplexity: Option<f64>,
    perplexity_stderr: Option<f64>,
    perplexity_delta: Option<f64>,
    perplexity_delta_ci95_low: Option<f64>,
    perplexity_delta_ci95_high: Option<f64>,
    perplexity_ratio: Option<f64>,
    bits_per_byte: Option<f64>,
    protocol: Option<&'a str>,
    context_tokens: Option<usize>,
    text: Option<&'a str>,
    tokens_scored: Option<u64>,
    mean_kl_nats: Option<f64>,
    top1_agreement: Option<f64>,
    batch: Option<usize>,
    prompt_tokens: Option<usize>,
    generated_tokens: Option<usize>,
    depth: Option<usize>,
    trials: Option<usize>,
    prefill_tokens_per_second: Option<f64>,
    prefill_ci95_low: Option<f64>,
    prefill_ci95_high: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    decode_ci95_low: Option<f64>,
    decode_ci95_high: Option<f64>,
    speedup_vs_base: Option<f64>,
    ttft_p50_ms: Option<f64>,
    ttft_p90_ms: Option<f64>,
    itl_mean_ms: Option<f64>,
    itl_p50_ms: Option<f64>,
    itl_p90_ms: Option<f64>,
    itl_p99_ms: Option<f64>,
    tpot_p50_ms: Option<f64>,
    e2e_p50_ms: Option<f64>,
    memory_weights_bytes: Option<u64>,
    memory_kv_bytes: Option<u64>,
    memory_activations_bytes: Option<u64>,
    memory_total_bytes: Option<u64>,
    j_per_prompt_token: Option<f64>,
    j_per_generated_token: Option<f64>,
    net_j_per_generated_token: Option<f64>,
    mean_watts: Option<f64>,
    on_pareto_front: bool,
}

/// `study.csv`: one row per variant and cell; a variant without cells has one row. What is unknown is empty.
///
/// # Errors
/// Never in practice: the rows are plain data and go to memory.
pub fn csv(study: &Study) -> Result<Vec<u8>> {
    let broken = |error: &dyn std::fmt::Display| Error::Internal(format!("study.csv: {error}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    for variant in &study.variants {
        let cells: Vec<Option<&Speed>> = match variant.speed.as_slice() {
            [] => vec![None],
            cells => cells.iter().map(Some).collect(),
        };
        for speed in cells {
            writer
                .serialize(row(variant, speed))
                .map_err(|e| broken(&e))?;
        }
    }
    writer.into_inner().map_err(|e| broken(&e))
}

fn row<'a>(variant: &'a Variant, speed: Option<&'a Speed>) -> Row<'a> {
    let perplexity = variant.perplexity.as_ref();
    let delta = perplexity.and_then(|p| p.delta_vs_base);
    let divergence = perplexity.and_then(|p| p.divergence);
    let stats = |figure: fn(&Speed) -> Option<Stats>| speed.and_then(figure);
    let (ttft, itl) = (stats(|s| s.ttft_ms), stats(|s| s.itl_ms));
    let interval = |figure: fn(&Speed) -> Option<Interval>| speed.and_then(figure);
    let prefill = interval(|s| s.prefill_tokens_per_second_ci95);
    let decode = interval(|s| s.decode_tokens_per_second_ci95);
    let memory = |line: fn(Memory) -> Amount| {
        let amount = speed.and_then(|s| s.memory).map(line)?;
        amount.best().map(|bytes| bytes.0)
    };
    let energy = speed.and_then(Speed::energy_use);
    Row {
        model: &variant.model,
        variant: &variant.name,
        engine: &variant.engine,
        base: variant.base,
        failed: variant.failed || speed.is_some_and(|s| s.failed),
        reason: speed
            .and_then(|s| s.reason.as_deref())
            .or(variant.reason.as_deref()),
        bits: variant.scheme.bits,
        group_size: variant.scheme.group_size,
        symmetric: variant.scheme.symmetric,
        activations: &variant.scheme.activations,
        method: &variant.scheme.method,
        activation_dtype: &variant.activation_dtype,
        weight_bytes: variant.weight_bytes,
        linear_bytes: variant.linear_bytes,
        verified: variant.verification.as_ref().map(|v| v.passed),
        load_s: variant.load.map(|load| load.seconds),
        perplexity: perplexity.map(|p| p.value),
        perplexity_stderr: perplexity.and_then(|p| p.stderr),
        perplexity_delta: delta.map(|d| d.value),
        perplexity_delta_ci95_low: delta.and_then(|d| d.ci95_low),
        perplexity_delta_ci95_high: delta.and_then(|d| d.ci95_high),
        perplexity_ratio: delta.map(|d| d.ratio),
        bits_per_byte: perplexity.and_then(|p| p.bits_per_byte),
        protocol: perplexity.map(|p| p.protocol.as_str()),
        context_tokens: perplexity.map(|p| p.context),
        text: perplexity.map(|p| p.text.name.as_str()),
        tokens_scored: perplexity.map(|p| p.tokens_scored),
        mean_kl_nats: divergence.map(|d| d.mean_kl),
        top1_agreement: divergence.map(|d| d.top1_agreement),
        batch: speed.map(|s| s.batch),
        prompt_tokens: speed.map(|s| s.prompt_tokens),
        generated_tokens: speed.map(|s| s.generated_tokens),
        depth: speed.map(|s| s.depth),
        trials: speed.map(|s| s.trials),
        prefill_tokens_per_second: speed.and_then(|s| s.prefill_tokens_per_second),
        prefill_ci95_low: prefill.map(|ends| ends.low),
        prefill_ci95_high: prefill.map(|ends| ends.high),
        decode_tokens_per_second: speed.and_then(|s| s.decode_tokens_per_second),
        decode_ci95_low: decode.map(|ends| ends.low),
        decode_ci95_high: decode.map(|ends| ends.high),
        speedup_vs_base: speed.and_then(|s| s.speedup_vs_base),
        ttft_p50_ms: ttft.map(|s| s.p50),
        ttft_p90_ms: ttft.and_then(|s| s.p90),
        itl_mean_ms: itl.map(|s| s.mean),
        itl_p50_ms: itl.map(|s| s.p50),
        itl_p90_ms: itl.and_then(|s| s.p90),
        itl_p99_ms: itl.and_then(|s| s.p99),
        tpot_p50_ms: stats(|s| s.tpot_ms).map(|s| s.p50),
        e2e_p50_ms: stats(|s| s.e2e_ms).map(|s| s.p50),
        memory_weights_bytes: memory(|m| m.weights),
        memory_kv_bytes: memory(|m| m.kv),
        memory_activations_bytes: memory(|m| m.activations),
        memory_total_bytes: memory(|m| m.total),
        j_per_prompt_token: energy.and_then(|e| e.j_per_prompt_token),
        j_per_generated_token: energy.and_then(|e| e.j_per_generated_token),
        net_j_per_generated_token: energy.and_then(|e| e.net_j_per_generated_token),
        mean_watts: energy.and_then(|e| e.mean_watts),
        on_pareto_front: speed.is_some_and(|s| s.on_pareto_front),
    }
}

/// The tables of a study in Markdown, with the command that made it.
pub fn markdown(study: &Study) -> String {
    let mut out = format!("**{}**\n\n", escaped(&table::quality_title(study)));
    out.push_str(&markdown_table(&table::quality_columns(study)));
    for cell in study.cells() {
        let _ = write!(out, "\n{}\n\n", table::cell_title(cell));
        out.push_str(&markdown_table(&table::speed_columns(study, cell)));
    }
    if let Some(device) = &study.environment.device.name {
        let _ = write!(out, "\nMeasured on {}.\n", escaped(device));
    }
    if !study.command.is_empty() {
        let _ = write!(out, "\n```sh\n{}\n```\n", study.command_line());
    }
    out
}

fn markdown_table(columns: &[Column]) -> String {
    let line = |cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = cells.collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut out = line(&mut columns.iter().map(|column| escaped(&column.head)));
    out += &line(&mut columns.iter().map(|column| {
        let names = column.head == "variant";
        if names { ":---" } else { "---:" }.to_owned()
    }));
    for row in 0..columns.first().map_or(0, |column| column.cells.len()) {
        out += &line(&mut columns.iter().map(|column| escaped(&column.cells[row])));
    }
    out
}

/// A text that a Markdown table cell shows as it is.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    #[test]
    fn csv_has_a_row_per_variant_and_cell() {
        let study = fixture::study();
        let bytes = csv(&study).unwrap();
        let mut reader = ::csv::Reader::from_reader(bytes.as_slice());
        let headers = reader.headers().unwrap().clone();
        let place = |name: &str| headers.iter().position(|head| head == name).unwrap();
        let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 20);
        assert_eq!(&rows[0][place("variant")], "bf16");
        assert_eq!(&rows[0][place("perplexity_delta")], "");
        let decode: f64 = rows[0][place("decode_tokens_per_second")].parse().unwrap();
        assert_eq!(
            Some(decode),
            study.variants[0].speed[0].decode_tokens_per_second
        );
    }

    #[test]
    fn a_failed_variant_keeps_its_row() {
        let text = String::from_utf8(csv(&fixture::small_study()).unwrap()).unwrap();
        let failed: Vec<&str> = text
            .lines()
            .filter(|line| line.contains(",w8a8,"))
            .collect();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].contains("out of memory"));
    }

    #[test]
    fn markdown_tables_are_rectangular() {
        let text = markdown(&fixture::study());
        let widths: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count())
            .collect();
        assert_eq!(widths.len(), 7 + 4 * 7);
        assert!(
            widths
                .chunks(7)
                .all(|table| table.iter().all(|w| *w == table[0]))
        );
        assert!(text.contains("```sh\ncandlepower study"));
        assert_eq!(escaped("a|b"), "a\\|b");
    }
}
