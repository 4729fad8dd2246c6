//! Figures as inline SVG: curves over minibatches and horizontal bars.
//!
//! Drawn by hand, not by a plotting crate: without fonts at hand such crates guess the widths of text, and a figure with its labels set
//! directly beside bars and curves needs no legend to be looked up.

use std::fmt::Write;

/// Width of every figure, in pixels of its own coordinates.
const WIDTH: f64 = 980.0;
/// Mean width of a character at font size 1.
const CHARACTER: f64 = 0.56;
const INK: &str = "#202124";
const FAINT: &str = "#5f6368";
const GRID: &str = "#e3e6ea";

/// Text made safe for markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// How numbers of an axis are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// With as many digits as they need.
    Plain,
    /// As a share of 1, in percent.
    Percent,
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Percent => format!("{} %", tidy(value * 100.0)),
            Self::Plain => tidy(value),
        }
    }
}

/// A number without needless digits, thousands apart.
pub fn tidy(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size => (2 - size.log10().floor() as i32).clamp(0, 9) as usize,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    let (whole, rest) = text.split_once('.').map_or((text, None), |(whole, rest)| (whole, Some(rest)));
    let mut apart = String::new();
    for (at, digit) in whole.chars().enumerate() {
        let left = whole.len() - at;
        if at > 0
            && left.is_multiple_of(3)
            && whole.as_bytes()[at - 1].is_ascii_digit()
            && whole.trim_start_matches('-').len() > 4
        {
            apart.push('\u{202f}');
        }
        apart.push(digit);
    }
    rest.map_or(apart.clone(), |rest| format!("{apart}.{rest}"))
}

/// An axis from 0 to a round number at or above `most`, and the distance of its ticks.
fn scale(most: f64) -> (f64, f64) {
    let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
    let rough = most / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    ((most / step * 0.999).ceil() * step, step)
}

fn ticks(top: f64, step: f64) -> impl Iterator<Item = f64> {
    (0..=(top / step).round() as u32).map(move |at| f64::from(at) * step)
}

/// Where text is anchored.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// A figure under construction.
struct Canvas {
    body: String,
}

impl Canvas {
    fn new() -> Self {
        Self { body: String::new() }
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let _ = write!(
            self.body,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{colour}" stroke-width="{width}"/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    fn text(&mut self, at: (f64, f64), anchor: Anchor, size: u32, colour: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = write!(
            self.body,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{}</text>"#,
            at.0,
            at.1,
            escape(text)
        );
    }

    fn upright(&mut self, at: (f64, f64), text: &str) {
        let _ = write!(
            self.body,
            r#"<text transform="translate({:.1} {:.1}) rotate(-90)" text-anchor="middle" font-size="12" fill="{FAINT}">{}</text>"#,
            at.0,
            at.1,
            escape(text)
        );
    }

    fn bar(&mut self, at: (f64, f64), size: (f64, f64), colour: &str, title: &str) {
        let _ = write!(
            self.body,
            r#"<rect x="{:.1}" y="{:.1}" width="{:.2}" height="{:.1}" fill="{colour}"><title>{}</title></rect>"#,
            at.0,
            at.1,
            size.0.max(0.0),
            size.1,
            escape(title)
        );
    }

    fn dot(&mut self, at: (f64, f64), title: &str) {
        let _ = write!(
            self.body,
            r##"<circle cx="{:.1}" cy="{:.1}" r="3" fill="#fff" fill-opacity=".85" stroke="{INK}" stroke-width="1"><title>{}</title></circle>"##,
            at.0,
            at.1,
            escape(title)
        );
    }

    fn curve(&mut self, points: impl Iterator<Item = (f64, f64)>, colour: &str, title: &str) {
        let path: String = points
            .enumerate()
            .map(|(at, (x, y))| format!("{}{x:.1} {y:.1}", if at == 0 { "M" } else { "L" }))
            .collect();
        let _ = write!(
            self.body,
            r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"><title>{}</title></path>"#,
            escape(title)
        );
    }

