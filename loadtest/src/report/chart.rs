//! Charts as SVG. Colours are classes, so that the page chooses them for its theme.

mod scale;

use std::fmt::Write;

use crate::report::format::short;
use scale::Scale;

/// Space around the plot for labels, in pixels.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 38.0;
/// A line with at most this many points shows each of them.
const MAX_DOTS: usize = 64;

/// An axis.
pub(super) struct Axis {
    /// What it shows, with its unit.
    pub label: &'static str,
    /// Whether equal distances are equal factors.
    pub log: bool,
    /// Formats a label.
    pub format: fn(f64) -> String,
    /// Values that it must include.
    pub include: Vec<f64>,
}

impl Axis {
    /// A linear axis from zero.
    pub(super) fn from_zero(label: &'static str) -> Self {
        Self { label, log: false, format: short, include: vec![0.0] }
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A line through the points, which shows single ones where there are few.
    Line,
    /// A dashed line.
    Dashed,
    /// A line with the area below it.
    Area,
    /// The points alone.
    Dots,
}

/// A series of points.
pub(super) struct Series {
    /// Its name in the legend. Empty for none.
    pub name: String,
    /// Class of its colour: `c0`, `c1`, ..., `bad`.
    pub class: &'static str,
    /// How it is drawn.
    pub style: Style,
    /// The points, and where a line has gaps `NaN`.
    pub points: Vec<(f64, f64)>,
}

/// A bar from one time to another.
pub(super) struct Bar {
    /// Row from the top.
    pub row: usize,
    /// From where to where.
    pub range: (f64, f64),
    /// Class of its colour.
    pub class: &'static str,
    /// What a pointer above it shows.
    pub title: String,
}

/// A vertical line with a label.
pub(super) struct Mark {
    /// Where.
    pub at: f64,
    /// What happened.
    pub label: String,
    /// Class of its colour.
    pub class: &'static str,
}

/// A chart.
pub(super) struct Chart {
    /// Width and height in pixels.
    pub size: (f64, f64),
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// Lines and dots.
    pub series: Vec<Series>,
    /// Bars, instead of a vertical axis.
    pub bars: Vec<Bar>,
    /// Vertical lines.
    pub marks: Vec<Mark>,
}

impl Chart {
    /// Returns the chart as an SVG element; `None` without any points.
    pub(super) fn svg(&self) -> Option<String> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let edges = self.bars.iter().flat_map(|bar| [bar.range.0, bar.range.1]);
        let x =
            Scale::new(&self.x, points().map(|p| p.0).chain(edges), (LEFT, self.size.0 - RIGHT))?;
        let rows = self.bars.iter().map(|bar| bar.row + 1).max();
        let vertical = (self.size.1 - BOTTOM, TOP);
        let y = match rows {
            Some(rows) => Scale { low: rows as f64, high: 0.0, log: false, pixels: vertical },
            None => Scale::new(&self.y, points().map(|p| p.1), vertical)?,
        };
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.draw(&mut out, &x, &y, rows.is_some());
        Some(out)
    }

    fn draw(&self, out: &mut String, x: &Scale, y: &Scale, rows: bool) -> std::fmt::Result {
        let (width, height) = self.size;
        let label = escape(&format!("{} over {}", self.y.label, self.x.label));
        write!(out, "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{label}\">")?;
        let (top, bottom) = (TOP, height - BOTTOM);
        for at in x.ticks() {
            let (px, text) = (x.pixel(at), escape(&(self.x.format)(at)));
            write!(out, "<path class=\"grid\" d=\"M{px:.1} {top}V{bottom}\"/>")?;
            let below = bottom + 15.0;
            write!(
                out,
                "<text class=\"tick\" x=\"{px:.1}\" y=\"{below}\" text-anchor=\"middle\">{text}</text>"
            )?;
        }
        for at in y.ticks().into_iter().filter(|_| !rows) {
            let (py, text) = (y.pixel(at), escape(&(self.y.format)(at)));
            let right = width - RIGHT;
            write!(out, "<path class=\"grid\" d=\"M{LEFT} {py:.1}H{right}\"/>")?;
            let (left, middle) = (LEFT - 6.0, py + 4.0);
            write!(
                out,
                "<text class=\"tick\" x=\"{left}\" y=\"{middle:.1}\" text-anchor=\"end\">{text}</text>"
            )?;
        }
        let (center, low) = ((LEFT + width - RIGHT) / 2.0, height - 5.0);
        write!(
            out,
            "<text class=\"axis\" x=\"{center}\" y=\"{low}\" text-anchor=\"middle\">{}</text>",
            escape(self.x.label)
        )?;
        write!(out, "<text class=\"axis\" x=\"4\" y=\"14\">{}</text>", escape(self.y.label))?;
        self.legend(out)?;
        for bar in &self.bars {
            let (from, to) = (x.pixel(bar.range.0), x.pixel(bar.range.1));
            let (upper, lower) = (y.pixel(bar.row as f64), y.pixel(bar.row as f64 + 1.0));
            // A pause is thin.
            let inset = if bar.class == "resumed" { 0.4 * (lower - upper) } else { 0.5 };
            write!(
                out,
                "<rect class=\"bar {}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                bar.class,
                upper + inset,
                (to - from).max(0.8),
                (lower - upper - 2.0 * inset).max(0.5),
                escape(&bar.title)
            )?;
        }
        for series in &self.series {
            self.draw_series(out, series, x, y)?;
        }
        for mark in &self.marks {
            let px = x.pixel(mark.at);
            // On the side that has space.
            let (anchor, text) =
                if px > 0.7 * width { ("end", px - 4.0) } else { ("start", px + 4.0) };
            write!(
                out,
                "<path class=\"mark {0}\" d=\"M{px:.1} {top}V{bottom}\"/><text class=\"label {0}\" x=\"{text:.1}\" y=\"{1}\" text-anchor=\"{anchor}\">{2}</text>",
                mark.class,
                top - 5.0,
                escape(&mark.label)
            )?;
        }
        out.push_str("</svg>");
        Ok(())
    }

