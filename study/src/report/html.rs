//! Pieces of a page: its frame, tables, figures.

use std::fmt::Write;

use super::figures::{Figure, NARROW, WIDE};
use super::svg::{For, classes, escaped, variables};

const STYLE: &str = include_str!("page.css");

/// A page in the making.
#[derive(Debug, Default)]
pub struct Page {
    body: String,
}

/// A cell of a table.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    class: &'static str,
    title: String,
}

impl Cell {
    /// A number, or another short thing that stands to the right.
    #[must_use]
    pub fn number(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// Words.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            class: "l",
            ..Self::default()
        }
    }

    /// A command or key.
    #[must_use]
    pub fn code(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            class: "l code",
            ..Self::default()
        }
    }

    /// With a class of the style sheet.
    #[must_use]
    pub fn marked(mut self, class: &'static str) -> Self {
        self.class = class;
        self
    }

    /// With what is shown when one points at it.
    #[must_use]
    pub fn titled(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }
}

impl Page {
    /// Adds HTML as it is.
    pub fn raw(&mut self, html: &str) {
        self.body.push_str(html);
    }

    /// A section's heading.
    pub fn section(&mut self, id: &str, title: &str) {
        let _ = write!(self.body, "<h2 id=\"{id}\">{}</h2>", escaped(title));
    }

    /// A paragraph.
    pub fn note(&mut self, text: &str) {
        let _ = write!(self.body, "<p class=\"note\">{}</p>", escaped(text));
    }

    /// A figure at two widths, of which the reader's screen shows one, and where its files are.
    pub fn figure(&mut self, figure: &Figure<'_>, folder: &str) {
        let name = escaped(&figure.name);
        let _ = write!(
            self.body,
            "<figure id=\"fig-{name}\"><h3>{}</h3><div class=\"wide\">{}</div><div class=\"narrow\">{}</div>\
             <figcaption>{} <span class=\"files\">{folder}/{name}: <a href=\"{folder}/{name}.svg\">SVG</a> \
             <a href=\"{folder}/{name}.png\">PNG</a></span></figcaption></figure>",
            escaped(&figure.title),
            figure.svg(WIDE, For::Page),
            figure.svg(NARROW, For::Page),
            escaped(&figure.note),
        );
    }

    /// A table. A row whose first cell is "geomean" is set apart.
    pub fn table(&mut self, head: &[Cell], rows: &[Vec<Cell>]) {
        self.body
            .push_str("<div class=\"scroll\" tabindex=\"0\"><table><thead><tr>");
        for cell in head {
            self.cell("th", cell);
        }
        self.body.push_str("</tr></thead><tbody>");
        for row in rows {
            let sum = row.first().is_some_and(|c| c.text == "geomean");
            self.body
                .push_str(if sum { "<tr class=\"sum\">" } else { "<tr>" });
            for (i, cell) in row.iter().enumerate() {
                self.cell(if i == 0 { "th" } else { "td" }, cell);
            }
            self.body.push_str("</tr>");
        }
        self.body.push_str("</tbody></table></div>");
    }

    fn cell(&mut self, tag: &str, cell: &Cell) {
        let _ = write!(self.body, "<{tag}");
        if !cell.class.is_empty() {
            let _ = write!(self.body, " class=\"{}\"", cell.class);
        }
        if !cell.title.is_empty() {
            let _ = write!(self.body, " title=\"{}\"", escaped(&cell.title));
        }
        let _ = write!(self.body, ">{}</{tag}>", escaped(&cell.text));
    }

    /// Something long that is shown when asked for.
    pub fn fold(&mut self, title: &str, inside: impl FnOnce(&mut Self)) {
        let _ = write!(self.body, "<details><summary>{}</summary>", escaped(title));
        inside(self);
        self.body.push_str("</details>");
    }

    /// Text as it is.
    pub fn pre(&mut self, text: &str) {
        let mut clean = String::new();
        for line in text.lines() {
            clean.push_str(&escaped(line));
            clean.push('\n');
        }
        let _ = write!(self.body, "<pre>{clean}</pre>");
    }

    /// The whole page.
    #[must_use]
    pub fn finish(self, title: &str) -> String {
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
             <title>{}</title><style>:root{{{}}}@media (prefers-color-scheme:dark){{:root{{{}}}}}{STYLE}{}</style></head>\
             <body><main>{}</main></body></html>\n",
            escaped(title),
            variables(false),
            variables(true),
            classes(For::Page),
            self.body
        )
    }
}
