//! The report: one HTML page that opens offline, in light, dark and print, with the study inside for machines.

mod sections;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment as Templates, UndefinedBehavior, context};

use serde::Serialize;

use super::remarks::remarks;
use super::study::Study;
use super::table;
use super::tasks::table as tasks;
use super::verdict::verdict;
use crate::error::{Error, Result};

pub(super) use sections::{environment as environment_facts, grid, subtitle as subtitle_of};

/// The page. Everything put into it is escaped unless [`safe`] made it.
const TEMPLATE: &str = include_str!("page.html.jinja");

/// How every page shows a table.
const GRID: &str = include_str!("grid.html.jinja");

/// The style sheet of every page, kept apart so that an editor knows it for one.
const STYLE: &str = include_str!("style.css");

/// Renders the page.
///
/// # Errors
/// Only if the template itself is broken.
pub fn html(study: &Study) -> Result<String> {
    render("report.html", TEMPLATE, page(study)?)
}

/// Renders a page, which may use `style` and `grid`.
pub(super) fn render(name: &str, template: &str, values: Value) -> Result<String> {
    let broken = |error| Error::Internal(format!("{name}: {error:#}"));
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(broken)?;
    let mut templates = Templates::new();
    templates.set_undefined_behavior(UndefinedBehavior::Strict);
    templates.set_syntax(syntax);
    templates.add_global("style", safe(STYLE));
    templates.add_template("grid.html", GRID).map_err(broken)?;
    templates
        .render_named_str(name, template, values)
        .map_err(broken)
}

/// What the template shows.
fn page(study: &Study) -> Result<Value> {
    let cells = study.cells();
    let title = match study.model_names() {
        names if names.is_empty() => "A study without measurements".to_owned(),
        names => names,
    };
    Ok(context! {
        title,
        verdict => verdict(study),
        subtitle => sections::subtitle(&study.environment),
        tiles => sections::tiles(study),
        legend => sections::legend(study),
        quality => sections::grid(&table::quality_columns(study)),
        quality_caption => table::quality_title(study),
        quality_notes => table::quality_notes(study),
        tasks => sections::grid(&tasks::all(study)),
        tasks_title => tasks::Detail::Whole.title(),
        tasks_mark => tasks::mark(study),
        goal_note => table::goal_note(study),
        by_batch => sections::by_batch(study, &cells),
        cells => sections::cells(study, &cells),
        speed_notes => table::speed_notes(study),
        variants => sections::variants(study),
        failures => sections::failures(study),
        environment => sections::environment(&study.environment),
        method => sections::method(study, &cells),
        remarks => remarks(study),
        command => study.command_line(),
        json => safe(&embedded(study)?),
    })
}

/// Markup made here, not to be escaped again.
pub(super) fn safe(markup: &str) -> Value {
    Value::from_safe_string(markup.to_owned())
}

/// A document as JSON that cannot end the element it stands in: `<` occurs in strings alone, where an escape means the
/// same.
pub(super) fn embedded(document: &impl Serialize) -> Result<String> {
    serde_json::to_string(document)
        .map(|json| json.replace('<', "\\u003c"))
        .map_err(|error| Error::Internal(format!("report: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::charts;
    use super::*;
    use crate::results::fixture;

    fn every_study() -> Vec<Study> {
        let usual = fixture::usual();
        let of = |records: &[super::super::Record]| {
            Study::from_records(fixture::environment(), fixture::command(), records)
        };
        vec![
            fixture::study(),
            fixture::task_study(),
            fixture::small_study(),
            fixture::extreme_study(),
            of(&[]),
            of(&fixture::records_of(&usual[..1], &[1])),
            of(&fixture::records_of(&usual, &[])),
            of(&fixture::failed(&usual[0], &[1, 2], "no device")),
        ]
    }

    #[test]
    fn the_page_loads_nothing() {
        for study in every_study() {
            let page = html(&study).unwrap();
            for load in [
                "src=", "href=", "url(", "@import", "http://", "https://", "fetch(",
            ] {
                assert!(!page.contains(load), "{load}");
            }
            assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
            for broken in ["NaN", "Infinity", ">inf", "-inf"] {
                assert!(!page.contains(broken), "{broken}");
            }
        }
    }

    #[test]
    fn strings_cannot_break_out() {
        let study = fixture::extreme_study();
        let page = html(&study).unwrap();
        // One script for the study, one for the buttons.
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(page.contains("&lt;lower&gt;") && !page.contains("<lower>"));
    }

    #[test]
    fn the_study_can_be_read_back_from_the_page() {
        let study = fixture::extreme_study();
        let page = html(&study).unwrap();
        let start = page.find("id=\"study\">").unwrap() + "id=\"study\">".len();
        let end = start + page[start..].find("</script>").unwrap();
        let read: Study = serde_json::from_str(&page[start..end]).unwrap();
        assert_eq!(read, study);
    }

    #[test]
    fn every_class_of_a_chart_has_a_style() {
        let page = html(&fixture::study()).unwrap();
        for part in page.split("class=\"").skip(1) {
            for class in part[..part.find('"').unwrap()].split_whitespace() {
                assert!(STYLE.contains(&format!(".{class}")), "{class}");
            }
        }
        for colour in 0..charts::COLOURS {
            assert!(STYLE.contains(&format!(".c{colour}")));
        }
    }

    /// Writes the pages for a human to look at: `CANDLEPOWER_PAGES=dir cargo test pages_for_eyes`.
    #[test]
    fn pages_for_eyes() {
        let Some(dir) = std::env::var_os("CANDLEPOWER_PAGES") else {
            return;
        };
        for (place, study) in every_study().iter().enumerate() {
            let path = std::path::Path::new(&dir).join(format!("study-{place}.html"));
            std::fs::write(path, html(study).unwrap()).unwrap();
        }
    }
}
