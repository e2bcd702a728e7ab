//! A run of the microbenchmark as one HTML page that opens offline, in the look of the report.

use minijinja::context;
use minijinja::value::Value;

use super::super::charts;
use super::super::report::{embedded, environment_facts, grid, render, safe, subtitle_of};
use super::document::{Library, Microbench, Shape};
use super::table;
use crate::error::Result;
use crate::results::format;

/// The page. Everything put into it is escaped unless it was made here.
const TEMPLATE: &str = include_str!("kernels.html.jinja");

/// Renders the page.
///
/// # Errors
/// Only if the template itself is broken.
pub(super) fn html(document: &Microbench) -> Result<String> {
    let mut variants: Vec<String> = Vec::new();
    for variant in document.shapes.iter().flat_map(Shape::variants) {
        if !variants.contains(&variant) {
            variants.push(variant);
        }
    }
    let legend = variants.iter().enumerate().map(|(place, label)| {
        context! { marker => safe(&charts::legend_marker(place)), label }
    });
    let shapes = document
        .shapes
        .iter()
        .map(|shape| section(shape, &variants));
    let figures = || {
        document
            .cells()
            .filter_map(|(_, cell)| cell.figures.as_ref())
    };
    let values = context! {
        title => "Kernels",
        subtitle => subtitle_of(&document.environment),
        tiles => tiles(document),
        legend => legend.collect::<Value>(),
        shapes => shapes.collect::<Value>(),
        environment => environment_facts(&document.environment),
        cpu_reference => figures().any(|f| f.cpu_reference),
        timer => figures().next().map(|f| f.timer.clone()),
        library => figures().any(|f| matches!(f.peer, Library::Measured { .. })),
        no_library => figures().find_map(|f| match &f.peer {
            Library::Unavailable { reason } => Some(reason.clone()),
            Library::Measured { .. } => None,
        }),
        ceilings => figures().any(|f| f.limit.is_some()),
        command => super::super::view::command_line(&document.command),
        json => safe(&embedded(document)?),
    };
    render("kernels.html", TEMPLATE, values)
}

fn section(shape: &Shape, variants: &[String]) -> Value {
    let pairs = |pairs: Vec<(String, String)>| -> Value {
        let pairs = pairs.into_iter();
        pairs.map(|(what, text)| context! { what, text }).collect()
    };
    context! {
        title => format!("{} {}", shape.op, shape.size_text()),
        roles => shape.roles.join(", "),
        chart => charts::by_tokens(shape, variants).as_deref().map(safe),
        fastest => table::fastest(shape),
        verified => table::verified(shape),
        figures => grid(&table::columns(shape)),
        plans => pairs(table::plans(shape)),
        failures => pairs(table::failures(shape)),
    }
}

/// The best and the worst share of the read floor of each variant.
fn tiles(document: &Microbench) -> Value {
    let mut tiles: Vec<(String, f64, f64, String)> = Vec::new();
    for (shape, cell) in document.cells() {
        let Some(figures) = &cell.figures else {
            continue;
        };
        let share = figures.percent_of_read_floor;
        let place = format!("{}, M {}", shape.size_text(), cell.tokens);
        match tiles.iter_mut().find(|tile| tile.0 == cell.variant) {
            Some(tile) => {
                tile.1 = tile.1.min(share);
                if share > tile.2 {
                    (tile.2, tile.3) = (share, place);
                }
            }
            None => tiles.push((cell.variant.clone(), share, share, place)),
        }
    }
    tiles
        .into_iter()
        .map(|(variant, low, high, place)| {
            context! {
                figure => format!("{} %", format::plain(high)),
                what => format!("of the read floor at best: {variant} at {place}; {} % at worst", format::plain(low)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn the_page_loads_nothing_and_shows_every_shape() {
        let document = fixture::document();
        let page = html(&document).unwrap();
        for load in [
            "src=", "href=", "url(", "@import", "http://", "https://", "fetch(",
        ] {
            assert!(!page.contains(load), "{load}");
        }
        for broken in ["NaN", "Infinity", ">inf", "-inf"] {
            assert!(!page.contains(broken), "{broken}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("Time against tokens").count(), 2);
        for class in [
            "series c0",
            "floor c1",
            "roof c2",
            "library c0",
            "\"cross\"",
        ] {
            assert!(page.contains(class), "{class}");
        }
        assert!(page.contains(" → bf16, M ≈"));
        assert!(page.contains("not timed: element 17"));
        let start = page.find("id=\"kernels\">").unwrap() + "id=\"kernels\">".len();
        let end = start + page[start..].find("</script>").unwrap();
        let read: Microbench = serde_json::from_str(&page[start..end]).unwrap();
        assert_eq!(read, document);
    }

    #[test]
    fn every_class_has_a_style() {
        let page = html(&fixture::document()).unwrap();
        let style = &page[page.find("<style>").unwrap()..page.find("</style>").unwrap()];
        for part in page.split("class=\"").skip(1) {
            for class in part[..part.find('"').unwrap()].split_whitespace() {
                assert!(style.contains(&format!(".{class}")), "{class}");
            }
        }
    }

    #[test]
    fn a_run_without_figures_is_a_page_too() {
        let empty = html(&fixture::document_of(&[])).unwrap();
        assert!(empty.contains("Nothing was timed"));
    }

    /// Writes the page for a human to look at: `CANDLEPOWER_PAGES=dir cargo test pages_for_eyes`.
    #[test]
    fn pages_for_eyes() {
        let Some(dir) = std::env::var_os("CANDLEPOWER_PAGES") else {
            return;
        };
        let path = std::path::Path::new(&dir).join("kernels.html");
        std::fs::write(path, html(&fixture::document()).unwrap()).unwrap();
    }
}
