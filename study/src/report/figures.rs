//! The figures of a result set.

use std::collections::BTreeMap;

use serde_json::Value;

use super::svg::{Anchor, CATEGORIES, Canvas, For, tick, ticks, width};
use crate::numbers::{PARTS, Results, cycles, geomean, overhead, parts, short};
use crate::plan::{Entry, shown};

/// Width of a figure on a screen or a page, in pixels.
pub const WIDE: f64 = 760.0;
/// On a phone.
pub const NARROW: f64 = 370.0;

/// A figure: it draws itself at a width.
pub struct Figure<'a> {
    /// Name of its file.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// How it is to be read.
    pub note: String,
    pub(super) draw: Box<dyn Fn(f64, For) -> String + 'a>,
}

impl Figure<'_> {
    /// The SVG.
    #[must_use]
    pub fn svg(&self, width: f64, who: For) -> String {
        (self.draw)(width, who)
    }
}

/// Most labels that get a bar of their own for each workload.
const MOST_BARS: usize = 4;

/// All figures that the results have something for.
#[must_use]
pub fn figures(results: &Results) -> Vec<Figure<'_>> {
    let mut all = Vec::new();
    let base = results.plan.baseline.clone().unwrap_or_default();
    let labels = results.labels();
    if !labels.is_empty() && labels.len() <= MOST_BARS {
        all.push(Figure {
            name: "overhead".to_owned(),
            title: format!("Overhead over \u{201c}{base}\u{201d}"),
            note: "Simulated cycles of each workload beyond those of the baseline, in percent; below, the geometric mean of \
                   the ratios."
                .to_owned(),
            draw: Box::new(move |w, who| overheads(results, w, who)),
        });
    } else if !labels.is_empty() {
        all.push(Figure {
            name: "overhead".to_owned(),
            title: format!("Overhead over \u{201c}{base}\u{201d}, geometric mean of the workloads"),
            note: "Each configuration with the values of what is varied.".to_owned(),
            draw: Box::new(move |w, who| means(results, w, who)),
        });
    }
    for axis in &results.plan.axes {
        let numbers = axis.values.iter().filter(|v| v.is_number()).count();
        if numbers < 2 || labels.is_empty() {
            continue;
        }
        let key = axis.key.clone();
        let unit = unit(&key);
        let stem: String = key.replace('.', "-");
        let sub = key.clone();
        all.push(Figure {
            name: format!("lines-{stem}"),
            title: format!("Overhead against {key}{unit}"),
            note: "Geometric mean of the workloads, a line for each configuration.".to_owned(),
            draw: Box::new(move |w, who| lines(results, &sub, false, w, who)),
        });
        if results.plan.workloads.len() > 1 {
            let note = match lines_of_last(results, &key) {
                Some(label) => format!("A line for each workload, configuration {label}."),
                None => continue,
            };
            all.push(Figure {
                name: format!("workloads-{stem}"),
                title: format!("Overhead of each workload against {key}{unit}"),
                note,
                draw: Box::new(move |w, who| lines(results, &key, true, w, who)),
            });
        }
    }
    if results
        .plan
        .entries
        .iter()
        .any(|e| results.good(e).is_some())
    {
        all.push(Figure {
            name: "cycles".to_owned(),
            title: "Where the cycles go".to_owned(),
            note: format!(
                "Cycles by what the core was doing or waiting for{}. Cache: L2, LLC and other cores; walk and RMP: TLB misses \
                 served by the second level, page walks, RMP reads; exits: world switches, system calls, faults, PVALIDATE.",
                if base.is_empty() { String::new() } else { format!(", in percent of the cycles of \u{201c}{base}\u{201d}") }
            ),
            draw: Box::new(move |w, who| stacks(results, w, who)),
        });
        all.push(Figure {
            name: "exits".to_owned(),
            title: "Exits by cause".to_owned(),
            note: "How often each happened, all workloads together. The scale is logarithmic."
                .to_owned(),
            draw: Box::new(move |w, who| exits(results, w, who)),
        });
    }
    all
}

