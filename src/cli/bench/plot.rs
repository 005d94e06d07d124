//! The curve of a sweep as an SVG picture: tokens per second and time to first text over the requests at once.

use std::fmt::Write;

use super::report::{Level, Report};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
const MARGIN: f64 = 60.0;

/// One panel's line: a colour, a name, and a value per level.
struct Line<'a> {
    colour: &'a str,
    name: &'a str,
    value: fn(&Level) -> f64,
}

/// Draws the report.
pub fn svg(report: &Report) -> String {
    let total = 2.0 * (WIDTH + MARGIN) + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {total} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"14\">{} on {}</text>\n",
        HEIGHT + 2.0 * MARGIN,
        escape(&report.model),
        escape(&report.place),
    );
    let speed = [Line { colour: "#0a6", name: "tokens/s", value: Level::tokens_per_second }];
    let delay = [
        Line { colour: "#06a", name: "first text, ms, p50", value: |level| level.first_text.p50 },
        Line { colour: "#a33", name: "first text, ms, p99", value: |level| level.first_text.p99 },
    ];
    panel(&mut out, report, MARGIN, &speed);
    panel(&mut out, report, 2.0 * MARGIN + WIDTH, &delay);
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, report: &Report, left: f64, lines: &[Line]) {
    let top = MARGIN;
    let most = lines.iter().flat_map(|line| report.levels.iter().map(line.value)).filter(|value| value.is_finite());
    let ceiling = nice(most.fold(0.0, f64::max));
    let largest = report.levels.iter().map(|level| level.concurrency).max().unwrap_or(1);
    let doublings = (largest as f64).log2().max(1.0);
    let x = |level: &Level| left + WIDTH * (level.concurrency as f64).log2() / doublings;
    let y = |value: f64| top + HEIGHT * (1.0 - value / ceiling);
    // Writing to a string cannot fail.
    for quarter in 0..=4 {
        let value = ceiling * f64::from(quarter) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{2:.1}\" y=\"{3:.1}\" text-anchor=\"end\">{value}</text>",
            left + WIDTH,
            y(value),
            left - 6.0,
            y(value) + 4.0
        );
    }
    for level in &report.levels {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(level),
            top + HEIGHT + 18.0,
            level.concurrency
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">requests at once</text>",
        left + WIDTH / 2.0,
        top + HEIGHT + 38.0
    );
    for (number, line) in lines.iter().enumerate() {
        let drawn = report.levels.iter().filter(|level| (line.value)(level).is_finite());
        let points: Vec<String> = drawn.map(|level| format!("{:.1},{:.1}", x(level), y((line.value)(level)))).collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{0}\" stroke-width=\"2\" points=\"{1}\"/>\
             <text x=\"{2:.1}\" y=\"{3:.1}\" fill=\"{0}\">{4}</text>",
            line.colour,
            points.join(" "),
            left + 10.0,
            top + 16.0 * (number as f64 + 1.0),
            escape(line.name)
        );
    }
}

/// The next number of the form 1, 2, 4 or 8 times a power of ten: an axis whose quarters are readable.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 8.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(10.0 * power)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_drawn_and_text_is_escaped() {
        let picture = svg(&super::super::report::tests::example());
        assert_eq!(picture.matches("<polyline").count(), 3);
        let points = picture.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        assert_eq!(points.split(' ').count(), 3);
        assert!(picture.contains("a &lt;model&gt; on cpu &amp; more"));
        assert!(!picture.contains("NaN"));
    }

    #[test]
    fn axes_end_on_readable_numbers() {
        for (value, ceiling) in [(0.0, 1.0), (1.0, 1.0), (3.0, 4.0), (97.0, 100.0), (410.0, 800.0), (8100.0, 10000.0)] {
            assert_eq!(nice(value), ceiling);
        }
    }
}
