//! A run of the microbenchmark for other programs: JSON and flat CSV, and the files of its run directory.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::store;
use super::document::{Cell, Library, Microbench, Shape};
use super::page;
use crate::error::{Error, Result};

/// Writes `results.json`, `kernels.csv` and `kernels.html` into a run directory, each whole or not at all, and returns
/// their paths.
///
/// # Errors
/// If one of them cannot be written.
pub fn write(document: &Microbench, dir: &Path) -> Result<[PathBuf; 3]> {
    let files = [
        ("results.json", json(document)?.into_bytes()),
        ("kernels.csv", csv(document)?),
        ("kernels.html", page::html(document)?.into_bytes()),
    ];
    for (name, content) in &files {
        store::write_whole(&dir.join(name), content)?;
    }
    Ok(files.map(|(name, _)| dir.join(name)))
}

/// Writes the CSV alone to `path`.
///
/// # Errors
/// If it cannot be written.
pub fn write_csv(document: &Microbench, path: &Path) -> Result<()> {
    store::write_whole(path, &csv(document)?)
}

/// The text of `results.json`.
///
/// # Errors
/// Never in practice: the document is plain data.
fn json(document: &Microbench) -> Result<String> {
    serde_json::to_string_pretty(document)
        .map(|text| text + "\n")
        .map_err(|error| Error::Internal(format!("results.json: {error}")))
}

/// One row of the CSV. The names are the header, units included.
#[derive(Debug, Default, Serialize)]
struct Row<'a> {
    device: Option<&'a str>,
    op: &'a str,
    shape: String,
    n: Option<usize>,
    k: Option<usize>,
    roles: String,
    tokens: usize,
    variant: &'a str,
    activation_dtype: &'a str,
    failed: bool,
    reason: Option<&'a str>,
    cpu_reference: Option<bool>,
    timer: Option<&'a str>,
    plan: Option<&'a str>,
    cold_us: Option<f64>,
    cold_ci95_low_us: Option<f64>,
    cold_ci95_high_us: Option<f64>,
    cold_min_us: Option<f64>,
    cold_quartiles_percent: Option<f64>,
    cold_samples: Option<usize>,
    cold_calls_per_sample: Option<usize>,
    cold_rotated_bytes: Option<u64>,
    cold_stop_reason: Option<&'a str>,
    warm_us: Option<f64>,
    warm_min_us: Option<f64>,
    read_floor_us: Option<f64>,
    percent_of_read_floor: Option<f64>,
    read_bytes: Option<f64>,
    written_bytes: Option<f64>,
    flops: Option<f64>,
    gb_per_s: Option<f64>,
    tflop_per_s: Option<f64>,
    limit: Option<&'a str>,
    predicted_us: Option<f64>,
    percent_of_limit: Option<f64>,
    library: Option<&'a str>,
    library_us: Option<f64>,
    speedup_vs_library: Option<f64>,
    verified_elements: Option<u64>,
    verified_worst: Option<f64>,
}

/// `kernels.csv`: one row per cell; what is unknown is empty.
///
/// # Errors
/// Never in practice: the rows are plain data and go to memory.
pub fn csv(document: &Microbench) -> Result<Vec<u8>> {
    let broken = |error: &dyn std::fmt::Display| Error::Internal(format!("kernels.csv: {error}"));
    let device = document.environment.device.name.as_deref();
    let mut writer = csv::Writer::from_writer(Vec::new());
    for (shape, cell) in document.cells() {
        writer
            .serialize(row(device, shape, cell))
            .map_err(|e| broken(&e))?;
    }
    writer.into_inner().map_err(|e| broken(&e))
}

fn row<'a>(device: Option<&'a str>, shape: &'a Shape, cell: &'a Cell) -> Row<'a> {
    let known = Row {
        device,
        op: &shape.op,
        shape: shape.size_text(),
        n: shape.sizes.get("n").copied(),
        k: shape.sizes.get("k").copied(),
        roles: shape.roles.join("; "),
        tokens: cell.tokens,
        variant: &cell.variant,
        activation_dtype: &cell.activation_dtype,
        failed: cell.reason.is_some(),
        reason: cell.reason.as_deref(),
        plan: cell.plan(),
        ..Row::default()
    };
    let Some(figures) = &cell.figures else {
        let verification = cell.verified.as_ref().map(|found| &found.verification);
        return Row {
            verified_elements: verification.map(|found| found.elements),
            verified_worst: verification.map(|found| found.worst),
            ..known
        };
    };
    let library = match &figures.peer {
        Library::Measured {
            name,
            cold,
            speedup,
        } => Some((name.as_str(), cold.us.p50, *speedup)),
        Library::Unavailable { .. } => None,
    };
    Row {
        cpu_reference: Some(figures.cpu_reference),
        timer: Some(&figures.timer),
        cold_us: Some(figures.cold.us.p50),
        cold_ci95_low_us: figures.cold.us.ci95_low,
        cold_ci95_high_us: figures.cold.us.ci95_high,
        cold_min_us: Some(figures.cold.us.min),
        cold_quartiles_percent: figures.cold.quartiles_percent,
        cold_samples: Some(figures.cold.us.n),
        cold_calls_per_sample: Some(figures.cold.calls),
        cold_rotated_bytes: Some(figures.cold.rotated_bytes),
        cold_stop_reason: Some(&figures.cold.stop_reason),
        warm_us: Some(figures.warm.us.p50),
        warm_min_us: Some(figures.warm.us.min),
        read_floor_us: Some(figures.read_floor.us.p50),
        percent_of_read_floor: Some(figures.percent_of_read_floor),
        read_bytes: Some(figures.cost.read_bytes),
        written_bytes: Some(figures.cost.written_bytes),
        flops: Some(figures.cost.flops),
        gb_per_s: Some(figures.gb_per_s),
        tflop_per_s: Some(figures.tflop_per_s),
        limit: figures.limit.as_deref(),
        predicted_us: figures.predicted_us,
        percent_of_limit: figures.percent_of_limit,
        library: library.map(|(name, ..)| name),
        library_us: library.map(|(_, us, _)| us),
        speedup_vs_library: library.map(|(.., speedup)| speedup),
        verified_elements: Some(figures.verified_elements),
        verified_worst: Some(figures.verified_worst),
        ..known
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn csv_has_a_row_per_cell() {
        let document = fixture::document();
        let bytes = csv(&document).unwrap();
        let mut reader = ::csv::Reader::from_reader(bytes.as_slice());
        let headers = reader.headers().unwrap().clone();
        let place = |name: &str| headers.iter().position(|head| head == name).unwrap();
        let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), document.cells().count());
        let cold: f64 = rows[0][place("cold_us")].parse().unwrap();
        assert_eq!(Some(cold), document.shapes[0].cells[0].cold_us());
        let failed: Vec<_> = rows
            .iter()
            .filter(|row| &row[place("failed")] == "true")
            .collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(&failed[0][place("cold_us")], "");
        assert!(failed[0][place("reason")].contains("not timed"));
    }

    #[test]
    fn a_run_directory_gets_its_three_files() {
        let dir = tempfile::tempdir().unwrap();
        let document = fixture::document();
        let paths = write(&document, dir.path()).unwrap();
        assert!(paths.iter().all(|path| path.is_file()));
        let text = std::fs::read_to_string(&paths[0]).unwrap();
        assert_eq!(serde_json::from_str::<Microbench>(&text).unwrap(), document);
    }
}
