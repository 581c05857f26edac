//! XML: a document is parsed into a tree, transformed by a stylesheet, and written again. Follows 523.xalancbmk_r.
//!
//! As there: an interpreter of templates walks a document's tree, matching patterns and following paths, and builds another document.
//! Its behaviour: pointer chasing over a tree of many small nodes, comparisons of short strings, hash lookups of names, indirect
//! branches, much allocation.
//!
//! What differs: the stylesheet language is a small part of XSLT (templates by element, value-of, apply, for-each with sort, if,
//! attributes); the document (an auction site) is generated; no DTD, no namespaces.

mod document;
mod generate;
mod parse;
mod path;
mod style;

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Sum, Values};

use document::Document;

const GUEST: Guest = Guest {
    name: "xalancbmk",
    about: "Parses generated XML, transforms it by a stylesheet, and writes the result.",
    params: &[
        Param {
            name: "items",
            what: "items in the document, of about 700 bytes each",
            values: [150, 2500, 24_000],
            limits: (1, 1_000_000),
        },
        Param {
            name: "seed",
            what: "seed of the document",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

const STYLE: &str = include_str!("style.xml");

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let generated = generate::document(values.size("items"), values.get("seed"));
    let document = parse::parse(&generated.text)?;
    // What was read, written again, is what was read.
    let mut again = String::new();
    document.write(0, &mut again);
    if again != generated.text {
        return Err("the document does not survive parsing and writing".to_owned());
    }
    let style = style::Style::new(parse::parse(STYLE)?)?;
    let mut result = Document::new();
    style.apply(&document, &mut result)?;
    let mut text = String::new();
    result.write(0, &mut text);
    let (rows, bids) = (result.count("row"), result.count("bid"));
    if rows != values.get("items") || bids != generated.bids {
        return Err(format!(
            "{rows} rows and {bids} bids, where {} are right",
            generated.bids
        ));
    }
    let mut sum = Sum::default();
    sum.add_bytes(text.as_bytes());
    Ok(format!(
        "{} bytes, {} nodes\n{} bytes, {} nodes transformed\n{rows} rows, {bids} bids\nchecksum {sum}",
        generated.text.len(),
        document.len(),
        text.len(),
        result.len()
    ))
}
