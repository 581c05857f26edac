//! The list of a page state change: a header and up to 253 entries in the page's shared buffer.
//!
//! The hypervisor works the entries off one by one and writes its progress back, so a change can be interrupted and taken
//! up again. Neither side trusts the other's numbers: the hypervisor takes its own copy with [`PscList::parse`], the guest
//! checks progress against the list it sent with [`PscList::check_progress`].

use sevlab_arch::ghcb::{
    PSC_ERROR_INVALID_ENTRY, PSC_ERROR_INVALID_HEADER, PSC_MAX_ENTRIES, PscHeader, PscOp,
};
use sevlab_arch::{Gpa, PAGE_SHIFT};
use zerocopy::{FromBytes, IntoBytes};

use crate::is_gpa;

/// Small pages in a large one.
const LARGE: u64 = 512;
const HEADER: usize = PscHeader::SIZE;
const ENTRY: usize = 8;

/// What happens to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PscOperation {
    /// It becomes the guest's.
    Private,
    /// It becomes the hypervisor's.
    Shared,
    /// Hint: split the 2 MiB page.
    Psmash,
    /// Hint: join the 2 MiB page.
    Unsmash,
}

impl PscOperation {
    const fn code(self) -> PscOp {
        match self {
            Self::Private => PscOp::PRIVATE,
            Self::Shared => PscOp::SHARED,
            Self::Psmash => PscOp::PSMASH,
            Self::Unsmash => PscOp::UNSMASH,
        }
    }

    const fn from_code(code: PscOp) -> Option<Self> {
        match code {
            PscOp::PRIVATE => Some(Self::Private),
            PscOp::SHARED => Some(Self::Shared),
            PscOp::PSMASH => Some(Self::Psmash),
            PscOp::UNSMASH => Some(Self::Unsmash),
            _ => None,
        }
    }
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PscEntry {
    /// First byte of the page.
    pub gpa: Gpa,
    /// What happens to it.
    pub operation: PscOperation,
    /// The page is 2 MiB.
    pub large: bool,
    /// Small pages of it already done.
    pub done: u16,
}

impl PscEntry {
    /// Small pages in this entry.
    #[must_use]
    pub const fn pages(&self) -> u16 {
        if self.large { LARGE as u16 } else { 1 }
    }

    const fn encode(&self) -> u64 {
        (self.done as u64 & 0xfff)
            | (self.gpa.pfn() & ((1 << 40) - 1)) << 12
            | (self.operation.code().0 as u64) << 52
            | (self.large as u64) << 56
    }

    fn decode(raw: u64) -> Option<Self> {
        let gfn = raw >> 12 & ((1 << 40) - 1);
        let large = raw >> 56 & 1 != 0;
        let entry = Self {
            gpa: Gpa(gfn << PAGE_SHIFT),
            operation: PscOperation::from_code(PscOp((raw >> 52 & 0xf) as u8))?,
            large,
            done: (raw & 0xfff) as u16,
        };
        let aligned = !large || gfn.is_multiple_of(LARGE);
        let legal = raw >> 57 == 0 && is_gpa(entry.gpa.0) && aligned && entry.done <= entry.pages();
        legal.then_some(entry)
    }
}

/// What is wrong with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PscError {
    /// The header's numbers do not fit the buffer, the limit or each other.
    #[error("page state change header: current entry {cur}, end {end}, {room} bytes of room")]
    Header {
        /// `cur_entry`.
        cur: u16,
        /// `end_entry`.
        end: u16,
        /// Bytes in the buffer.
        room: usize,
    },
    /// An entry is malformed.
    #[error("page state change entry {index}: {raw:#x}")]
    Entry {
        /// Which.
        index: u16,
        /// Its bits.
        raw: u64,
    },
    /// The guest has more entries than a list may have, or than fit, or none.
    #[error("{count} page state change entries do not fit into one list")]
    Count {
        /// How many.
        count: usize,
    },
    /// The hypervisor reports progress that can't be.
    #[error("page state change went from entry {before} to {after} of {end}")]
    Progress {
        /// `cur_entry` before.
        before: u16,
        /// `cur_entry` after.
        after: u16,
        /// `end_entry` after.
        end: u16,
    },
}

impl PscError {
    /// SW_EXITINFO2 of the response.
    #[must_use]
    pub const fn info(&self) -> u64 {
        match self {
            Self::Entry { .. } => PSC_ERROR_INVALID_ENTRY,
            Self::Header { .. } | Self::Count { .. } | Self::Progress { .. } => {
                PSC_ERROR_INVALID_HEADER
            }
        }
    }
}

