//! A study for other programs: JSON and flat CSV, and Markdown for a page or a pull request.

use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::columns::Column;
use super::goal::Goal;
use super::study::{Amount, Interval, Memory, Speed, Stats, Study, Variant};
use super::{report, store, table, tasks};
use crate::error::{Error, Result};

/// The name of the study in its run directory.
pub const STUDY: &str = "study.json";

/// The name of the figures of tasks beside it.
const TASKS: &str = "tasks.csv";

/// Writes `study.json`, `study.csv`, where there are tasks `tasks.csv`, and `report.html` into a run directory, each whole
/// or not at all, and returns their paths.
///
/// # Errors
/// If one of them cannot be written.
pub fn write(study: &Study, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![
        (STUDY, json(study)?.into_bytes()),
        ("study.csv", csv(study)?),
    ];
    match tasks::csv(study)? {
        Some(tasks) => files.push((TASKS, tasks)),
        // One of an earlier study with other points must not pass for this one's.
        None => match fs::remove_file(dir.join(TASKS)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::writing(
                    dir.join(TASKS),
                    "cannot remove what is outdated",
                    error,
                ));
            }
            _ => {}
        },
    }
    files.push(("report.html", report::html(study)?.into_bytes()));
    for (name, content) in &files {
        store::write_whole(&dir.join(name), content)?;
    }
    Ok(files.into_iter().map(|(name, _)| dir.join(name)).collect())
}

/// Reads a `study.json`, or the one in a run directory.
///
/// # Errors
/// If there is none, or it is not a study of a version that this program knows.
pub fn read(path: &Path) -> Result<Study> {
    let path = if path.is_dir() {
        path.join(STUDY)
    } else {
        path.to_owned()
    };
    let text = fs::read_to_string(&path).map_err(|e| Error::reading(&path, "cannot read", e))?;
    serde_json::from_str(&text).map_err(|e| Error::data(&path, e))
}

/// The text of `study.json`.
///
/// # Errors
/// Never in practice: a study is plain data.
pub fn json(study: &Study) -> Result<String> {
    serde_json::to_string_pretty(study)
        .map(|text| text + "\n")
        .map_err(|error| Error::Internal(format!("{STUDY}: {error}")))
}

/// What a row says about the variant. The names are the header, units included.
#[derive(Debug, Serialize)]
struct VariantColumns<'a> {
    device: Option<&'a str>,
    model: &'a str,
    variant: &'a str,
    engine: &'a str,
    base: bool,
    bits: usize,
    group_size: Option<usize>,
    symmetric: Option<bool>,
    activations: &'a str,
    method: &'a str,
    activation_dtype: &'a str,
    kv_cache: &'a str,
    weight_bytes: Option<u64>,
    linear_bytes: Option<u64>,
    verified: Option<bool>,
    load_s: Option<f64>,
    perplexity: Option<f64>,
    perplexity_stderr: Option<f64>,
    perplexity_stderr_over_tokens: Option<f64>,
    perplexity_delta: Option<f64>,
    perplexity_delta_ci95_low: Option<f64>,
    perplexity_delta_ci95_high: Option<f64>,
    perplexity_ratio: Option<f64>,
    perplexity_ratio_stderr: Option<f64>,
    ln_perplexity_delta: Option<f64>,
    ln_perplexity_delta_stderr: Option<f64>,
    paired_p_value: Option<f64>,
    recovery_percent: Option<f64>,
    task_average: Option<f64>,
    task_average_stderr: Option<f64>,
    task_average_difference: Option<f64>,
    task_average_difference_stderr: Option<f64>,
    task_recovery_percent: Option<f64>,
    task_recovery_percent_stderr: Option<f64>,
    tasks: Option<usize>,
    bits_per_byte: Option<f64>,
    word_perplexity: Option<f64>,
    byte_perplexity: Option<f64>,
    protocol: Option<&'a str>,
    context_tokens: Option<usize>,
    stride_tokens: Option<usize>,
    text: Option<&'a str>,
    segments: Option<usize>,
    tokens_scored: Option<u64>,
    nll_sum: Option<f64>,
    mean_kl_nats: Option<f64>,
    mean_kl_stderr: Option<f64>,
    median_kl_nats: Option<f64>,
    p90_kl_nats: Option<f64>,
    p99_kl_nats: Option<f64>,
    max_kl_nats: Option<f64>,
    top1_agreement: Option<f64>,
    top1_agreement_stderr: Option<f64>,
    mean_delta_p: Option<f64>,
    rms_delta_p: Option<f64>,
    noise_floor_kl_nats: Option<f64>,
    same_under_load: Option<bool>,
    same_answers_under_load: Option<bool>,
}

