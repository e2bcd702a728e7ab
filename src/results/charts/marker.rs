//! One colour and one shape per variant: told apart in colour, in grey and by colour-blind readers.

use std::f64::consts::{PI, TAU};

use super::svg::Svg;

/// How many colours the style sheet defines, as classes `c0`, `c1` and so on. The first is the base's.
pub(in super::super) const COLOURS: usize = 8;

/// The radius of a marker.
pub(super) const RADIUS: f64 = 5.0;

/// The class that colours a variant.
pub(super) fn colour(variant: usize) -> String {
    format!("c{}", variant % COLOURS)
}

/// Draws the marker of a variant.
pub(super) fn draw(svg: &mut Svg, variant: usize, centre: (f64, f64), radius: f64) {
    svg.path(
        &format!("mark {}", colour(variant)),
        &outline(variant, centre, radius),
        true,
    );
}

/// The marker alone, for a legend.
pub(in super::super) fn legend_marker(variant: usize) -> String {
    let mut svg = Svg::new(14.0, 14.0, "");
    draw(&mut svg, variant, (7.0, 7.0), RADIUS);
    svg.finish()
        .replacen("role=\"img\" aria-label=\"\"", "aria-hidden=\"true\"", 1)
}

/// Regular polygons of about one area. The shapes change at another pace than the colours, so that variants far apart
/// that share a colour differ in shape.
fn outline(variant: usize, (x, y): (f64, f64), radius: f64) -> Vec<(f64, f64)> {
    let up = -PI / 2.0;
    let (corners, first, size) = match variant % 5 {
        0 => (24, 0.0, 1.0),
        1 => (4, PI / 4.0, 1.25),
        2 => (3, up, 1.4),
        3 => (4, up, 1.3),
        _ => (3, -up, 1.4),
    };
    (0..corners)
        .map(|corner| {
            let angle = first + TAU * f64::from(corner) / f64::from(corners);
            (
                x + radius * size * angle.cos(),
                y + radius * size * angle.sin(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_forty_variants_look_different() {
        let looks: std::collections::HashSet<(String, usize)> = (0..40)
            .map(|variant| (colour(variant), variant % 5))
            .collect();
        assert_eq!(looks.len(), 40);
    }
}
