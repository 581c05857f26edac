//! A report of results: one HTML page that needs nothing else, and its figures as files.

pub mod compare;
pub mod figures;
pub mod html;
pub mod raster;
pub mod svg;

mod sections;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::numbers::Results;
use crate::plan::Plan;
use crate::store::{PLAN, Store, replace};
use figures::{Figure, WIDE};
use svg::For;

/// The page's name.
pub const REPORT: &str = "report.html";
/// The folder of the figures, beside the page.
pub const FIGURES: &str = "figures";

/// Reads the results in a folder.
pub fn read(dir: &Path) -> Result<Results, Error> {
    let path = dir.join(PLAN);
    let text = fs::read(&path).map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            Error::Other(format!(
                "{}: no results of sevlab study are here",
                dir.display()
            ))
        } else {
            Error::file("reading", &path)(e)
        }
    })?;
    let plan: Plan = serde_json::from_slice(&text).map_err(|e| {
        Error::Other(format!(
            "{}: not a plan of sevlab study: {e}",
            path.display()
        ))
    })?;
    let records = match Store::look(dir) {
        Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            std::collections::BTreeMap::new()
        }
        other => other?,
    };
    Ok(Results { plan, records })
}

/// Writes the page, and the figures beside it; returns what was written.
pub fn write(results: &Results, page: &Path) -> Result<Vec<PathBuf>, Error> {
    let figures = figures::figures(results);
    let html = sections::page(results, &figures, FIGURES);
    put(page, &html, &figures)
}

/// Writes a page and figures.
fn put(page: &Path, html: &str, figures: &[Figure<'_>]) -> Result<Vec<PathBuf>, Error> {
    let folder = page.parent().unwrap_or(Path::new("")).join(FIGURES);
    fs::create_dir_all(&folder).map_err(Error::file("making", &folder))?;
    let mut written = Vec::new();
    let mut file = |path: PathBuf, bytes: &[u8]| {
        replace(&path, bytes).map_err(Error::file("writing", &path))?;
        written.push(path);
        Ok::<_, Error>(())
    };
    for figure in figures {
        let svg = figure.svg(WIDE, For::Paper);
        let png = raster::png(&svg)
            .map_err(|e| Error::Other(format!("the figure {}: {e}", figure.name)))?;
        file(folder.join(format!("{}.svg", figure.name)), svg.as_bytes())?;
        file(folder.join(format!("{}.png", figure.name)), &png)?;
    }
    file(page.to_owned(), html.as_bytes())?;
    Ok(written)
}

#[cfg(test)]
mod tests;
