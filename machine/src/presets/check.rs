//! What no single key shows: sets, and policies that need a geometry.

use sevlab_memctl::model::{Cache, LINE, Model, Policy, Tlb};

use super::error::{ConfigError, Origin};
use super::read::Settings;
use super::schema::{self, MOST_WAYS};

/// Refuses a model that can't be built.
pub(super) fn geometry(model: &Model, settings: &Settings) -> Result<(), ConfigError> {
    let check = Check(settings);
    check.cache("l1i", &model.l1i)?;
    check.cache("l1d", &model.l1d)?;
    if let Some(l2) = &model.l2 {
        check.cache("l2", l2)?;
    }
    check.cache("llc", &model.llc)?;
    if let Some(tlb) = &model.tlb {
        check.tlb("tlb.l1i", &tlb.l1i)?;
        check.tlb("tlb.l1d", &tlb.l1d)?;
        if let Some(l2i) = &tlb.l2i {
            check.tlb("tlb.l2i", l2i)?;
        }
        check.tlb("tlb.l2", &tlb.l2)?;
    }
    let dram = &model.dram;
    if !dram.row_bytes.is_power_of_two() || dram.row_bytes < LINE {
        let what = format!(
            "{} bytes are no row: it is a power of two, {LINE} at least",
            dram.row_bytes
        );
        return Err(check.error("dram", &["row_bytes"], what));
    }
    Ok(())
}

struct Check<'a>(&'a Settings);

impl Check<'_> {
    fn cache(&self, name: &str, cache: &Cache) -> Result<(), ConfigError> {
        let ways = u64::from(cache.ways);
        let lines = cache.size / LINE;
        let whole = cache.size.is_multiple_of(LINE * ways);
        if !whole || !cache.sets().is_power_of_two() {
            let fitting: Vec<String> = (1..=MOST_WAYS)
                .filter(|w| {
                    cache.size.is_multiple_of(LINE * u64::from(*w))
                        && (lines / u64::from(*w)).is_power_of_two()
                })
                .map(|w| w.to_string())
                .collect();
            let hint = if fitting.is_empty() {
                "no number of ways makes it one".to_owned()
            } else {
                format!("ways that make it one: {}", fitting.join(", "))
            };
            let sets = cache.size as f64 / (LINE * ways) as f64;
            let what = format!(
                "{} in {ways} ways of {LINE}-byte lines are {sets} sets, which must be a power of two; {hint}",
                schema::size(cache.size)
            );
            return Err(self.error(name, &["size", "ways"], what));
        }
        self.tree(name, cache.policy, cache.ways)
    }

    fn tlb(&self, name: &str, tlb: &Tlb) -> Result<(), ConfigError> {
        let (entries, ways) = (tlb.entries, tlb.ways);
        if !entries.is_multiple_of(ways) || !(entries / ways).is_power_of_two() {
            let what = format!(
                "{entries} entries in {ways} ways are {} sets, which must be a power of two; ways = {entries} is \
                 fully associative",
                f64::from(entries) / f64::from(ways)
            );
            return Err(self.error(name, &["entries", "ways"], what));
        }
        self.tree(name, tlb.policy, ways)
    }

    fn tree(&self, name: &str, policy: Policy, ways: u32) -> Result<(), ConfigError> {
        if policy != Policy::TreePlru || (ways.is_power_of_two() && ways <= MOST_WAYS) {
            return Ok(());
        }
        let what =
            format!("tree-plru needs a power of two of ways, {MOST_WAYS} at most; here are {ways}");
        Err(self.error(name, &["policy", "ways"], what))
    }

    /// An error at whichever of the keys was said last.
    fn error(&self, table: &str, keys: &[&str], what: String) -> ConfigError {
        let rank = |origin: &Origin| match origin {
            Origin::Preset(_) => 0,
            Origin::File { .. } => 1,
            Origin::Set(_) => 2,
        };
        let mut best: Option<(String, Origin)> = None;
        for key in keys {
            let path = schema::join(table, key);
            if let Some(setting) = self.0.get(&path)
                && best
                    .as_ref()
                    .is_none_or(|(_, at)| rank(&setting.origin) > rank(at))
            {
                best = Some((path, setting.origin.clone()));
            }
        }
        let (key, at) = best.unwrap_or_else(|| (table.to_owned(), Origin::Set(String::new())));
        ConfigError::new(at, key, what)
    }
}
