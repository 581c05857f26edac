//! Documentation that points at code and tests: what it points at is there.

use std::fs;
use std::path::{Path, PathBuf};

/// Pages whose pointers are held.
const PAGES: [&str; 6] = [
    "docs/model.md",
    "docs/report.md",
    "docs/study.md",
    "docs/time.md",
    "docs/truth.md",
    "docs/workloads.md",
];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().expect("the source tree")
}

/// What stands in backquotes and looks like a path: it has a slash and an extension, and maybe `::test`.
fn pointers(text: &str) -> Vec<(&str, Option<&str>)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| {
            let (path, test) = match word.split_once("::") {
                Some((path, test)) => (path, Some(test)),
                None => (word, None),
            };
            let file = [".rs", ".toml", ".md", ".py", ".c"];
            let is_path = path.contains('/')
                && !path.contains([' ', '*', '<'])
                && (file.iter().any(|e| path.ends_with(e)) || path.starts_with("scripts/"));
            is_path.then_some((path, test))
        })
        .collect()
}

#[test]
fn pointers_lead_somewhere() {
    for page in PAGES {
        let text = fs::read_to_string(root().join(page)).expect(page);
        let found = pointers(&text);
        assert!(!found.is_empty(), "{page} points nowhere");
        for (path, test) in found {
            let code = fs::read_to_string(root().join(path))
                .unwrap_or_else(|e| panic!("{page} points at {path}: {e}"));
            if let Some(test) = test {
                assert!(
                    code.contains(&format!("fn {test}(")),
                    "{page} points at {path}::{test}, which is not there"
                );
            }
        }
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in PAGES {
        let text = fs::read_to_string(root().join(page)).expect(page);
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            if target.starts_with("http") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                root().join(page)
            } else {
                root().join("docs").join(file)
            };
            let text =
                fs::read_to_string(&file).unwrap_or_else(|e| panic!("{page}: {target}: {e}"));
            let mut headings = text.lines().filter(|l| l.starts_with('#')).map(anchor);
            assert!(
                heading.is_empty() || headings.any(|h| h == heading),
                "{page} points at {target}, which is not there"
            );
        }
    }
}

/// A heading's anchor, as GitHub makes it.
fn anchor(line: &str) -> String {
    let text = line.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

#[test]
fn a_dead_pointer_is_seen() {
    let found =
        pointers("see `cli/src/nothing.rs::at_all`, `cli/src`, `a b/c.rs` and `docs/model.md`");
    assert_eq!(
        found,
        [
            ("cli/src/nothing.rs", Some("at_all")),
            ("docs/model.md", None)
        ]
    );
}