/// What a row says about the cell; all but the first two are empty for a variant without cells.
#[derive(Debug, Serialize)]
struct SpeedColumns<'a> {
    failed: bool,
    reason: Option<&'a str>,
    batch: Option<usize>,
    prompt_tokens: Option<usize>,
    generated_tokens: Option<usize>,
    depth: Option<usize>,
    trials: Option<usize>,
    stop_reason: Option<&'a str>,
    prefill_tokens_per_second: Option<f64>,
    prefill_ci95_low: Option<f64>,
    prefill_ci95_high: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    decode_ci95_low: Option<f64>,
    decode_ci95_high: Option<f64>,
    speedup_vs_base: Option<f64>,
    speedup_vs_base_ci95_low: Option<f64>,
    speedup_vs_base_ci95_high: Option<f64>,
    ppl_percent_per_speed_percent: Option<f64>,
    task_percent_per_speed_percent: Option<f64>,
    goal_tokens: u64,
    goal_recovery_percent: f64,
    goal_seconds: Option<f64>,
    goal_joules: Option<f64>,
    prefill_gb_per_s: Option<f64>,
    prefill_tflop_per_s: Option<f64>,
    prefill_limit: Option<&'a str>,
    prefill_percent_of_limit: Option<f64>,
    decode_gb_per_s: Option<f64>,
    decode_tflop_per_s: Option<f64>,
    decode_limit: Option<&'a str>,
    decode_percent_of_limit: Option<f64>,
    ttft_samples: Option<usize>,
    ttft_mean_ms: Option<f64>,
    ttft_p50_ms: Option<f64>,
    ttft_p90_ms: Option<f64>,
    ttft_p95_ms: Option<f64>,
    ttft_p99_ms: Option<f64>,
    itl_samples: Option<usize>,
    itl_mean_ms: Option<f64>,
    itl_p50_ms: Option<f64>,
    itl_p90_ms: Option<f64>,
    itl_p95_ms: Option<f64>,
    itl_p99_ms: Option<f64>,
    device_itl_mean_ms: Option<f64>,
    host_gap_percent: Option<f64>,
    tpot_p50_ms: Option<f64>,
    e2e_mean_ms: Option<f64>,
    e2e_p50_ms: Option<f64>,
    memory_weights_bytes: Option<u64>,
    memory_kv_bytes: Option<u64>,
    memory_activations_bytes: Option<u64>,
    memory_other_bytes: Option<u64>,
    memory_total_bytes: Option<u64>,
    memory_total_predicted_bytes: Option<u64>,
    memory_residual_bytes: Option<i64>,
    throttled_trials_left_out: Option<usize>,
    j_per_prompt_token: Option<f64>,
    j_per_generated_token: Option<f64>,
    net_j_per_prompt_token: Option<f64>,
    net_j_per_generated_token: Option<f64>,
    prompt_tokens_per_joule: Option<f64>,
    generated_tokens_per_joule: Option<f64>,
    prefill_watts: Option<f64>,
    mean_watts: Option<f64>,
    decode_percent_of_power_limit: Option<f64>,
    idle_without_context_watts: Option<f64>,
    idle_watts: Option<f64>,
    energy_disagreement_percent: Option<f64>,
    energy_suspect: Option<bool>,
    energy_rejected: Option<&'a str>,
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
                .serialize((
                    variant_columns(study, variant),
                    speed_columns(&study.goal, variant, speed),
                ))
                .map_err(|e| broken(&e))?;
        }
    }
    writer.into_inner().map_err(|e| broken(&e))
}

