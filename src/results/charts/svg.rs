//! Writing SVG elements as text, every string escaped on the way.

use std::fmt::{Display, Write};

/// A drawing under way.
pub(super) struct Svg {
    text: String,
}

/// Where a text hangs on its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    /// A drawing of this size; `label` says to a screen reader what it shows.
    pub(super) fn new(width: f64, height: f64, label: &str) -> Self {
        let mut svg = Self {
            text: String::new(),
        };
        svg.put(format_args!(
            r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{}">"#,
            escaped(label)
        ));
        svg
    }

    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        self.put(format_args!(
            r#"<line class="{class}" x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}"/>"#,
            from.0, from.1, to.0, to.1
        ));
    }

    pub(super) fn rect(&mut self, class: &str, corner: (f64, f64), size: (f64, f64)) {
        self.put(format_args!(
            r#"<rect class="{class}" x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}"/>"#,
            corner.0,
            corner.1,
            size.0.max(0.0),
            size.1.max(0.0)
        ));
    }

    pub(super) fn path(&mut self, class: &str, points: &[(f64, f64)], closed: bool) {
        let mut d = String::new();
        for (place, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{x:.1} {y:.1}", if place == 0 { "M" } else { "L" });
        }
        if closed {
            d.push('Z');
        }
        self.put(format_args!(r#"<path class="{class}" d="{d}"/>"#));
    }

    pub(super) fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.put(format_args!(
            r#"<text class="{class}" x="{:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>"#,
            at.0,
            at.1,
            escaped(text)
        ));
    }

    /// A text that reads upwards, for the name of a vertical axis.
    pub(super) fn upward_text(&mut self, class: &str, at: (f64, f64), text: &str) {
        self.put(format_args!(
            r#"<text class="{class}" transform="translate({:.1} {:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            at.0,
            at.1,
            escaped(text)
        ));
    }

    /// Elements that belong together; `tip` appears under the pointer.
    pub(super) fn group(&mut self, class: &str, tip: &str, draw: impl FnOnce(&mut Self)) {
        self.put(format_args!(r#"<g class="{class}">"#));
        if !tip.is_empty() {
            self.put(format_args!("<title>{}</title>", escaped(tip)));
        }
        draw(self);
        self.put("</g>");
    }

    pub(super) fn finish(mut self) -> String {
        self.put("</svg>");
        self.text
    }

    fn put(&mut self, element: impl Display) {
        let _ = write!(self.text, "{element}");
    }
}

/// A text that is safe inside an element and inside a quoted attribute.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_cannot_leave_their_place() {
        let mut svg = Svg::new(10.0, 10.0, r#"a "label""#);
        svg.group("g", "</title><script>", |svg| {
            svg.text("t", (1.0, 2.0), Anchor::Middle, "<b> & c");
        });
        let text = svg.finish();
        assert!(!text.contains("<script>") && !text.contains("<b>"));
        assert!(text.contains("&lt;b&gt; &amp; c") && text.contains("&quot;label&quot;"));
    }
}