    fn finish(self, height: f64, label: &str) -> String {
        format!(
            r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg">{}</svg>"#,
            escape(label),
            self.body
        )
    }
}

/// One set-up's values, a minibatch each.
pub struct Curve {
    /// Its name, set at the curve's end.
    pub name: String,
    /// Its colour.
    pub colour: &'static str,
    /// Its values.
    pub values: Vec<f64>,
}

/// Marks on a lane below the curves.
pub struct Lane {
    /// Whose marks.
    pub name: String,
    /// Their colour.
    pub colour: &'static str,
    /// The minibatches marked.
    pub at: Vec<usize>,
}

/// Curves over minibatches.
pub struct Curves {
    /// What the figure shows, for those who cannot see it.
    pub label: String,
    /// The y axis in words, unit included.
    pub y: String,
    /// How its numbers are written.
    pub unit: Unit,
    /// The curves.
    pub curves: Vec<Curve>,
    /// Where epochs begin.
    pub epochs: Vec<usize>,
    /// Decisions and such.
    pub lanes: Vec<Lane>,
}

impl Curves {
    /// As an SVG element.
    pub fn svg(&self) -> String {
        const LEFT: f64 = 74.0;
        const RIGHT: f64 = 118.0;
        const TOP: f64 = 22.0;
        const PLOT: f64 = 260.0;
        const LANE: f64 = 15.0;
        let mut canvas = Canvas::new();
        let count = self.curves.iter().map(|curve| curve.values.len()).max().unwrap_or(0).max(2);
        let most = self.curves.iter().flat_map(|curve| &curve.values).copied().fold(0.0, f64::max);
        let (top, step) = scale(if self.unit == Unit::Percent { most.min(1.0) } else { most });
        let x = |at: f64| LEFT + at / (count - 1) as f64 * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| TOP + PLOT - value / top * PLOT;
        for tick in ticks(top, step) {
            canvas.line((LEFT, y(tick)), (WIDTH - RIGHT, y(tick)), GRID, 1.0);
            canvas.text((LEFT - 8.0, y(tick) + 4.0), Anchor::End, 12, FAINT, &self.unit.text(tick));
        }
        let bottom = TOP + PLOT + LANE * self.lanes.len() as f64 + if self.lanes.is_empty() { 0.0 } else { 8.0 };
        for (number, &start) in self.epochs.iter().enumerate() {
            if start > 0 {
                canvas.line((x(start as f64), TOP), (x(start as f64), bottom), "#c6cbd1", 1.0);
            }
            let room = (WIDTH - LEFT - RIGHT) / self.epochs.len() as f64;
            if room > 56.0 {
                canvas.text(
                    (x(start as f64) + 4.0, TOP - 8.0),
                    Anchor::Start,
                    11,
                    FAINT,
                    &format!("epoch {}", number + 1),
                );
            }
        }
        for curve in &self.curves {
            let points = curve.values.iter().enumerate().map(|(at, &value)| (x(at as f64), y(value)));
            canvas.curve(points, curve.colour, &curve.name);
        }
        for (at, text_y) in self.label_places(y, TOP, PLOT) {
            let curve = &self.curves[at];
            canvas.text((WIDTH - RIGHT + 8.0, text_y + 4.0), Anchor::Start, 12, curve.colour, &curve.name);
        }
        for (number, lane) in self.lanes.iter().enumerate() {
            let middle = TOP + PLOT + 8.0 + LANE * (number as f64 + 0.5);
            canvas.line((LEFT, middle), (WIDTH - RIGHT, middle), GRID, 1.0);
            for &at in &lane.at {
                canvas.line((x(at as f64), middle - 5.0), (x(at as f64), middle + 5.0), lane.colour, 1.4);
            }
            let words = format!("{} decides", lane.name);
            canvas.text((WIDTH - RIGHT + 8.0, middle + 4.0), Anchor::Start, 11, lane.colour, &words);
        }
        let (x_top, x_step) = scale(count as f64);
        for tick in ticks(x_top, x_step).filter(|&tick| tick <= (count - 1) as f64) {
            canvas.text((x(tick), bottom + 16.0), Anchor::Middle, 12, FAINT, &tidy(tick));
        }
        canvas.line((LEFT, TOP + PLOT), (WIDTH - RIGHT, TOP + PLOT), FAINT, 1.0);
        canvas.text((LEFT + (WIDTH - LEFT - RIGHT) / 2.0, bottom + 36.0), Anchor::Middle, 12, FAINT, "minibatch");
        canvas.upright((16.0, TOP + PLOT / 2.0), &self.y);
        canvas.finish(bottom + 44.0, &self.label)
    }