fn variant_columns<'a>(study: &'a Study, variant: &'a Variant) -> VariantColumns<'a> {
    let perplexity = variant.perplexity.as_ref();
    let delta = perplexity.and_then(|p| p.delta_vs_base);
    let divergence = perplexity.and_then(|p| p.divergence);
    let average = variant.task_average;
    let versus_base = average.and_then(|a| a.versus_base);
    VariantColumns {
        device: study.environment.device.name.as_deref(),
        model: &variant.model,
        variant: &variant.name,
        engine: &variant.engine,
        base: variant.base,
        bits: variant.scheme.bits,
        group_size: variant.scheme.group_size,
        symmetric: variant.scheme.symmetric,
        activations: &variant.scheme.activations,
        method: &variant.scheme.method,
        activation_dtype: &variant.activation_dtype,
        kv_cache: variant.kv_cache.as_deref().unwrap_or("auto"),
        weight_bytes: variant.weight_bytes,
        linear_bytes: variant.linear_bytes,
        verified: variant.verification.as_ref().map(|v| v.passed),
        load_s: variant.load.map(|load| load.seconds),
        perplexity: perplexity.map(|p| p.value),
        perplexity_stderr: perplexity.and_then(|p| p.stderr),
        perplexity_stderr_over_tokens: perplexity.and_then(|p| p.stderr_over_tokens),
        perplexity_delta: delta.map(|d| d.value),
        perplexity_delta_ci95_low: delta.and_then(|d| d.ci95_low),
        perplexity_delta_ci95_high: delta.and_then(|d| d.ci95_high),
        perplexity_ratio: delta.map(|d| d.ratio),
        perplexity_ratio_stderr: delta.and_then(|d| d.ratio_stderr),
        ln_perplexity_delta: delta.map(|d| d.ln_ratio),
        ln_perplexity_delta_stderr: delta.and_then(|d| d.ln_ratio_stderr),
        paired_p_value: delta.and_then(|d| d.p_value),
        recovery_percent: perplexity.and_then(|p| p.recovery_percent),
        task_average: average.map(|a| a.value),
        task_average_stderr: average.and_then(|a| a.stderr),
        task_average_difference: versus_base.map(|v| v.difference),
        task_average_difference_stderr: versus_base.and_then(|v| v.difference_stderr),
        task_recovery_percent: versus_base.and_then(|v| v.recovery_percent),
        task_recovery_percent_stderr: versus_base.and_then(|v| v.recovery_percent_stderr),
        tasks: average.map(|a| a.tasks),
        bits_per_byte: perplexity.and_then(|p| p.bits_per_byte),
        word_perplexity: perplexity.and_then(|p| p.word_perplexity),
        byte_perplexity: perplexity.and_then(|p| p.byte_perplexity),
        protocol: perplexity.map(|p| p.protocol.as_str()),
        context_tokens: perplexity.map(|p| p.context),
        stride_tokens: perplexity.and_then(|p| p.stride),
        text: perplexity.map(|p| p.text.name.as_str()),
        segments: perplexity.map(|p| p.segments),
        tokens_scored: perplexity.map(|p| p.tokens_scored),
        nll_sum: perplexity.map(|p| p.nll_sum),
        mean_kl_nats: divergence.map(|d| d.mean_kl),
        mean_kl_stderr: divergence.and_then(|d| d.stderr),
        median_kl_nats: divergence.and_then(|d| d.median_kl),
        p90_kl_nats: divergence.and_then(|d| d.p90_kl),
        p99_kl_nats: divergence.and_then(|d| d.p99_kl),
        max_kl_nats: divergence.and_then(|d| d.max_kl),
        top1_agreement: divergence.map(|d| d.top1_agreement),
        top1_agreement_stderr: divergence.and_then(|d| d.top1_stderr),
        mean_delta_p: divergence.and_then(|d| d.mean_delta_p),
        rms_delta_p: divergence.and_then(|d| d.rms_delta_p),
        noise_floor_kl_nats: perplexity.and_then(|p| Some(p.noise_floor?.mean_kl)),
        same_under_load: perplexity
            .filter(|p| !p.under_load.is_empty())
            .map(|p| p.under_load.iter().all(|found| found.equal)),
        same_answers_under_load: same_answers(variant),
    }
}

/// Whether no answer to a task depends on what is answered beside it; `None` where that was not asked.
fn same_answers(variant: &Variant) -> Option<bool> {
    let found = || variant.tasks.iter().flat_map(|task| &task.under_load);
    found().next()?;
    Some(found().all(|found| found.differing == 0))
}

