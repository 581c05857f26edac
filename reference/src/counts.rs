//! What is counted, and the comparison of two counts by name.

use std::collections::BTreeMap;

/// What an access is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A data read.
    Read,
    /// A data write, or a read-modify-write.
    Write,
    /// A line of instructions.
    Fetch,
    /// A page-table entry that is read.
    Walk,
    /// A page-table entry whose accessed or dirty bit is set.
    WalkWrite,
    /// An RMP entry that is read.
    Rmp,
}

impl Kind {
    /// Its name in counts; both kinds of walk accesses are one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Fetch => "fetch",
            Kind::Walk | Kind::WalkWrite => "walk",
            Kind::Rmp => "rmp",
        }
    }
    /// Whether the line is dirty afterwards.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Kind::Write | Kind::WalkWrite)
    }
}

/// Counts of one core by name. A name that was never counted is 0.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Adds `n` to the count of that name.
    pub fn add(&mut self, name: &str, n: u64) {
        if n == 0 {
            return;
        }
        match self.0.get_mut(name) {
            Some(count) => *count += n,
            None => {
                self.0.insert(name.to_owned(), n);
            }
        }
    }

    /// Makes the count of that name `n`.
    pub fn set(&mut self, name: &str, n: u64) {
        self.0.remove(name);
        self.add(name, n);
    }

    /// The count of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All counts that are not 0, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, n)| (name.as_str(), *n))
    }

    /// Adds all counts of another core.
    pub fn join(&mut self, other: &Self) {
        for (name, n) in other.iter() {
            self.add(name, n);
        }
    }

    /// The names whose counts differ, with ours and theirs.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<(String, u64, u64)> {
        let mut names: Vec<&String> = self.0.keys().chain(other.0.keys()).collect();
        names.sort();
        names.dedup();
        names
            .into_iter()
            .map(|name| (name.clone(), self.get(name), other.get(name)))
            .filter(|(_, a, b)| a != b)
            .collect()
    }
}

impl<'a> FromIterator<(&'a str, u64)> for Counts {
    fn from_iter<I: IntoIterator<Item = (&'a str, u64)>>(counts: I) -> Self {
        let mut all = Self::default();
        for (name, n) in counts {
            all.add(name, n);
        }
        all
    }
}
