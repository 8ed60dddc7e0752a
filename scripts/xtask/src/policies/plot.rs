//! Plots the cumulative distribution of the time to first token.

use std::fmt::Write;

/// Name of a panel, and the name and sorted values of each line.
pub(crate) type Panel = (String, Vec<(String, Vec<f64>)>);

const COLOURS: [&str; 4] = ["#0072b2", "#009e73", "#e69f00", "#999999"];
const DASHES: [&str; 4] = ["", "", "6 3", "2 3"];
const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 40.0;
/// Ends of the time axis, as powers of ten in seconds.
const DECADES: (i32, i32) = (-2, 2);

pub(crate) fn draw(panels: &[Panel]) -> String {
    let (panel_width, all_height) = (WIDTH + LEFT + 20.0, HEIGHT + TOP + 75.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {all_height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        panel_width * panels.len() as f64
    );
    for (i, (name, lines)) in panels.iter().enumerate() {
        let left = panel_width * i as f64 + LEFT;
        axes(&mut svg, left, name);
        for (k, (_, values)) in lines.iter().enumerate() {
            line(&mut svg, left, values, COLOURS[k % 4], DASHES[k % 4]);
        }
    }
    for (k, (name, _)) in panels.iter().flat_map(|(_, lines)| lines.iter().enumerate()).take(4) {
        let (x, y) = (LEFT + 170.0 * k as f64, all_height - 15.0);
        let (colour, dash) = (COLOURS[k], DASHES[k]);
        writeln!(
            svg,
            "<path d=\"M{x} {y}h26\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-dasharray=\"{dash}\"/><text x=\"{}\" y=\"{}\">{name}</text>",
            x + 32.0,
            y + 4.0
        )
        .unwrap();
    }
    svg + "</svg>\n"
}

/// Returns the position of a time on the axis, from 0 to 1.
fn position(seconds: f64) -> f64 {
    let (first, last) = (f64::from(DECADES.0), f64::from(DECADES.1));
    ((seconds.max(1e-9).log10() - first) / (last - first)).clamp(0.0, 1.0)
}

fn axes(svg: &mut String, left: f64, name: &str) {
    let bottom = TOP + HEIGHT;
    writeln!(svg, "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{name}</text>", TOP - 14.0)
        .unwrap();
    for decade in DECADES.0..=DECADES.1 {
        let seconds = 10f64.powi(decade);
        let x = left + position(seconds) * WIDTH;
        writeln!(
            svg,
            "<path d=\"M{x} {TOP}V{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{seconds} s</text>",
            bottom + 16.0
        )
        .unwrap();
    }
    for quarter in 0..=4 {
        let y = bottom - HEIGHT * f64::from(quarter) / 4.0;
        writeln!(
            svg,
            "<path d=\"M{left} {y}h{WIDTH}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} %</text>",
            left - 6.0,
            y + 4.0,
            quarter * 25
        )
        .unwrap();
    }
    writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">requests with their first token by then</text>",
        left + WIDTH / 2.0,
        bottom + 34.0
    )
    .unwrap();
}

fn line(svg: &mut String, left: f64, values: &[f64], colour: &str, dash: &str) {
    let points = (0..=200).map(|i| {
        let fraction = f64::from(i) / 200.0;
        let at = (fraction * (values.len() - 1) as f64) as usize;
        let (x, y) = (left + position(values[at]) * WIDTH, TOP + HEIGHT * (1.0 - fraction));
        format!("{x:.1},{y:.1} ")
    });
    writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
         stroke-dasharray=\"{dash}\"/>",
        points.collect::<String>().trim_end()
    )
    .unwrap();
}
