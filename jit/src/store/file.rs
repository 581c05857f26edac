//! The format of a cache file, and the one place that reads it.
//!
//! ```text
//! Header                                     what follows, the key, a checksum of all up to the records
//! Entry   x regions, by address              where each record is, and its checksum
//! Entry   x copies, by address               the same
//! Count   x counts, by address               how often blocks without a region ran
//! records                                    one a region, then one a copy: a head, then its parts in the order of the head's fields
//! ```
//!
//! Invariants:
//! 1. Nothing of a file is believed before the checksum over it has been compared, and no offset or length before it has been
//!    compared with what is there: a file of any content is read without a panic.
//! 2. The header, the index and the counts are checked when a file is opened; a record when it is asked for, so that a run pays
//!    for the regions that it uses.
//! 3. The checksums are against damage. They do not keep out somebody who may write the file: [`super`] sees to that.

use super::copies::Stored;
use super::key::Key;
use super::sites::Packed;
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"sevlabcc";
/// Most guest bytes of a block: 64 instructions of 15 bytes.
pub(crate) const MOST_BLOCK: usize = 64 * 15;

/// Why a file, or a region in it, is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Bytes are missing, were added or have changed.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// Made by another build, for other options, on another host, or of another program.
    #[error("made under another key")]
    Foreign,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    key: [u8; 16],
    /// Of the header, with zero here, the index and the counts.
    check: U128,
    /// Of the whole file.
    bytes: U64,
    /// Exit slots that have a number.
    slots: U32,
    /// Instructions for helpers that have a number.
    steps: U32,
    regions: U32,
    copies: U32,
    counts: U32,
}

/// Where a record is.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct Entry {
    /// Guest address of the region's entry, or of the copy.
    pub rip: U64,
    /// Offset in the file.
    at: U64,
    bytes: U64,
    check: U128,
}

/// How often the block at an address ran in one run, in the interpreter.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct Count {
    pub rip: U64,
    pub hits: U32,
}

/// A part of a region's guest code.
#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(C)]
pub(crate) struct Span {
    /// Guest address.
    pub rip: U64,
    /// Bytes.
    pub bytes: U32,
}

/// Whether spans of blocks begin at `rip` and have as many bytes as there are.
pub(super) fn begin_and_fill(spans: &[Span], rip: u64, guest: &[u8]) -> bool {
    let mut bytes = spans.iter().map(|s| s.bytes.get() as usize);
    spans.first().is_some_and(|s| s.rip.get() == rip)
        && bytes.clone().sum::<usize>() == guest.len()
        && bytes.all(|n| (1..=MOST_BLOCK).contains(&n))
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Head {
    slot_base: U32,
    step_base: U32,
    insns: U32,
    groups: U32,
    view: U32,
    /// Offset in the code at which it is entered.
    entry: U32,
    // How many there are of each part.
    targets: U32,
    steps: U32,
    spans: U32,
    guest: U32,
    code: U32,
    starts: U32,
    sites: U32,
    sources: U32,
}

/// One region as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// Its exit slots are numbered from here on, by [`Record::targets`].
    pub slot_base: u32,
    /// The instructions that helpers run for it are numbered from here on, by [`Record::steps`].
    pub step_base: u32,
    /// Guest instructions.
    pub insns: u32,
    /// Accesses off one base may share a probe in it.
    pub groups: bool,
    /// Accesses go to the view without a probe in it.
    pub view: bool,
    /// Offset in the code at which it is entered.
    pub entry: u32,
    /// Guest addresses that the exit slots lead to.
    pub targets: &'a [U64],
    /// Guest addresses of the instructions for helpers.
    pub steps: &'a [U64],
    /// Its blocks, the entry first.
    pub spans: &'a [Span],
    /// The bytes of the blocks, one after the other.
    pub guest: &'a [u8],
    /// Host code.
    pub code: &'a [u8],
    /// Where it may fault; offsets are from its first byte.
    pub sites: Packed<'a>,
}