    /// Where the names at the curves' ends go, top down, so that none covers another.
    fn label_places(&self, y: impl Fn(f64) -> f64, top: f64, height: f64) -> Vec<(usize, f64)> {
        const APART: f64 = 15.0;
        let mut places: Vec<(usize, f64)> = self
            .curves
            .iter()
            .enumerate()
            .filter_map(|(at, curve)| curve.values.last().map(|&value| (at, y(value))))
            .collect();
        places.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut above = f64::NEG_INFINITY;
        for place in &mut places {
            place.1 = place.1.max(above + APART);
            above = place.1;
        }
        // What ran over the bottom is pushed back up.
        let mut below = top + height + APART;
        for place in places.iter_mut().rev() {
            place.1 = place.1.min(below - APART);
            below = place.1;
        }
        places
    }
}

/// One part of a stacked bar.
pub struct Part {
    /// Its length.
    pub value: f64,
    /// Its colour.
    pub colour: &'static str,
    /// What it is.
    pub name: &'static str,
}

/// One line of a bar figure.
pub enum Line {
    /// Words over the bars that follow.
    Heading(String),
    /// A bar.
    Bar {
        /// Set to its left.
        name: String,
        /// Stacked from the left.
        parts: Vec<Part>,
        /// Single measurements, as dots.
        dots: Vec<f64>,
        /// Set to its right.
        note: String,
    },
}

/// Horizontal bars.
pub struct Bars {
    /// What the figure shows, for those who cannot see it.
    pub label: String,
    /// The x axis in words, unit included.
    pub x: String,
    /// From top to bottom.
    pub lines: Vec<Line>,
}

impl Bars {
    /// As an SVG element.
    pub fn svg(&self) -> String {
        const RIGHT: f64 = 170.0;
        const ROW: f64 = 27.0;
        const BAR: f64 = 17.0;
        let left = self.names_width().max(112.0);
        let mut canvas = Canvas::new();
        let legend = self.legend();
        let top = if legend.len() > 1 { 30.0 } else { 6.0 };
        let bottom = top + ROW * self.lines.len() as f64;
        let (most, step) = scale(self.longest());
        let x = |value: f64| left + value / most * (WIDTH - left - RIGHT);
        for tick in ticks(most, step) {
            canvas.line((x(tick), top), (x(tick), bottom), GRID, 1.0);
            canvas.text((x(tick), bottom + 16.0), Anchor::Middle, 12, FAINT, &tidy(tick));
        }
        if legend.len() > 1 {
            let mut at = left;
            for (name, colour) in legend {
                canvas.bar((at, 6.0), (12.0, 12.0), colour, name);
                canvas.text((at + 17.0, 16.5), Anchor::Start, 12, INK, name);
                at += 17.0 + name.len() as f64 * 12.0 * CHARACTER + 18.0;
            }
        }
        for (number, line) in self.lines.iter().enumerate() {
            let y = top + ROW * number as f64;
            match line {
                Line::Heading(words) => canvas.text((left, y + 18.0), Anchor::Start, 12, FAINT, words),
                Line::Bar { name, parts, dots, note } => {
                    canvas.text((left - 8.0, y + 18.0), Anchor::End, 13, INK, name);
                    let mut end = 0.0;
                    for part in parts {
                        let title = format!("{name}, {}: {}", part.name, tidy(part.value));
                        let width = x(end + part.value) - x(end);
                        canvas.bar((x(end), y + (ROW - BAR) / 2.0), (width, BAR), part.colour, &title);
                        end += part.value;
                    }
                    for &value in dots {
                        canvas.dot((x(value), y + ROW / 2.0), &format!("{name}: {}", tidy(value)));
                        end = value.max(end);
                    }
                    canvas.text((x(end) + 9.0, y + 18.0), Anchor::Start, 12, INK, note);
                }
            }
        }
        canvas.line((left, top), (left, bottom), FAINT, 1.0);
        canvas.text((left + (WIDTH - left - RIGHT) / 2.0, bottom + 36.0), Anchor::Middle, 12, FAINT, &self.x);
        canvas.finish(bottom + 44.0, &self.label)
    }

