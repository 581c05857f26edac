//! The sites of a region that may fault ([`crate::faults`]) as a record holds them.
//!
//! Three lists: where code of another site begins; the sites; and the sources of all sites, one site's after the other's, general
//! registers before the flags' operands.
//!
//! Invariant: [`Packed::check`] has looked at every number before [`Packed::unpack`] is called: offsets lie in the code and grow,
//! numbers of sites and registers exist, and no source is left over. A table that passes may be wrong, but only as to what the
//! guest's registers are.

use crate::faults::{Retired, Site, Sites, Source};
use sevlab_cpu::FlagOp;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// From this offset in the code on it belongs to that site.
#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub(crate) struct Start {
    offset: U32,
    site: U32,
}

#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub(crate) struct PackedSite {
    rip: U64,
    retired: U64,
    /// Kind of the flags' record; only with `flags`.
    op: U32,
    /// Whether `retired` is [`Retired::Word`].
    word: u8,
    /// General registers among the sources.
    gprs: u8,
    /// Whether three sources are the flags' operands.
    flags: u8,
}

#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub(crate) struct PackedSource {
    /// The general register that it is for; 0 for operands of flags.
    of: u8,
    kind: u8,
    slot: u8,
    bits: u8,
    value: U64,
}

/// [`PackedSource::kind`].
mod kind {
    pub(super) const CONSTANT: u8 = 0;
    pub(super) const SLOT: u8 = 1;
    pub(super) const STORED: u8 = 2;
}

/// Operands of a flags' record.
const OPERANDS: usize = 3;

impl PackedSource {
    fn new(of: u8, source: Source) -> Self {
        let (kind, slot, bits, value) = match source {
            Source::Constant(v) => (kind::CONSTANT, 0, 0, v),
            Source::Slot { slot, plus, bits } => (kind::SLOT, slot, bits, plus as u64),
            Source::Stored => (kind::STORED, 0, 0, 0),
        };
        Self {
            of,
            kind,
            slot,
            bits,
            value: U64::new(value),
        }
    }

    /// The register, and the source. None if it is none.
    fn read(&self) -> Option<(u8, Source)> {
        let value = self.value.get();
        let source = match self.kind {
            kind::CONSTANT => Source::Constant(value),
            kind::SLOT if self.slot < 16 && matches!(self.bits, 8 | 16 | 32 | 64) => Source::Slot {
                slot: self.slot,
                plus: value as i64,
                bits: self.bits,
            },
            kind::STORED => Source::Stored,
            _ => return None,
        };
        (self.of < 16).then_some((self.of, source))
    }
}

impl PackedSite {
    /// How many sources are its own, if its numbers are good.
    fn sources(&self) -> Option<usize> {
        let op = self.op.get();
        let known = op >> 10 == 0 && FlagOp::from_bits(op as u8) as u8 == op as u8;
        let good = self.word <= 1 && self.gprs <= 16 && self.flags <= 1;
        (good && if self.flags == 1 { known } else { op == 0 })
            .then(|| usize::from(self.gprs) + OPERANDS * usize::from(self.flags))
    }
}

/// The lists, as they are to be written.
#[derive(Default)]
pub(crate) struct Lists {
    starts: Vec<Start>,
    sites: Vec<PackedSite>,
    sources: Vec<PackedSource>,
}

impl Lists {
    /// None if a site is not of the kind that can be written.
    pub(crate) fn new(from: &Sites) -> Option<Self> {
        let starts = from.starts.iter().map(|&(offset, site)| Start {
            offset: U32::new(offset),
            site: U32::new(site),
        });
        let mut lists = Self {
            starts: starts.collect(),
            ..Self::default()
        };
        for site in &from.sites {
            let (word, retired) = match site.retired {
                Retired::Since(n) => (0, n),
                Retired::Word(n) => (1, n as u64),
            };
            lists.sites.push(PackedSite {
                rip: U64::new(site.rip),
                retired: U64::new(retired),
                op: U32::new(u32::try_from(site.flags.map_or(0, |f| f.0)).ok()?),
                word,
                gprs: u8::try_from(site.gprs.len()).ok()?,
                flags: site.flags.is_some().into(),
            });
            let gprs = site.gprs.iter().map(|&(r, s)| PackedSource::new(r, s));
            lists.sources.extend(gprs);
            let operands = site.flags.iter().flat_map(|f| f.1);
            lists
                .sources
                .extend(operands.map(|s| PackedSource::new(0, s)));
        }
        Some(lists)
    }

    pub(crate) fn packed(&self) -> Packed<'_> {
        Packed {
            starts: &self.starts,
            sites: &self.sites,
            sources: &self.sources,
        }
    }
}

/// The lists in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packed<'a> {
    pub starts: &'a [Start],
    pub sites: &'a [PackedSite],
    pub sources: &'a [PackedSource],
}