impl Record<'_> {
    /// The record's bytes in a file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let n = |len: usize| U32::new(len as u32);
        let head = Head {
            slot_base: U32::new(self.slot_base),
            step_base: U32::new(self.step_base),
            insns: U32::new(self.insns),
            groups: U32::new(self.groups.into()),
            view: U32::new(self.view.into()),
            entry: U32::new(self.entry),
            targets: n(self.targets.len()),
            steps: n(self.steps.len()),
            spans: n(self.spans.len()),
            guest: n(self.guest.len()),
            code: n(self.code.len()),
            starts: n(self.sites.starts.len()),
            sites: n(self.sites.sites.len()),
            sources: n(self.sites.sources.len()),
        };
        [
            head.as_bytes(),
            self.targets.as_bytes(),
            self.steps.as_bytes(),
            self.spans.as_bytes(),
            self.guest,
            self.code,
            self.sites.starts.as_bytes(),
            self.sites.sites.as_bytes(),
            self.sites.sources.as_bytes(),
        ]
        .concat()
    }
}

/// What is to be written.
pub(crate) struct Contents<'a> {
    /// Numbers given out so far: of exit slots and of instructions for helpers.
    pub slots: u32,
    pub steps: u32,
    /// Entry and encoded record of each region; in any order, each entry once.
    pub regions: Vec<(u64, std::borrow::Cow<'a, [u8]>)>,
    /// The same of copies.
    pub copies: Vec<(u64, std::borrow::Cow<'a, [u8]>)>,
    /// Address and runs of blocks; in any order, each address once.
    pub counts: Vec<(u64, u32)>,
}

impl Contents<'_> {
    /// The file.
    pub(crate) fn encode(mut self, key: &Key) -> Vec<u8> {
        self.regions.sort_unstable_by_key(|r| r.0);
        self.copies.sort_unstable_by_key(|c| c.0);
        self.counts.sort_unstable();
        let records = || self.regions.iter().chain(&self.copies);
        let front = size_of::<Header>()
            + records().count() * size_of::<Entry>()
            + self.counts.len() * size_of::<Count>();
        let bytes = front + records().map(|r| r.1.len()).sum::<usize>();
        let mut header = Header {
            magic: MAGIC,
            key: key.0,
            check: U128::ZERO,
            bytes: U64::new(bytes as u64),
            slots: U32::new(self.slots),
            steps: U32::new(self.steps),
            regions: U32::new(self.regions.len() as u32),
            copies: U32::new(self.copies.len() as u32),
            counts: U32::new(self.counts.len() as u32),
        };
        let mut out = Vec::with_capacity(bytes);
        out.extend(header.as_bytes());
        let mut at = front;
        for (rip, record) in records() {
            let entry = Entry {
                rip: U64::new(*rip),
                at: U64::new(at as u64),
                bytes: U64::new(record.len() as u64),
                check: U128::new(xxh3_128(record)),
            };
            out.extend(entry.as_bytes());
            at += record.len();
        }
        for &(rip, hits) in &self.counts {
            let (rip, hits) = (U64::new(rip), U32::new(hits));
            out.extend(Count { rip, hits }.as_bytes());
        }
        header.check = U128::new(xxh3_128(&out));
        out[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        for (_, record) in records() {
            out.extend_from_slice(record);
        }
        out
    }
}

/// A file's bytes, checked as far as the module's page says.
#[derive(Debug)]
pub(crate) struct Image {
    bytes: Vec<u8>,
    regions: usize,
    copies: usize,
    counts: usize,
    /// Numbers that regions in it may have are below these.
    pub slots: u32,
    pub steps: u32,
    /// Tells this content from any other.
    pub check: u128,
}

/// The header of a file of this key.
fn header<'a>(bytes: &'a [u8], key: &Key) -> Result<&'a Header, Refused> {
    let (header, _) =
        Header::ref_from_prefix(bytes).map_err(|_| Refused::Damaged("no whole header"))?;
    if header.magic != MAGIC {
        return Err(Refused::Damaged("no file of this kind"));
    }
    if header.key != key.0 {
        return Err(Refused::Foreign);
    }
    Ok(header)
}