/// The unit that a key's name ends with.
fn unit(key: &str) -> &'static str {
    if key.ends_with("_ns") {
        " (ns)"
    } else if key.ends_with("_cycles") {
        " (cycles)"
    } else if key.ends_with("_mhz") {
        " (MHz)"
    } else {
        ""
    }
}

/// Space for names at the left.
fn gutter(names: impl Iterator<Item = String>, size: f64, most: f64) -> f64 {
    names
        .map(|name| width(&name, size) * 1.1) // the last may be bold
        .fold(40.0, f64::max)
        .min(most)
        + 10.0
}

/// A name that is not wider than `most`.
fn fitted(name: &str, size: f64, most: f64) -> String {
    if width(name, size) <= most {
        return name.to_owned();
    }
    let mut text: String = name.to_owned();
    while !text.is_empty() && width(&text, size) + size > most {
        text.pop();
    }
    format!("{}\u{2026}", text.trim_end())
}

/// A horizontal scale with its grid.
struct Scale {
    x0: f64,
    x1: f64,
    low: f64,
    high: f64,
}

impl Scale {
    /// From the first of the ticks at `x0` to the last at `x1`.
    fn over(ticks: &[f64], x0: f64, x1: f64) -> Self {
        Self {
            x0,
            x1,
            low: ticks[0],
            high: ticks[ticks.len() - 1],
        }
    }

    fn at(&self, value: f64) -> f64 {
        self.x0 + (value - self.low) / (self.high - self.low) * (self.x1 - self.x0)
    }