fn speed_columns<'a>(
    goal: &Goal,
    variant: &'a Variant,
    speed: Option<&'a Speed>,
) -> SpeedColumns<'a> {
    let stats = |figure: fn(&Speed) -> Option<Stats>| speed.and_then(figure);
    let (ttft, itl, e2e) = (
        stats(|s| s.ttft_ms),
        stats(|s| s.itl_ms),
        stats(|s| s.e2e_ms),
    );
    let interval = |figure: fn(&Speed) -> Option<Interval>| speed.and_then(figure);
    let prefill = interval(|s| s.prefill_tokens_per_second_ci95);
    let decode = interval(|s| s.decode_tokens_per_second_ci95);
    let speedup = interval(|s| s.speedup_vs_base_ci95);
    let memory = |line: fn(Memory) -> Amount| {
        let amount = speed.and_then(|s| s.memory).map(line)?;
        amount.best().map(|bytes| bytes.0)
    };
    let energy = speed.and_then(Speed::energy_use);
    let device = speed.and_then(|s| s.device);
    let prefilled = speed.and_then(|s| s.prefill_utilisation.as_ref());
    let decoded = speed.and_then(|s| s.decode_utilisation.as_ref());
    SpeedColumns {
        failed: variant.failed || speed.is_some_and(|s| s.failed),
        reason: speed
            .and_then(|s| s.reason.as_deref())
            .or(variant.reason.as_deref()),
        batch: speed.map(|s| s.batch),
        prompt_tokens: speed.map(|s| s.prompt_tokens),
        generated_tokens: speed.map(|s| s.generated_tokens),
        depth: speed.map(|s| s.depth),
        trials: speed.map(|s| s.trials),
        stop_reason: speed.and_then(|s| s.stop_reason.as_deref()),
        prefill_tokens_per_second: speed.and_then(|s| s.prefill_tokens_per_second),
        prefill_ci95_low: prefill.map(|ends| ends.low),
        prefill_ci95_high: prefill.map(|ends| ends.high),
        decode_tokens_per_second: speed.and_then(|s| s.decode_tokens_per_second),
        decode_ci95_low: decode.map(|ends| ends.low),
        decode_ci95_high: decode.map(|ends| ends.high),
        speedup_vs_base: speed.and_then(|s| s.speedup_vs_base),
        speedup_vs_base_ci95_low: speedup.map(|ends| ends.low),
        speedup_vs_base_ci95_high: speedup.map(|ends| ends.high),
        ppl_percent_per_speed_percent: speed.and_then(|s| s.ppl_percent_per_speed_percent),
        task_percent_per_speed_percent: speed.and_then(|s| s.task_percent_per_speed_percent),
        goal_tokens: goal.tokens,
        goal_recovery_percent: goal.recovery_percent,
        goal_seconds: speed.and_then(|s| s.goal_seconds),
        goal_joules: speed.and_then(|s| s.goal_joules),
        prefill_gb_per_s: prefilled.map(|u| u.gb_per_s),
        prefill_tflop_per_s: prefilled.map(|u| u.tflop_per_s),
        prefill_limit: prefilled.and_then(|u| u.limit.as_deref()),
        prefill_percent_of_limit: prefilled.and_then(|u| u.percent_of_limit),
        decode_gb_per_s: decoded.map(|u| u.gb_per_s),
        decode_tflop_per_s: decoded.map(|u| u.tflop_per_s),
        decode_limit: decoded.and_then(|u| u.limit.as_deref()),
        decode_percent_of_limit: decoded.and_then(|u| u.percent_of_limit),
        ttft_samples: ttft.map(|s| s.n),
        ttft_mean_ms: ttft.map(|s| s.mean),
        ttft_p50_ms: ttft.map(|s| s.p50),
        ttft_p90_ms: ttft.and_then(|s| s.p90),
        ttft_p95_ms: ttft.and_then(|s| s.p95),
        ttft_p99_ms: ttft.and_then(|s| s.p99),
        itl_samples: itl.map(|s| s.n),
        itl_mean_ms: itl.map(|s| s.mean),
        itl_p50_ms: itl.map(|s| s.p50),
        itl_p90_ms: itl.and_then(|s| s.p90),
        itl_p95_ms: itl.and_then(|s| s.p95),
        itl_p99_ms: itl.and_then(|s| s.p99),
        device_itl_mean_ms: device.and_then(|d| d.itl_ms),
        host_gap_percent: device.and_then(|d| d.host_gap_percent),
        tpot_p50_ms: stats(|s| s.tpot_ms).map(|s| s.p50),
        e2e_mean_ms: e2e.map(|s| s.mean),
        e2e_p50_ms: e2e.map(|s| s.p50),
        memory_weights_bytes: memory(|m| m.weights),
        memory_kv_bytes: memory(|m| m.kv),
        memory_activations_bytes: memory(|m| m.activations),
        memory_other_bytes: speed
            .and_then(|s| s.memory?.other?.best())
            .map(|bytes| bytes.0),
        memory_total_bytes: memory(|m| m.total),
        memory_total_predicted_bytes: speed.and_then(|s| s.memory?.total.predicted_bytes),
        memory_residual_bytes: speed.and_then(|s| s.memory?.residual_bytes),
        throttled_trials_left_out: speed
            .filter(|s| !s.failed)
            .map(|s| s.throttling.as_ref().map_or(0, |found| found.left_out)),
        j_per_prompt_token: energy.and_then(|e| e.j_per_prompt_token),
        j_per_generated_token: energy.and_then(|e| e.j_per_generated_token),
        net_j_per_prompt_token: energy.and_then(|e| e.net_j_per_prompt_token),
        net_j_per_generated_token: energy.and_then(|e| e.net_j_per_generated_token),
        prompt_tokens_per_joule: energy.and_then(|e| e.prompt_tokens_per_joule),
        generated_tokens_per_joule: energy.and_then(|e| e.generated_tokens_per_joule),
        prefill_watts: energy.and_then(|e| e.prefill_watts),
        mean_watts: energy.and_then(|e| e.mean_watts),
        decode_percent_of_power_limit: energy.and_then(|e| e.decode_percent_of_power_limit),
        idle_without_context_watts: energy.and_then(|e| e.idle_without_context_watts),
        idle_watts: energy.and_then(|e| e.idle_watts),
        energy_disagreement_percent: energy.and_then(|e| e.disagreement_percent),
        energy_suspect: energy.map(|e| e.suspect),
        energy_rejected: energy.and_then(|e| e.rejected.as_deref()),
        on_pareto_front: speed.is_some_and(|s| s.on_pareto_front),
    }
}