    /// The names of the series, from the right.
    fn legend(&self, out: &mut String) -> std::fmt::Result {
        let mut right = self.size.0 - RIGHT;
        for series in self.series.iter().rev().filter(|series| !series.name.is_empty()) {
            write!(
                out,
                "<text class=\"key {}\" x=\"{right:.0}\" y=\"14\" text-anchor=\"end\">{}</text>",
                series.class,
                escape(&series.name)
            )?;
            right -= 7.0 * series.name.chars().count() as f64 + 14.0;
        }
        Ok(())
    }

    fn draw_series(
        &self,
        out: &mut String,
        series: &Series,
        x: &Scale,
        y: &Scale,
    ) -> std::fmt::Result {
        let Series { class, style, points, .. } = series;
        let drawn =
            |(px, py): &&(f64, f64)| px.is_finite() && py.is_finite() && x.has(*px) && y.has(*py);
        if *style != Style::Dots {
            let mut path = String::new();
            let mut pen_down = false;
            for point in points {
                if !drawn(&point) {
                    pen_down = false;
                    continue;
                }
                let command = if pen_down { 'L' } else { 'M' };
                write!(path, "{command}{:.1} {:.1}", x.pixel(point.0), y.pixel(point.1))?;
                pen_down = true;
            }
            let dashed = if *style == Style::Dashed { " dashed" } else { "" };
            let ends = (points.first(), points.last());
            if let (Style::Area, (Some(first), Some(last))) = (style, ends) {
                let base = y.pixels.0;
                write!(
                    out,
                    "<path class=\"area {class}\" d=\"{path}L{:.1} {base:.1}L{:.1} {base:.1}Z\"/>",
                    x.pixel(last.0),
                    x.pixel(first.0)
                )?;
            }
            write!(out, "<path class=\"line {class}{dashed}\" d=\"{path}\"/>")?;
        }
        if *style == Style::Dots || (*style == Style::Line && points.len() <= MAX_DOTS) {
            for point in points.iter().filter(drawn) {
                let (at, value) = ((self.x.format)(point.0), (self.y.format)(point.1));
                write!(
                    out,
                    "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"><title>{}</title></circle>",
                    x.pixel(point.0),
                    y.pixel(point.1),
                    escape(&format!("{} {value} at {at}", series.name))
                )?;
            }
        }
        Ok(())
    }
}

/// Escapes text for SVG and HTML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_chart_has_its_points_gaps_and_escaped_labels() {
        let series = |style, points: &[(f64, f64)]| Series {
            name: "a<b".into(),
            class: "c0",
            style,
            points: points.to_vec(),
        };
        let gap = [(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)];
        let chart = |series| Chart {
            size: (300.0, 200.0),
            x: Axis { label: "x", log: false, format: short, include: Vec::new() },
            y: Axis::from_zero("y"),
            series,
            bars: Vec::new(),
            marks: vec![Mark { at: 1.0, label: "\"&".into(), class: "bad" }],
        };
        let svg = chart(vec![series(Style::Line, &gap)]).svg().unwrap();
        let line = svg.split("class=\"line c0\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((line.matches('M').count(), line.matches('L').count()), (2, 1), "{line}");
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a&lt;b") && svg.contains("&quot;&amp;"), "{svg}");
        assert_eq!(chart(Vec::new()).svg(), None);
        assert_eq!(chart(vec![series(Style::Area, &[(0.0, f64::NAN)])]).svg(), None);
    }
}