/// What the first [`HEADER`] bytes of a file tell without the rest, none of it checked: which content it is, and how many
/// regions and copies it has.
pub(crate) fn peek(bytes: &[u8], key: &Key) -> Option<(u128, u32)> {
    let header = header(bytes, key).ok()?;
    let records = header.regions.get().saturating_add(header.copies.get());
    Some((header.check.get(), records))
}

/// Bytes of a header.
pub(crate) const HEADER: usize = size_of::<Header>();

impl Image {
    /// Checks a file's header, index and counts.
    ///
    /// # Errors
    /// Why it can't be used.
    pub(crate) fn parse(bytes: Vec<u8>, key: &Key) -> Result<Self, Refused> {
        let header = header(&bytes, key)?;
        if header.bytes.get() != bytes.len() as u64 {
            return Err(Refused::Damaged("not as long as it says"));
        }
        let n = |count: U32| count.get() as usize;
        let (regions, copies, counts) = (n(header.regions), n(header.copies), n(header.counts));
        // Less than 2^39: no overflow.
        let front = HEADER + (regions + copies) * size_of::<Entry>() + counts * size_of::<Count>();
        if front > bytes.len() {
            return Err(Refused::Damaged("shorter than its index"));
        }
        let mut blank = *header;
        blank.check = U128::new_zeroed();
        let check = {
            let mut hash = xxhash_rust::xxh3::Xxh3::new();
            hash.update(blank.as_bytes());
            hash.update(&bytes[HEADER..front]);
            hash.digest128()
        };
        if check != header.check.get() {
            return Err(Refused::Damaged("checksum"));
        }
        let (slots, steps) = (header.slots.get(), header.steps.get());
        let image = Self {
            regions,
            copies,
            counts,
            slots,
            steps,
            check,
            bytes,
        };
        let mut at = front as u64;
        for entry in image.index().iter().chain(image.copies()) {
            if entry.at.get() != at || entry.bytes.get() > image.bytes.len() as u64 {
                return Err(Refused::Damaged("index"));
            }
            at += entry.bytes.get();
        }
        let by_address = |list: &[Entry]| list.is_sorted_by(|a, b| a.rip.get() < b.rip.get());
        let sorted = by_address(image.index())
            && by_address(image.copies())
            && image.hits().is_sorted_by(|a, b| a.rip.get() < b.rip.get());
        if at != image.bytes.len() as u64 || !sorted {
            return Err(Refused::Damaged("index"));
        }
        Ok(image)
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Its regions, by address.
    pub(crate) fn index(&self) -> &[Entry] {
        self.entries(0, self.regions)
    }

    /// Its copies, by address.
    pub(crate) fn copies(&self) -> &[Entry] {
        self.entries(self.regions, self.copies)
    }

    /// `n` entries from the `first` on.
    fn entries(&self, first: usize, n: usize) -> &[Entry] {
        let rest = &self.bytes[HEADER + first * size_of::<Entry>()..];
        <[Entry]>::ref_from_prefix_with_elems(rest, n).map_or(&[], |(list, _)| list)
    }

    /// How often blocks without a region ran, by address.
    pub(crate) fn hits(&self) -> &[Count] {
        let rest = &self.bytes[HEADER + (self.regions + self.copies) * size_of::<Entry>()..];
        <[Count]>::ref_from_prefix_with_elems(rest, self.counts).map_or(&[], |(list, _)| list)
    }

    /// The region at `rip`.
    pub(crate) fn find(&self, rip: u64) -> Option<&Entry> {
        Self::at(self.index(), rip)
    }

    /// The copy at `rip`.
    pub(crate) fn find_copy(&self, rip: u64) -> Option<&Entry> {
        Self::at(self.copies(), rip)
    }

    fn at(index: &[Entry], rip: u64) -> Option<&Entry> {
        let at = index.binary_search_by_key(&rip, |e| e.rip.get()).ok()?;
        Some(&index[at])
    }

    /// How often the block at `rip` ran, if it has no region; 0 if that is not known.
    pub(crate) fn hits_at(&self, rip: u64) -> u32 {
        let counts = self.hits();
        counts
            .binary_search_by_key(&rip, |c| c.rip.get())
            .map_or(0, |at| counts[at].hits.get())
    }

    /// The bytes of a record, as they are.
    pub(crate) fn raw(&self, entry: &Entry) -> Option<&[u8]> {
        let at = usize::try_from(entry.at.get()).ok()?;
        let end = at.checked_add(usize::try_from(entry.bytes.get()).ok()?)?;
        self.bytes.get(at..end)
    }

    /// The record of a region, checked.
    ///
    /// # Errors
    /// Its bytes have changed.
    pub(crate) fn record(&self, entry: &Entry) -> Result<Record<'_>, Refused> {
        self.parts(entry.rip.get(), self.checked(entry)?)
            .ok_or(Refused::Damaged("record of a region"))
    }