/// The tables of a study in Markdown, with the command that made it.
pub fn markdown(study: &Study) -> String {
    let mut out = format!("**{}**\n\n", escaped(&table::quality_title(study)));
    out.push_str(&markdown_table(&table::quality_columns(study)));
    let tasks = tasks::table::all(study);
    if !tasks.is_empty() {
        let title = tasks::table::Detail::Whole.title();
        let _ = write!(out, "\n{title}\n\n{}", markdown_table(&tasks));
    }
    for cell in study.cells() {
        let columns = table::speed_columns(study, cell);
        if !columns.is_empty() {
            let _ = write!(out, "\n{}\n\n", table::cell_title(cell));
            out.push_str(&markdown_table(&columns));
        }
    }
    let notes = tasks::table::mark(study).into_iter();
    for note in notes.chain(table::speed_notes(study)) {
        let _ = write!(out, "\n{}\n", escaped(&note));
    }
    if let Some(device) = &study.environment.device.name {
        let _ = write!(out, "\nMeasured on {}.\n", escaped(device));
    }
    if !study.command.is_empty() {
        let _ = write!(out, "\n```sh\n{}\n```\n", study.command_line());
    }
    out
}

pub(super) fn markdown_table(columns: &[Column]) -> String {
    let line = |cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = cells.collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut out = line(&mut columns.iter().map(|column| escaped(&column.head)));
    out += &line(
        &mut columns
            .iter()
            .map(|column| if column.is_names() { ":---" } else { "---:" }.to_owned()),
    );
    for row in 0..columns.first().map_or(0, |column| column.cells.len()) {
        out += &line(&mut columns.iter().map(|column| escaped(&column.cells[row])));
    }
    out
}

/// A text that a Markdown table cell shows as it is.
pub(super) fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    #[test]
    fn a_run_directory_gets_its_three_files() {
        let dir = tempfile::tempdir().unwrap();
        let study = fixture::study();
        let paths = write(&study, dir.path()).unwrap();
        assert!(paths.iter().all(|path| path.is_file()));
        assert_eq!(read(dir.path()).unwrap(), study);
        fs::write(
            &paths[0],
            json(&study).unwrap().replace("study/1", "study/9"),
        )
        .unwrap();
        let error = read(&paths[0]).unwrap_err();
        assert!(error.to_string().contains("study.json"), "{error}");
    }

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