    /// Grid lines from `top` to `bottom`, and numbers below.
    fn grid(&self, canvas: &mut Canvas, ticks: &[f64], top: f64, bottom: f64, unit: &str) {
        let step = ticks.get(1).map_or(1.0, |t| t - ticks[0]);
        for t in ticks {
            let x = self.at(*t);
            canvas.line((x, top), (x, bottom), "grid", 1.0);
            let text = format!("{}{unit}", tick(*t, step));
            canvas.text(x, bottom + 16.0, Anchor::Middle, "tm", &text);
        }
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((0.0, 0.0), |(low, high), v| {
        (f64::min(low, v), f64::max(high, v))
    })
}

fn percent(ratio: f64) -> f64 {
    (ratio - 1.0) * 100.0
}

/// Grouped bars: a group for each workload, a bar for each label.
fn overheads(results: &Results, w: f64, who: For) -> String {
    let labels = results.labels();
    let rows: Vec<(String, Vec<Option<f64>>)> = results
        .plan
        .workloads
        .iter()
        .map(|workload| {
            let of = |label: &String| results.ratio(results.entry(&workload.name, label)?);
            (workload.name.clone(), labels.iter().map(of).collect())
        })
        .chain([(
            "geomean".to_owned(),
            labels
                .iter()
                .map(|l| results.mean(l).map(|m| m.0))
                .collect(),
        )])
        .collect();
    let legend: Vec<_> = labels
        .iter()
        .enumerate()
        .map(|(i, l)| (l.clone(), format!("c{}", i % CATEGORIES)))
        .collect();
    grouped(&rows, &legend, w, who)
}

/// Bars in groups, in percent; the last group is set apart.
pub(super) fn grouped(
    rows: &[(String, Vec<Option<f64>>)],
    legend: &[(String, String)],
    w: f64,
    who: For,
) -> String {
    let mut canvas = Canvas::new(w);
    let most = w * 0.32;
    let left = gutter(rows.iter().map(|r| r.0.clone()), 12.0, most);
    let mut y = canvas.legend(left, 14.0, legend) + 8.0;
    let values = rows
        .iter()
        .flat_map(|r| &r.1)
        .flatten()
        .map(|r| percent(*r));
    let (low, high) = range(values);
    let ticks = ticks(low, high, if w < 500.0 { 4 } else { 7 });
    let scale = Scale::over(&ticks, left, w - 52.0);
    let bar = if legend.len() > 2 { 9.0 } else { 11.0 };
    let group = legend.len() as f64 * (bar + 2.0) + 9.0;
    let bottom = y + group * rows.len() as f64 + 6.0;
    scale.grid(&mut canvas, &ticks, y, bottom, " %");
    let zero = scale.at(0.0);
    for (i, (name, values)) in rows.iter().enumerate() {
        let last = i + 1 == rows.len();
        if last {
            y += 3.0;
            canvas.line((8.0, y - 2.0), (w - 8.0, y - 2.0), "axis", 1.0);
            y += 3.0;
        }
        let middle = y + (group - 9.0) / 2.0 + 4.0;
        let class = if last { "tb" } else { "t" };
        canvas.text(
            left - 8.0,
            middle,
            Anchor::End,
            class,
            &fitted(name, 12.0, most),
        );
        for (j, value) in values.iter().enumerate() {
            let top = y + j as f64 * (bar + 2.0);
            let Some(ratio) = value else {
                canvas.text(zero + 4.0, top + bar - 0.5, Anchor::Start, "tm", "\u{2013}");
                continue;
            };
            let x = scale.at(percent(*ratio));
            let text = overhead(*ratio);
            let title = format!("{name}, {}: {text}", legend[j].0);
            canvas.bar(
                zero.min(x),
                top,
                (x - zero).abs().max(1.0),
                bar,
                &legend[j].1,
                &title,
            );
            canvas.text(
                x.max(zero) + 4.0,
                top + bar - 0.5,
                Anchor::Start,
                "tv",
                &text,
            );
        }
        y += group;
    }
    canvas.line(
        (zero, bottom - group * rows.len() as f64 - 6.0),
        (zero, bottom),
        "axis",
        1.2,
    );
    canvas.finish(bottom + 26.0, "Overhead of each workload", who)
}

/// The mean of each label as a bar.
fn means(results: &Results, w: f64, who: For) -> String {
    let rows: Vec<(String, Option<f64>)> = results
        .labels()
        .into_iter()
        .map(|label| {
            let mean = results.mean(&label).map(|m| m.0);
            (label, mean)
        })
        .collect();
    let mut canvas = Canvas::new(w);
    let most = w * 0.45;
    let left = gutter(rows.iter().map(|r| r.0.clone()), 11.0, most);
    let (low, high) = range(rows.iter().filter_map(|r| r.1).map(percent));
    let ticks = ticks(low, high, if w < 500.0 { 3 } else { 6 });
    let scale = Scale::over(&ticks, left, w - 52.0);
    let bottom = 10.0 + rows.len() as f64 * 18.0 + 4.0;
    scale.grid(&mut canvas, &ticks, 6.0, bottom, " %");
    let zero = scale.at(0.0);
    for (i, (label, mean)) in rows.iter().enumerate() {
        let y = 10.0 + i as f64 * 18.0;
        canvas.text(
            left - 8.0,
            y + 10.0,
            Anchor::End,
            "tm",
            &fitted(label, 11.0, most),
        );
        let Some(ratio) = mean else { continue };
        let x = scale.at(percent(*ratio));
        let text = overhead(*ratio);
        canvas.bar(
            zero.min(x),
            y,
            (x - zero).abs().max(1.0),
            12.0,
            "c0",
            &format!("{label}: {text}"),
        );
        canvas.text(x.max(zero) + 4.0, y + 10.0, Anchor::Start, "tv", &text);
    }
    canvas.line((zero, 6.0), (zero, bottom), "axis", 1.2);
    canvas.finish(bottom + 26.0, "Mean overhead of each configuration", who)
}

/// Series over an axis: runs that differ in nothing else.
fn series(results: &Results, key: &str) -> Vec<(String, Vec<(f64, String)>)> {
    let mut found: Vec<(String, Vec<(f64, String)>)> = Vec::new();
    for entry in &results.plan.entries {
        let Some(x) = entry.vary.get(key).and_then(Value::as_f64) else {
            continue;
        };
        if results.baseline(entry).is_none() {
            continue;
        }
        let mut others: BTreeMap<String, Value> = entry.vary.clone();
        others.remove(key);
        let name = crate::plan::label(&entry.config, &others);
        let at = match found.iter().position(|(n, _)| *n == name) {
            Some(at) => at,
            None => {
                found.push((name, Vec::new()));
                found.len() - 1
            }
        };
        let point = (x, entry.label());
        if !found[at].1.contains(&point) {
            found[at].1.push(point);
        }
    }
    for (_, points) in &mut found {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    found
}

fn lines_of_last(results: &Results, key: &str) -> Option<String> {
    series(results, key).last().map(|(name, _)| name.clone())
}

type Line = (String, Vec<(f64, f64)>);

/// Overhead against an axis: the mean by configuration, or each workload of the last one.
fn lines(results: &Results, key: &str, by_workload: bool, w: f64, who: For) -> String {
    let series = series(results, key);
    let lines: Vec<Line> = if by_workload {
        let points = series
            .last()
            .map(|(_, points)| points.clone())
            .unwrap_or_default();
        results
            .plan
            .workloads
            .iter()
            .map(|workload| {
                let at = |(x, label): &(f64, String)| {
                    let ratio = results.ratio(results.entry(&workload.name, label)?)?;
                    Some((*x, percent(ratio)))
                };
                (
                    workload.name.clone(),
                    points.iter().filter_map(at).collect(),
                )
            })
            .collect()
    } else {
        series
            .iter()
            .map(|(name, points)| {
                let at = |(x, label): &(f64, String)| Some((*x, percent(results.mean(label)?.0)));
                (name.clone(), points.iter().filter_map(at).collect())
            })
            .collect()
    };
    let lines: Vec<Line> = lines.into_iter().filter(|l| !l.1.is_empty()).collect();
    drawn_lines(&lines, &format!("{key}{}", unit(key)), w, who)
}

fn drawn_lines(lines: &[Line], x_name: &str, w: f64, who: For) -> String {
    let mut canvas = Canvas::new(w);
    if lines.is_empty() {
        canvas.text(8.0, 18.0, Anchor::Start, "tm", "No results yet.");
        return canvas.finish(28.0, "No results yet", who);
    }
    let names = lines.iter().map(|l| l.0.clone());
    let right = gutter(names, 11.0, w * 0.3) + 6.0;
    let (x0, x1, y0) = (52.0, w - right, 14.0);
    let height = if w < 500.0 { 250.0 } else { 320.0 };
    let y1 = y0 + height;
    let points = || lines.iter().flat_map(|l| &l.1);
    let (low, high) = range(points().map(|p| p.1));
    let y_ticks = ticks(low, high, 6);
    let x_low = points().map(|p| p.0).fold(f64::INFINITY, f64::min);
    let x_high = points().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max);
    let x_ticks = ticks(x_low, x_high, if w < 500.0 { 4 } else { 7 });
    let (x_first, x_last) = (x_ticks[0], x_ticks[x_ticks.len() - 1]);
    let (y_first, y_last) = (y_ticks[0], y_ticks[y_ticks.len() - 1]);
    let at = |(x, y): (f64, f64)| {
        (
            x0 + (x - x_first) / (x_last - x_first) * (x1 - x0),
            y1 - (y - y_first) / (y_last - y_first) * (y1 - y0),
        )
    };
    for t in &y_ticks {
        let y = at((x_first, *t)).1;
        canvas.line((x0, y), (x1, y), "grid", 1.0);
        let text = format!("{} %", tick(*t, y_ticks[1] - y_ticks[0]));
        canvas.text(x0 - 6.0, y + 4.0, Anchor::End, "tm", &text);
    }
    for t in &x_ticks {
        let x = at((*t, y_first)).0;
        canvas.line((x, y1), (x, y1 + 4.0), "axis", 1.0);
        canvas.text(
            x,
            y1 + 18.0,
            Anchor::Middle,
            "tm",
            &tick(*t, x_ticks[1] - x_ticks[0]),
        );
    }
    let zero = at((x_first, 0.0)).1;
    canvas.line((x0, zero), (x1, zero), "axis", 1.2);
    canvas.text((x0 + x1) / 2.0, y1 + 36.0, Anchor::Middle, "t", x_name);
    // Names stand at the lines' ends, moved apart where they would touch.
    let mut ends: Vec<(f64, usize)> = lines
        .iter()
        .enumerate()
        .filter_map(|(i, l)| Some((at(*l.1.last()?).1, i)))
        .collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut places = vec![0.0; lines.len()];
    let mut above = f64::NEG_INFINITY;
    for (y, i) in &ends {
        places[*i] = y.max(above + 13.0);
        above = places[*i];
    }
    let over = (above - (y1 + 6.0)).max(0.0);
    let mut below = f64::INFINITY;
    for (_, i) in ends.iter().rev() {
        let wanted = if over > 0.0 {
            places[*i].min(y1 + 6.0)
        } else {
            places[*i]
        };
        places[*i] = wanted.min(below - 13.0);
        below = places[*i];
    }
    for (i, (name, points)) in lines.iter().enumerate() {
        let class = format!("c{}", i % CATEGORIES);
        let mapped: Vec<_> = points.iter().map(|p| at(*p)).collect();
        canvas.path(&mapped, &class, 2.0);
        for (p, m) in points.iter().zip(&mapped) {
            let title = format!("{name}, {x_name} = {}: {:+.2} %", p.0, p.1);
            canvas.dot(*m, 3.2, &class, &title);
        }
        if let Some(end) = mapped.last() {
            let y = places[i];
            canvas.line((end.0 + 4.0, end.1), (x1 + 10.0, y), &class, 0.7);
            canvas.text(
                x1 + 13.0,
                y + 4.0,
                Anchor::Start,
                "tm",
                &fitted(name, 11.0, right - 14.0),
            );
        }
    }
    canvas.finish(y1 + 46.0, "Overhead against a varied value", who)
}

/// What is stacked: baseline and a few labels.
pub(super) fn shown_labels(results: &Results) -> Vec<String> {
    let labels = results.labels();
    let all: Vec<String> = results.plan.entries.iter().fold(Vec::new(), |mut all, e| {
        if !all.contains(&e.label()) {
            all.push(e.label());
        }
        all
    });
    if all.len() <= MOST_BARS + 1 {
        return all;
    }
    let Some(last) = labels.last() else {
        return all[all.len() - MOST_BARS..].to_vec();
    };
    // The first and the last, each with its baseline.
    let mut some: Vec<String> = Vec::new();
    let workload = results
        .plan
        .workloads
        .first()
        .map_or("", |w| w.name.as_str());
    for label in [labels.first().unwrap_or(last), last] {
        let base = results
            .entry(workload, label)
            .and_then(|e| results.baseline(e))
            .map(Entry::label);
        for label in base.into_iter().chain([label.clone()]) {
            if !some.contains(&label) {
                some.push(label);
            }
        }
    }
    some
}

/// Stacked bars: a group for each workload, a bar for each configuration.
fn stacks(results: &Results, w: f64, who: For) -> String {
    let labels = shown_labels(results);
    let relative = !results.labels().is_empty();
    let mut canvas = Canvas::new(w);
    let narrow = w < 500.0;
    // The axes are named in the text; here is room for their values.
    let brief = |label: &String| {
        let entry = results.plan.entries.iter().find(|e| e.label() == *label);
        entry.map_or(label.clone(), |e| {
            let values = e.vary.values().map(shown);
            let words: Vec<String> = [e.config.clone()].into_iter().chain(values).collect();
            words.join(" ")
        })
    };
    let label_width = labels
        .iter()
        .map(|l| width(&brief(l), 10.0))
        .fold(20.0, f64::max)
        .min(w * 0.2);
    let most = w * 0.24;
    let names = results.plan.workloads.iter().map(|w| w.name.clone());
    let left = gutter(names, 12.0, most) + label_width + 8.0;
    let legend: Vec<_> = PARTS
        .iter()
        .enumerate()
        .map(|(i, name)| ((*name).to_owned(), format!("p{i}")))
        .collect();
    let mut y = canvas.legend(if narrow { 8.0 } else { left }, 14.0, &legend) + 8.0;
    let unit = |entry: &Entry| -> Option<f64> {
        let base = results.baseline(entry).unwrap_or(entry);
        let record = results.good(base)?;
        Some(parts(record).iter().sum::<u64>() as f64)
    };
    let ran = |workload: &&crate::plan::PlanWorkload| {
        let good = |label| {
            Some(
                results
                    .good(results.entry(&workload.name, label)?)
                    .is_some(),
            )
        };
        labels.iter().any(|label| good(label) == Some(true))
    };
    let workloads: Vec<_> = results.plan.workloads.iter().filter(ran).collect();
    let mut rows = Vec::new();
    for workload in &workloads {
        for label in &labels {
            let entry = results.entry(&workload.name, label);
            let drawn = entry.and_then(|e| {
                let record = results.good(e)?;
                let unit = if relative { unit(e)? } else { 1e6 };
                Some((parts(record), unit))
            });
            rows.push((workload.name.clone(), label.clone(), drawn));
        }
    }
    let total = |(parts, unit): &([u64; 7], f64)| {
        let scale = if relative { 100.0 } else { 1.0 };
        parts.iter().sum::<u64>() as f64 / unit * scale
    };
    let (_, high) = range(rows.iter().filter_map(|r| r.2.as_ref()).map(total));
    let ticks = ticks(0.0, high, if narrow { 3 } else { 6 });
    let scale = Scale {
        x0: left,
        x1: w - 20.0,
        low: 0.0,
        high: ticks[ticks.len() - 1],
    };
    let bar = 11.0;
    let group = labels.len() as f64 * (bar + 2.0) + 9.0;
    let bottom = y + group * workloads.len() as f64;
    scale.grid(
        &mut canvas,
        &ticks,
        y,
        bottom,
        if relative { " %" } else { " M" },
    );
    for (i, (workload, label, drawn)) in rows.iter().enumerate() {
        let nth = i % labels.len();
        if nth == 0 {
            if i > 0 {
                y += 9.0;
            }
            let middle = y + labels.len() as f64 * (bar + 2.0) / 2.0 + 3.0;
            let at = left - label_width - 14.0;
            canvas.text(at, middle, Anchor::End, "t", &fitted(workload, 12.0, most));
        }
        let name = fitted(&brief(label), 10.0, label_width);
        canvas.text(left - 6.0, y + bar - 1.5, Anchor::End, "tv", &name);
        if let Some((parts, unit)) = drawn {
            let sum = parts.iter().sum::<u64>().max(1) as f64;
            let mut x = 0.0;
            for (p, n) in parts.iter().enumerate() {
                let part = *n as f64 / unit * if relative { 100.0 } else { 1.0 };
                let title = format!(
                    "{workload}, {label}: {} {} cycles, {:.1} %",
                    PARTS[p],
                    short(*n),
                    *n as f64 / sum * 100.0
                );
                let (from, to) = (scale.at(x), scale.at(x + part));
                canvas.bar(from, y, to - from, bar, &format!("p{p}"), &title);
                x += part;
            }
        }
        y += bar + 2.0;
    }
    canvas.line(
        (left, bottom - group * workloads.len() as f64),
        (left, bottom),
        "axis",
        1.2,
    );
    canvas.finish(bottom + 26.0, "Cycles by what they were spent on", who)
}

/// Exits by cause and label, on a logarithmic scale.
fn exits(results: &Results, w: f64, who: For) -> String {
    let labels = shown_labels(results);
    let mut causes: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (i, label) in labels.iter().enumerate() {
        for workload in &results.plan.workloads {
            let record = results
                .entry(&workload.name, label)
                .and_then(|e| results.good(e));
            let Some(record) = record else { continue };
            let Some(map) = record.at(&["stats", "simulation", "exits"]).as_object() else {
                continue;
            };
            for (cause, exit) in map {
                let counts = causes
                    .entry(cause.clone())
                    .or_insert_with(|| vec![0; labels.len()]);
                counts[i] += exit["events"].as_u64().unwrap_or(0);
            }
        }
    }
    causes.retain(|_, counts| counts.iter().any(|n| *n > 0));
    let mut rows: Vec<_> = causes.into_iter().collect();
    rows.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.iter().copied().max()));
    let mut canvas = Canvas::new(w);
    let left = gutter(rows.iter().map(|r| r.0.clone()), 12.0, w * 0.3);
    let legend: Vec<_> = labels
        .iter()
        .enumerate()
        .map(|(i, l)| {
            (
                l.clone(),
                if i == 0 {
                    "p0".to_owned()
                } else {
                    format!("c{}", (i - 1) % CATEGORIES)
                },
            )
        })
        .collect();
    let mut y = canvas.legend(left, 14.0, &legend) + 8.0;
    let most = rows
        .iter()
        .flat_map(|r| &r.1)
        .copied()
        .max()
        .unwrap_or(1)
        .max(10);
    let decades = (most as f64).log10().ceil();
    let scale = Scale {
        x0: left,
        x1: w - 52.0,
        low: 0.0,
        high: decades,
    };
    let bar = 9.0;
    let group = labels.len() as f64 * (bar + 2.0) + 9.0;
    let top = y;
    let bottom = y + group * rows.len() as f64;
    for decade in 0..=decades as u32 {
        let x = scale.at(f64::from(decade));
        canvas.line((x, top), (x, bottom), "grid", 1.0);
        let text = short(10u64.saturating_pow(decade))
            .replace(".00", "")
            .replace(".0", "");
        canvas.text(x, bottom + 16.0, Anchor::Middle, "tm", &text);
    }
    for (cause, counts) in &rows {
        let middle = y + (group - 9.0) / 2.0 + 4.0;
        canvas.text(left - 8.0, middle, Anchor::End, "t", cause);
        for (i, n) in counts.iter().enumerate() {
            let at = y + i as f64 * (bar + 2.0);
            if *n == 0 {
                canvas.text(left + 4.0, at + bar - 0.5, Anchor::Start, "tm", "0");
                continue;
            }
            let x = scale.at((*n as f64).log10());
            let title = format!("{cause}, {}: {n}", labels[i]);
            canvas.bar(left, at, (x - left).max(1.0), bar, &legend[i].1, &title);
            canvas.text(
                x.max(left) + 4.0,
                at + bar - 0.5,
                Anchor::Start,
                "tv",
                &short(*n),
            );
        }
        y += group;
    }
    canvas.line((left, top), (left, bottom), "axis", 1.2);
    canvas.finish(bottom + 26.0, "Exits by cause", who)
}

/// The geometric mean of ratios, for other figures.
pub(super) fn mean(ratios: &[Option<f64>]) -> Option<f64> {
    let there: Vec<f64> = ratios.iter().flatten().copied().collect();
    geomean(&there)
}

/// A record's cycles over another's.
pub(super) fn over(own: &crate::record::Record, base: &crate::record::Record) -> Option<f64> {
    let (own, base) = (cycles(own), cycles(base));
    (own > 0 && base > 0).then(|| own as f64 / base as f64)
}

/// An axis' values as a list.
#[must_use]
pub fn listed(values: &[Value]) -> String {
    values.iter().map(shown).collect::<Vec<_>>().join(", ")
}