    /// The record of a copy, checked.
    ///
    /// # Errors
    /// Its bytes have changed.
    pub(crate) fn copy(&self, entry: &Entry) -> Result<Stored<'_>, Refused> {
        Stored::read(entry.rip.get(), self.checked(entry)?)
            .ok_or(Refused::Damaged("record of a copy"))
    }

    fn checked(&self, entry: &Entry) -> Result<&[u8], Refused> {
        let raw = self.raw(entry).ok_or(Refused::Damaged("index"))?;
        if xxh3_128(raw) != entry.check.get() {
            return Err(Refused::Damaged("checksum of a record"));
        }
        Ok(raw)
    }

    fn parts<'a>(&self, rip: u64, raw: &'a [u8]) -> Option<Record<'a>> {
        let (head, rest) = Head::ref_from_prefix(raw).ok()?;
        let n = |count: U32| count.get() as usize;
        let (targets, rest) = <[U64]>::ref_from_prefix_with_elems(rest, n(head.targets)).ok()?;
        let (steps, rest) = <[U64]>::ref_from_prefix_with_elems(rest, n(head.steps)).ok()?;
        let (spans, rest) = <[Span]>::ref_from_prefix_with_elems(rest, n(head.spans)).ok()?;
        let (guest, rest) = rest.split_at_checked(n(head.guest))?;
        let (code, rest) = rest.split_at_checked(n(head.code))?;
        let (starts, rest) = <[_]>::ref_from_prefix_with_elems(rest, n(head.starts)).ok()?;
        let (places, rest) = <[_]>::ref_from_prefix_with_elems(rest, n(head.sites)).ok()?;
        let sources = <[_]>::ref_from_bytes_with_elems(rest, n(head.sources)).ok()?;
        let sites = Packed {
            starts,
            sites: places,
            sources,
        };
        let fits = |base: U32, n: U32, end: u32| {
            base.get()
                .checked_add(n.get())
                .is_some_and(|last| last <= end)
        };
        let view = head.view.get() != 0;
        let has = |rip: u64| {
            let behind = |s: &Span| rip.wrapping_sub(s.rip.get());
            spans.iter().any(|s| behind(s) < s.bytes.get().into())
        };
        let good = head.entry < head.code
            && (view || sites == Packed::default())
            && sites.check(head.code.get(), has)
            && fits(head.slot_base, head.targets, self.slots)
            && fits(head.step_base, head.steps, self.steps)
            && begin_and_fill(spans, rip, guest);
        good.then_some(Record {
            slot_base: head.slot_base.get(),
            step_base: head.step_base.get(),
            insns: head.insns.get(),
            groups: head.groups.get() != 0,
            view,
            entry: head.entry.get(),
            targets,
            steps,
            spans,
            guest,
            code,
            sites,
        })
    }
}

#[cfg(test)]
mod tests;