impl Packed<'_> {
    /// Whether this is a table of `code` bytes of code of the guest instructions for which `has` is true.
    pub(crate) fn check(&self, code: u32, has: impl Fn(u64) -> bool) -> bool {
        let starts = self.starts;
        let placed = starts.is_sorted_by(|a, b| a.offset < b.offset)
            && starts
                .iter()
                .all(|s| s.offset < code && (s.site.get() as usize) < self.sites.len());
        let mut rest = self.sources;
        placed
            && self.sites.iter().all(|site| {
                let own = site.sources().and_then(|n| rest.split_at_checked(n));
                own.is_some_and(|(own, behind)| {
                    rest = behind;
                    own.iter().all(|s| s.read().is_some()) && has(site.rip.get())
                })
            })
            && rest.is_empty()
    }

    /// The table; None if it would not pass [`Packed::check`].
    pub(crate) fn unpack(&self) -> Option<Sites> {
        let mut rest = self.sources;
        let mut sites = Vec::with_capacity(self.sites.len());
        for site in self.sites {
            let (own, behind) = rest.split_at_checked(site.sources()?)?;
            rest = behind;
            let (gprs, operands) = own.split_at_checked(site.gprs.into())?;
            let gprs = gprs.iter().map(PackedSource::read);
            let flags = match operands {
                [a, b, r] => Some((
                    u64::from(site.op.get()),
                    [a.read()?.1, b.read()?.1, r.read()?.1],
                )),
                _ => None,
            };
            let n = site.retired.get();
            sites.push(Site {
                rip: site.rip.get(),
                retired: match site.word {
                    0 => Retired::Since(n),
                    _ => Retired::Word(n as i64),
                },
                gprs: gprs.collect::<Option<_>>()?,
                flags,
            });
        }
        let starts = self.starts.iter();
        Some(Sites {
            starts: starts.map(|s| (s.offset.get(), s.site.get())).collect(),
            sites,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A table of code of 33 bytes of instructions at `rip`.
    pub(crate) fn table(rip: u64) -> Sites {
        let slot = |slot, plus, bits| Source::Slot { slot, plus, bits };
        Sites {
            starts: vec![(2, 1), (9, 0), (32, 1)],
            sites: vec![
                Site {
                    rip,
                    retired: Retired::Since(3),
                    gprs: vec![(4, slot(4, -8, 64)), (15, Source::Constant(u64::MAX))],
                    flags: None,
                },
                Site {
                    rip: rip + 1,
                    retired: Retired::Word(-2),
                    gprs: vec![],
                    flags: Some((0x302, [slot(1, 0, 8), Source::Stored, Source::Constant(1)])),
                },
            ],
        }
    }

    #[test]
    fn what_was_packed_is_unpacked() {
        let table = table(0x5000);
        let lists = Lists::new(&table).expect("of the kind");
        let packed = lists.packed();
        assert!(packed.check(33, |rip| rip == 0x5000 || rip == 0x5001));
        assert!(!packed.check(32, |_| true), "a start behind the code");
        assert!(!packed.check(33, |rip| rip == 0x5000), "no instruction");
        let got = packed.unpack().expect("good");
        assert_eq!((got.starts, got.sites), (table.starts, table.sites));
        assert!(Packed::default().check(1, |_| false));
    }

    #[test]
    fn numbers_are_not_believed() {
        let good = || Lists::new(&table(0x5000)).expect("of the kind");
        type Case = (&'static str, fn(&mut Lists));
        let cases: &[Case] = &[
            ("order of starts", |l| l.starts.swap(0, 1)),
            ("two starts", |l| l.starts[1].offset = l.starts[0].offset),
            ("no such site", |l| l.starts[2].site = U32::new(2)),
            ("site", |l| l.starts[2].site = U32::new(u32::MAX)),
            ("offset", |l| l.starts[2].offset = U32::new(u32::MAX)),
            ("retired", |l| l.sites[0].word = 2),
            ("registers", |l| l.sites[0].gprs = 17),
            ("more sources", |l| l.sites[0].gprs = 3),
            ("fewer sources", |l| l.sites[0].gprs = 1),
            ("flags", |l| l.sites[0].flags = 2),
            ("flags of none", |l| l.sites[0].op = U32::new(1)),
            ("kind of flags", |l| l.sites[1].op = U32::new(11)),
            ("width of flags", |l| l.sites[1].op = U32::new(0x402)),
            ("register", |l| l.sources[0].of = 16),
            ("kind", |l| l.sources[0].kind = 3),
            ("slot", |l| l.sources[0].slot = 16),
            ("bits", |l| l.sources[0].bits = 7),
            ("no bits", |l| l.sources[0].bits = 0),
            ("source missing", |l| l.sources.truncate(4)),
            ("source left over", |l| l.sources.push(l.sources[0])),
            ("site missing", |l| l.sites.truncate(1)),
        ];
        for (what, change) in cases {
            let mut lists = good();
            change(&mut lists);
            assert!(!lists.packed().check(33, |_| true), "{what}");
            // Whatever it says, reading it is no panic.
            let _ = lists.packed().unpack();
        }
    }
}
