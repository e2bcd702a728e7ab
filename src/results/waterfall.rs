//! What each part of an engine is worth, as a table: the same cell by ever more of it.

use super::columns::{Column, column, filled, laid_out};
use super::format;
use super::study::{Speed, Study, Variant};
use super::table::cell_title;

/// A table for every variant and cell; its rows are the engines, in this order, that were measured there.
pub fn waterfall(study: &Study, engines: &[String], width: usize) -> String {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for variant in &study.variants {
        let name = (variant.model.as_str(), variant.name.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut out = String::new();
    for cell in study.cells() {
        for &(model, name) in &names {
            let rows: Vec<(&Variant, &Speed)> = engines
                .iter()
                .filter_map(|engine| {
                    let variant = study
                        .variants
                        .iter()
                        .find(|v| v.model == model && v.name == name && v.engine == *engine)?;
                    let speed = variant.at(cell).filter(|speed| !speed.failed)?;
                    Some((variant, speed))
                })
                .collect();
            if rows.is_empty() {
                continue;
            }
            let title = format!("{model} · {name} · {}", cell_title(cell));
            out += &format!("{}\n", format::wrapped(&title, width));
            out += &format!("{}\n\n", laid_out(columns(&rows), width));
        }
    }
    out
}

/// What a token takes, or a prefill where nothing is decoded.
fn time(speed: &Speed) -> Option<f64> {
    speed.itl_ms.or(speed.ttft_ms).map(|stats| stats.p50)
}

fn columns(rows: &[(&Variant, &Speed)]) -> Vec<Column> {
    let of = |head: &str, weight, figure: &dyn Fn(usize, &Speed) -> Option<String>| {
        let cells = rows.iter().enumerate();
        column(head, weight, cells.map(|(i, (_, speed))| figure(i, speed)))
    };
    let against = |speed: &Speed, other: usize| {
        let (now, then) = (time(speed)?, time(rows[other].1)?);
        (now > 0.0).then(|| format::factor(then / now))
    };
    filled(vec![
        column(
            "variant",
            255,
            rows.iter().map(|(variant, _)| Some(variant.engine.clone())),
        ),
        of("ITL p50\nms", 20, &|_, s| {
            Some(format::plain(s.itl_ms?.p50))
        }),
        of("TTFT p50\nms", 10, &|_, s| {
            Some(format::plain(s.ttft_ms?.p50))
        }),
        of("decode\ntok/s", 12, &|_, s| {
            s.decode_tokens_per_second.map(format::plain)
        }),
        of("against the\none above", 19, &|i, s| {
            i.checked_sub(1).and_then(|above| against(s, above))
        }),
        of("against\nthe first", 18, &|i, s| {
            if i == 0 { None } else { against(s, 0) }
        }),
        of("host gap\n%", 5, &|_, s| {
            Some(format!("{:.1}", s.device?.host_gap_percent?))
        }),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_is_held_against_the_one_above_and_the_first() {
        let mut study = super::super::fixture::small_study();
        let model = study.variants[0].clone();
        let cell = study.cells()[0];
        let engines = ["candle", "candlepower, launch by launch", "candlepower"];
        study.variants = engines
            .iter()
            .zip([8.0, 4.0, 1.0])
            .map(|(engine, milliseconds)| {
                let mut variant = model.clone();
                variant.engine = (*engine).to_owned();
                variant.speed.retain(|speed| speed.cell() == cell);
                for stats in variant.speed.iter_mut().filter_map(|s| s.itl_ms.as_mut()) {
                    stats.p50 = milliseconds;
                }
                variant
            })
            .collect();
        let engines = engines.map(str::to_owned);
        let table = waterfall(&study, &engines, 100);
        let line = |name: &str| {
            let line = table.lines().find(|line| line.trim().starts_with(name));
            line.unwrap_or_else(|| panic!("{name} in {table}"))
                .to_owned()
        };
        assert!(!line("candle ").contains('×'), "{table}");
        assert_eq!(
            line("candlepower, launch").matches("2.00×").count(),
            2,
            "{table}"
        );
        assert!(line("candlepower ").contains("4.00×"), "{table}");
        assert!(line("candlepower ").contains("8.00×"), "{table}");
        assert!(
            table.lines().all(|line| line.chars().count() <= 100),
            "{table}"
        );
        // An engine that was not measured has no row.
        assert_eq!(waterfall(&study, &["other".to_owned()], 100), "");
    }
}
