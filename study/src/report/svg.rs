//! Figures as SVG: a canvas, colours in two flavours, ticks.
//!
//! Shapes have classes, not colours. In a page, the classes are bound to variables that follow the reader's light or dark
//! scheme; a figure for a paper carries a style sheet with the light colours.

use std::fmt::Write;

/// A colour: class, light, dark. `c` are categories (Okabe and Ito's set, darkened where text-sized marks need it), `p` the
/// parts of [`crate::numbers::PARTS`].
const COLOURS: [(&str, &str, &str); 19] = [
    ("paper", "#ffffff", "#14181f"),
    ("ink", "#1b2330", "#e6eaf0"),
    ("muted", "#5a6575", "#a3adbb"),
    ("grid", "#e2e6eb", "#2b323d"),
    ("axis", "#8c96a3", "#6b7685"),
    ("c0", "#3b76af", "#6aa5dc"),
    ("c1", "#e69f00", "#f0b541"),
    ("c2", "#c8413b", "#ef7a6d"),
    ("c3", "#2a9d78", "#4fc3a1"),
    ("c4", "#8a5fa8", "#b996d3"),
    ("c5", "#7a6a53", "#b8a88f"),
    ("p0", "#9aa8b8", "#76859a"),
    ("p1", "#7fb2dd", "#5b93c4"),
    ("p2", "#2f6496", "#8fc1ee"),
    ("p3", "#c8413b", "#ef7a6d"),
    ("p4", "#e69f00", "#f0b541"),
    ("p5", "#2a9d78", "#4fc3a1"),
    ("p6", "#dfe3e8", "#394250"),
    ("better", "#1f7a5a", "#5fd0ad"),
];

/// Categories that have a colour.
pub const CATEGORIES: usize = 6;

/// Who shows a figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum For {
    /// A page with [`variables`] and [`classes`].
    Page,
    /// A file of its own.
    Paper,
}

/// The colours as CSS variables: of the light scheme, or the dark.
#[must_use]
pub fn variables(dark: bool) -> String {
    COLOURS.iter().fold(String::new(), |mut css, (name, l, d)| {
        let _ = write!(css, "--{name}:{};", if dark { d } else { l });
        css
    })
}

/// What the classes look like: by variables, or by light colours.
#[must_use]
pub fn classes(who: For) -> String {
    let colour = |name: &str, light: &str| match who {
        For::Page => format!("var(--{name})"),
        For::Paper => light.to_owned(),
    };
    let mut css = String::new();
    for (name, light, _) in COLOURS {
        let c = colour(name, light);
        let _ = write!(
            css,
            ".f-{name}{{fill:{c}}}.s-{name}{{stroke:{c};fill:none}}"
        );
    }
    let find = |name: &str| {
        let found = COLOURS.iter().find(|(n, _, _)| *n == name);
        found.map_or(String::new(), |(n, light, _)| colour(n, light))
    };
    let (ink, muted) = (find("ink"), find("muted"));
    let _ = write!(
        css,
        ".t{{fill:{ink};font-size:12px}}.tm{{fill:{muted};font-size:11px}}.tb{{fill:{ink};font-size:12px;font-weight:600}}\
         .tv{{fill:{ink};font-size:10px}}.th{{fill:{ink};font-size:13px;font-weight:600}}"
    );
    css
}

const FONT: &str = "'DejaVu Sans',Verdana,'Segoe UI',Helvetica,Arial,sans-serif";

/// Where a text is at its point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Anchor {
    /// Begins there.
    Start,
    /// Is centred there.
    Middle,
    /// Ends there.
    End,
}

/// A figure in the making.
#[derive(Clone, Debug)]
pub struct Canvas {
    width: f64,
    body: String,
}

impl Canvas {
    /// So many pixels wide.
    #[must_use]
    pub fn new(width: f64) -> Self {
        Self {
            width,
            body: String::new(),
        }
    }

