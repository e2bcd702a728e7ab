//! What the power sensors of a GPU are worth, as `info --power` shows it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::units::{Seconds, Watts, three_digits};

/// A figure, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Figure {
    /// The figure.
    Known(f64),
    /// None.
    Unknown {
        /// Why.
        unavailable: String,
    },
}

/// The versions of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.power/1")]
    V1,
}

/// The sensors of one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PowerCard {
    /// The version of this document.
    pub schema: Version,
    /// Its name.
    pub device: String,
    /// The verdict in words: whether the energy counter and the integral of power agree.
    pub verdict: String,
    /// The parts of the test, with both sources of energy.
    pub parts: Vec<PowerPart>,
    /// Time between two changes of the energy counter under load, in the median.
    pub counter_tick_s: Figure,
    /// Time between two changes of the power reading under load, in the median.
    pub power_renewal_s: Figure,
    /// Over how long the power reading averages, by how it follows a step of the load.
    pub power_window_s: Figure,
    /// Over how long the averaged power averages.
    pub average_window_s: Figure,
    /// What a query costs.
    pub query: Option<QueryCost>,
    /// 100 × by how much a step of launch and wait is longer while the sensors are read at the usual pace; both taken in
    /// turns. Null where no step was timed.
    pub sampler_percent_of_step: Option<f64>,
}

/// One part of the test.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PowerPart {
    /// `idle`, `load` or `half load`.
    pub name: String,
    /// Mean power by the counter.
    pub counter_watts: Figure,
    /// Mean power by integrating the power reading.
    pub integrated_watts: Figure,
    /// 100 × the difference over the counter's.
    pub disagreement_percent: Option<f64>,
}

/// What a query of the sensors costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct QueryCost {
    /// Queries.
    pub reads: usize,
    /// Mean time of one.
    pub mean_s: f64,
    /// 99th percentile.
    pub p99_s: Option<f64>,
    /// The longest.
    pub max_s: f64,
}

impl PowerCard {
    /// Names and readable values.
    pub fn rows(&self) -> Vec<(String, String)> {
        let time = |figure: &Figure| shown(figure, |s| Seconds(s).to_string());
        let mut rows = vec![("verdict".to_owned(), self.verdict.clone())];
        for part in &self.parts {
            let watts = |figure: &Figure| shown(figure, |w| Watts(w).to_string());
            let apart = part
                .disagreement_percent
                .map_or_else(String::new, |percent| format!(", {percent:.1} % apart"));
            rows.push((
                part.name.clone(),
                format!(
                    "{} by the counter, {} integrated{apart}",
                    watts(&part.counter_watts),
                    watts(&part.integrated_watts)
                ),
            ));
        }
        rows.extend([
            ("counter tick".to_owned(), time(&self.counter_tick_s)),
            ("power renewal".to_owned(), time(&self.power_renewal_s)),
            ("power window".to_owned(), time(&self.power_window_s)),
            ("average window".to_owned(), time(&self.average_window_s)),
        ]);
        rows.extend(self.query.map(|query| {
            let p99 = query
                .p99_s
                .map_or_else(String::new, |p99| format!("p99 {}, ", Seconds(p99)));
            let (mean, max) = (Seconds(query.mean_s), Seconds(query.max_s));
            let text = format!(
                "{mean} in the mean, {p99}at most {max} ({} reads)",
                query.reads
            );
            ("query".to_owned(), text)
        }));
        rows.extend(self.sampler_percent_of_step.map(|percent| {
            let text = format!("{} % of a step of launch and wait", three_digits(percent));
            ("sampler".to_owned(), text)
        }));
        rows
    }
}

fn shown(figure: &Figure, known: impl Fn(f64) -> String) -> String {
    match figure {
        Figure::Known(value) => known(*value),
        Figure::Unknown { unavailable } => format!("unknown ({unavailable})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_a_row_and_what_is_unknown_its_reason() {
        let unknown = || Figure::Unknown {
            unavailable: "no counter".to_owned(),
        };
        let card = PowerCard {
            schema: Version::V1,
            device: "NVIDIA H200".to_owned(),
            verdict: "counter and integral cannot be compared".to_owned(),
            parts: vec![PowerPart {
                name: "idle".to_owned(),
                counter_watts: unknown(),
                integrated_watts: Figure::Known(71.3),
                disagreement_percent: None,
            }],
            counter_tick_s: unknown(),
            power_renewal_s: Figure::Known(0.1),
            power_window_s: Figure::Known(0.025),
            average_window_s: Figure::Known(1.0),
            query: Some(QueryCost {
                reads: 5000,
                mean_s: 0.0004,
                p99_s: Some(0.0009),
                max_s: 0.002,
            }),
            sampler_percent_of_step: Some(0.12),
        };
        let rows = card.rows();
        let text: Vec<String> = rows.iter().map(|(n, v)| format!("{n}: {v}")).collect();
        let expected = [
            "verdict: counter and integral cannot be compared",
            "idle: unknown (no counter) by the counter, 71.3 W integrated",
            "counter tick: unknown (no counter)",
            "power renewal: 100 ms",
            "power window: 25.0 ms",
            "average window: 1.00 s",
            "query: 400 µs in the mean, p99 900 µs, at most 2.00 ms (5000 reads)",
            "sampler: 0.120 % of a step of launch and wait",
        ];
        assert_eq!(text, expected);
        let json = serde_json::to_value(&card).unwrap();
        assert_eq!(json["counter_tick_s"]["unavailable"], "no counter");
        assert_eq!(json["power_window_s"], 0.025);
        let schema = jsonschema::validator_for(&crate::results::power_schema()).unwrap();
        schema
            .validate(&json)
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(!schema.is_valid(&serde_json::json!({"schema": "candlepower.power/1"})));
    }
}