    /// What the names to the left of the bars take.
    fn names_width(&self) -> f64 {
        let of = |line: &Line| match line {
            Line::Heading(_) => 0,
            Line::Bar { name, .. } => name.chars().count(),
        };
        self.lines.iter().map(of).max().unwrap_or(0) as f64 * 13.0 * CHARACTER + 12.0
    }

    fn longest(&self) -> f64 {
        let of = |line: &Line| match line {
            Line::Heading(_) => 0.0,
            Line::Bar { parts, dots, .. } => {
                dots.iter().copied().fold(parts.iter().map(|part| part.value).sum(), f64::max)
            }
        };
        self.lines.iter().map(of).fold(0.0, f64::max)
    }

    /// The names and colours of the parts, in order of first use, where bars have several parts.
    fn legend(&self) -> Vec<(&'static str, &'static str)> {
        let mut legend = Vec::new();
        for line in &self.lines {
            if let Line::Bar { parts, .. } = line {
                for part in parts.iter().filter(|_| parts.len() > 1) {
                    if !legend.contains(&(part.name, part.colour)) {
                        legend.push((part.name, part.colour));
                    }
                }
            }
        }
        legend
    }
}

#[cfg(test)]
mod tests {
    //! Goal: axes hold their values and text stays legible. Method: known values, and the bounds that the drawing promises.

    use super::*;

    #[test]
    fn scales_are_round_and_hold_the_value() {
        for (most, top, step) in
            [(0.93, 1.0, 0.2), (1.0, 1.0, 0.2), (7.3, 8.0, 2.0), (1234.0, 1250.0, 250.0), (0.0, 1.0, 0.2)]
        {
            let (got_top, got_step) = scale(most);
            assert!((got_top - top).abs() < 1e-9 && (got_step - step).abs() < 1e-9, "{most}: {got_top} {got_step}");
        }
    }

    #[test]
    fn numbers_are_written_without_needless_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (1234.0, "1234"),
            (0.00123, "0.00123"),
            (1234567.0, "1\u{202f}234\u{202f}567"),
        ] {
            assert_eq!(tidy(value), text);
        }
    }

    #[test]
    fn names_at_the_ends_of_equal_curves_do_not_cover_each_other() {
        let curve = |name: &str| Curve { name: name.to_owned(), colour: "#000", values: vec![0.0, 0.0] };
        let curves = Curves {
            label: String::new(),
            y: String::new(),
            unit: Unit::Plain,
            curves: ["a", "b", "c"].map(curve).into(),
            epochs: vec![0],
            lanes: vec![],
        };
        let places = curves.label_places(|_| 260.0, 0.0, 260.0);
        assert!(places.windows(2).all(|pair| pair[1].1 - pair[0].1 >= 15.0) && places[2].1 <= 260.0, "{places:?}");
    }

    #[test]
    fn markup_in_names_is_escaped() {
        let bars = Bars {
            label: "a<b".to_owned(),
            x: "s".to_owned(),
            lines: vec![Line::Bar {
                name: "<script>".to_owned(),
                parts: vec![Part { value: 1.0, colour: "#000", name: "all" }],
                dots: vec![f64::from(2)],
                note: "&".to_owned(),
            }],
        };
        let svg = bars.svg();
        assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;") && svg.contains("&amp;</text>"));
    }
}