/// A private copy of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PscList {
    cur: u16,
    entries: Vec<u64>,
}

impl PscList {
    /// The guest's list.
    pub fn new(entries: &[PscEntry]) -> Result<Self, PscError> {
        if entries.is_empty() || entries.len() > PSC_MAX_ENTRIES {
            return Err(PscError::Count {
                count: entries.len(),
            });
        }
        Ok(Self {
            cur: 0,
            entries: entries.iter().map(PscEntry::encode).collect(),
        })
    }

    /// Takes a copy of the list in the buffer. Entries are looked at when their turn comes.
    pub fn parse(buffer: &[u8]) -> Result<Self, PscError> {
        let room = buffer.len();
        let Ok((header, rest)) = PscHeader::read_from_prefix(buffer) else {
            return Err(PscError::Header {
                cur: 0,
                end: 0,
                room,
            });
        };
        let (cur, end) = (header.cur_entry, header.end_entry);
        let count = usize::from(end) + 1;
        if cur > end
            || count > PSC_MAX_ENTRIES
            || count * ENTRY > rest.len()
            || header.reserved != 0
        {
            return Err(PscError::Header { cur, end, room });
        }
        let entries = rest.as_chunks::<ENTRY>().0[..count]
            .iter()
            .map(|raw| u64::from_le_bytes(*raw))
            .collect();
        Ok(Self { cur, entries })
    }

    /// Bytes the list takes in a buffer.
    #[must_use]
    pub fn size(&self) -> usize {
        HEADER + self.entries.len() * ENTRY
    }

    /// Index of the current entry; past the end when everything is done.
    #[must_use]
    pub const fn current_index(&self) -> u16 {
        self.cur
    }

    /// The current entry, `None` when everything is done.
    pub fn current(&self) -> Result<Option<PscEntry>, PscError> {
        match self.entries.get(usize::from(self.cur)) {
            None => Ok(None),
            Some(&raw) => PscEntry::decode(raw).map(Some).ok_or(PscError::Entry {
                index: self.cur,
                raw,
            }),
        }
    }

    /// Records that `pages` more small pages of the current entry are done, and goes on to the next entry when all are.
    pub fn advance(&mut self, pages: u16) {
        let index = usize::from(self.cur);
        let Some(mut entry) = self.entries.get(index).copied().and_then(PscEntry::decode) else {
            return;
        };
        entry.done = entry.done.saturating_add(pages).min(entry.pages());
        self.entries[index] = entry.encode();
        if entry.done == entry.pages() {
            self.cur += 1;
        }
    }

    /// Writes the list, with its progress, to the buffer.
    pub fn write(&self, buffer: &mut [u8]) -> Result<(), PscError> {
        let count = self.entries.len();
        let Some((head, rest)) = buffer
            .get_mut(..self.size())
            .and_then(|list| list.split_at_mut_checked(HEADER))
        else {
            return Err(PscError::Count { count });
        };
        let header = PscHeader {
            cur_entry: self.cur,
            end_entry: (count - 1) as u16,
            reserved: 0,
        };
        head.copy_from_slice(header.as_bytes());
        rest.copy_from_slice(self.entries.as_bytes());
        Ok(())
    }

    /// The guest's look at the buffer after VMGEXIT: takes over the hypervisor's progress if it is possible, and says
    /// whether everything is done. If not, the list is to be written and sent again.
    pub fn check_progress(&mut self, buffer: &[u8]) -> Result<bool, PscError> {
        let end = (self.entries.len() - 1) as u16;
        let Ok((header, rest)) = PscHeader::read_from_prefix(buffer) else {
            return Err(PscError::Header {
                cur: 0,
                end: 0,
                room: buffer.len(),
            });
        };
        let after = header.cur_entry;
        let bad = PscError::Progress {
            before: self.cur,
            after,
            end: header.end_entry,
        };
        if header.end_entry != end || header.reserved != 0 || after < self.cur || after > end + 1 {
            return Err(bad);
        }
        if let Some(mine) = self.entries.get_mut(usize::from(after)) {
            // Of what the hypervisor may have written, only the number of pages done counts.
            let start = usize::from(after) * ENTRY;
            let theirs = rest.get(start..start + ENTRY).ok_or(bad)?;
            let done = u16::from_le_bytes([theirs[0], theirs[1]]) & 0xfff;
            let mut entry = PscEntry::decode(*mine).ok_or(bad)?;
            if done < entry.done || done > entry.pages() {
                return Err(bad);
            }
            entry.done = done;
            *mine = entry.encode();
        }
        self.cur = after;
        Ok(after > end)
    }
}