    /// A rectangle with a tooltip.
    pub fn bar(&mut self, x: f64, y: f64, w: f64, h: f64, class: &str, title: &str) {
        if w <= 0.0 || h <= 0.0 {
            return;
        }
        let _ = write!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.2}\" height=\"{h:.1}\" class=\"f-{class}\"><title>{}</title></rect>",
            escaped(title)
        );
    }

    /// A straight line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str, width: f64) {
        let _ = write!(
            self.body,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" class=\"s-{class}\" stroke-width=\"{width}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// A line through points.
    pub fn path(&mut self, points: &[(f64, f64)], class: &str, width: f64) {
        let points = points.iter().fold(String::new(), |mut text, (x, y)| {
            let _ = write!(text, "{x:.1},{y:.1} ");
            text
        });
        let _ = write!(
            self.body,
            "<polyline points=\"{}\" class=\"s-{class}\" stroke-width=\"{width}\" stroke-linejoin=\"round\"/>",
            points.trim_end()
        );
    }

    /// A point with a tooltip.
    pub fn dot(&mut self, at: (f64, f64), radius: f64, class: &str, title: &str) {
        let _ = write!(
            self.body,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" class=\"f-{class}\"><title>{}</title></circle>",
            at.0,
            at.1,
            escaped(title)
        );
    }

    /// Text.
    pub fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = write!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>",
            escaped(text)
        );
    }

    /// Text upwards along the left side.
    pub fn upwards(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ = write!(
            self.body,
            "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"middle\" class=\"{class}\">{}</text>",
            escaped(text)
        );
    }

    /// A legend in rows that fit; returns the height that it took.
    pub fn legend(&mut self, x: f64, y: f64, items: &[(String, String)]) -> f64 {
        let (mut at, mut row) = (x, y);
        for (name, class) in items {
            let needed = 16.0 + width(name, 11.0) + 16.0;
            if at > x && at + needed > self.width {
                at = x;
                row += 18.0;
            }
            self.bar(at, row - 9.0, 11.0, 11.0, class, name);
            self.text(at + 16.0, row, Anchor::Start, "tm", name);
            at += needed;
        }
        row - y + 18.0
    }

    /// The figure, `height` pixels high.
    #[must_use]
    pub fn finish(&self, height: f64, what: &str, who: For) -> String {
        let (w, what) = (self.width, escaped(what));
        let (size, style, ground) = match who {
            For::Page => (String::new(), String::new(), ""),
            For::Paper => (
                format!(" width=\"{w:.0}\" height=\"{height:.0}\""),
                format!("<style>{}</style>", classes(who)),
                "<rect width=\"100%\" height=\"100%\" class=\"f-paper\"/>",
            ),
        };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\"{size} viewBox=\"0 0 {w:.0} {height:.0}\" role=\"img\" aria-label=\"{what}\" \
             font-family=\"{FONT}\">{style}{ground}{}</svg>",
            self.body
        )
    }
}

/// Pixels that a text takes, about (DejaVu Sans, which is wide).
#[must_use]
pub fn width(text: &str, size: f64) -> f64 {
    let em: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | '\'' | '|' | ' ' => 0.33,
            'm' | 'w' | 'M' | 'W' | '%' | '+' | '=' => 0.9,
            'A'..='Z' => 0.7,
            _ => 0.62,
        })
        .sum();
    em * size
}

/// For XML.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Round numbers from at most `low` to at least `high`, about `count` of them.
#[must_use]
pub fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = (high - low).max(1e-9);
    let rough = span / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(power * 10.0);
    let (first, last) = (
        (low / step).floor() as i64,
        (high / step - 1e-9).ceil() as i64,
    );
    (first..=last.max(first + 1))
        .map(|n| n as f64 * step)
        .collect()
}

/// A number of an axis.
#[must_use]
pub fn tick(value: f64, step: f64) -> String {
    let digits = (-(step.log10() + 1e-9).floor()).clamp(0.0, 6.0) as usize;
    let digits = if (step * 10f64.powi(digits as i32)).fract().abs() > 1e-6 {
        digits + 1
    } else {
        digits
    };
    format!("{value:.digits$}").replace('-', "\u{2212}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover() {
        assert_eq!(ticks(0.0, 9.3, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(-0.3, 0.9, 3), [-0.5, 0.0, 0.5, 1.0]);
        assert_eq!(ticks(0.0, 0.0, 4).len(), 2);
        assert_eq!(tick(2.5, 2.5), "2.5");
        assert_eq!(tick(10.0, 2.0), "10");
        assert_eq!(tick(-0.5, 0.5), "\u{2212}0.5");
    }

    #[test]
    fn names_cannot_break_out_of_a_figure() {
        let mut canvas = Canvas::new(100.0);
        canvas.text(0.0, 0.0, Anchor::Start, "t", "<script>&\"x\"");
        let svg = canvas.finish(10.0, "a\"b", For::Paper);
        assert!(svg.contains("&lt;script&gt;&amp;&quot;x&quot;") && svg.contains("a&quot;b"));
        assert!(!svg.contains("<script"));
    }
}
