//! Which configurations can be built.

use super::cache::{MOST_BITS, MOST_RANKS, TAGS};
use super::l1::MOST_SLOTS;
use crate::error::Error;
use crate::model::{self, DramModel, LINE, Model, Policy};

fn bad<T>(field: &'static str, why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Hierarchy {
        field,
        why: why.into(),
    })
}

/// Checks what the controller builds from: caches and DRAM. `lines`: of system-physical memory.
pub(super) fn check(m: &Model, lines: u64) -> Result<(), Error> {
    let names = |size, ways, policy| [size, ways, policy];
    cache(&m.l1i, names("l1i.size", "l1i.ways", "l1i.policy"), lines)?;
    cache(&m.l1d, names("l1d.size", "l1d.ways", "l1d.policy"), lines)?;
    if let Some(l2) = &m.l2 {
        cache(l2, names("l2.size", "l2.ways", "l2.policy"), lines)?;
    }
    cache(&m.llc, names("llc.size", "llc.ways", "llc.policy"), lines)?;
    for (field, l1) in [("l1i.size", &m.l1i), ("l1d.size", &m.l1d)] {
        if l1.sets() * u64::from(l1.ways).next_multiple_of(8) >= MOST_SLOTS {
            return bad(field, "too large for a first level");
        }
    }
    if m.core.clock_mhz == 0 {
        return bad("core.clock_mhz", "0 MHz");
    }
    for (field, ns) in [
        ("latency.dram_ns", m.latency.dram_ns),
        ("latency.dram_row_ns", m.latency.dram_row_ns),
        ("latency.dram_write_ns", m.latency.dram_write_ns),
        ("latency.aes_ns", m.latency.aes_ns),
        ("latency.aes_write_ns", m.latency.aes_write_ns),
        ("latency.aes_line_ns", m.latency.aes_line_ns),
        ("dram.line_ns", m.dram.line_ns),
    ] {
        if !(0.0..=1e6).contains(&ns) {
            return bad(field, format!("{ns} is not between 0 and 1000000"));
        }
    }
    if m.dram.model == DramModel::Banks {
        for (field, n) in [
            ("dram.channels", m.dram.channels),
            ("dram.banks", m.dram.banks),
        ] {
            if !(1..=4096).contains(&n) {
                return bad(field, format!("{n} is not between 1 and 4096"));
            }
        }
        if m.dram.row_bytes < LINE {
            return bad("dram.row_bytes", format!("less than a line, {LINE}"));
        }
    }
    if m.prefetch.stride && !(1..=64).contains(&m.prefetch.degree) {
        let n = m.prefetch.degree;
        return bad("prefetch.degree", format!("{n} is not between 1 and 64"));
    }
    Ok(())
}

fn cache(c: &model::Cache, names: [&'static str; 3], lines: u64) -> Result<(), Error> {
    let [size, ways, policy] = names;
    if !(1..=MOST_RANKS).contains(&c.ways) {
        return bad(
            ways,
            format!("{} is not between 1 and {MOST_RANKS}", c.ways),
        );
    }
    let of_bits = matches!(c.policy, Policy::TreePlru | Policy::Nru);
    if of_bits && c.ways > MOST_BITS {
        return bad(
            policy,
            format!(
                "has a bit for each of at most {MOST_BITS} ways, not {}",
                c.ways
            ),
        );
    }
    if c.policy == Policy::TreePlru && !c.ways.is_power_of_two() {
        return bad(
            ways,
            format!("{} is not a power of two, which tree-plru needs", c.ways),
        );
    }
    let set = LINE * u64::from(c.ways);
    if c.size == 0 || !c.size.is_multiple_of(set) || !(c.size / set).is_power_of_two() {
        return bad(
            size,
            format!(
                "{} bytes are not {} ways x {LINE} bytes x a power of two",
                c.size, c.ways
            ),
        );
    }
    if c.size > 1 << 32 {
        return bad(size, "above 4 GiB");
    }
    if (lines - 1) / c.sets() >= TAGS {
        return bad(
            size,
            format!("too few sets, {}, for so much memory", c.sets()),
        );
    }
    Ok(())
}
