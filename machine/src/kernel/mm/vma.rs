//! What is mapped where: a sorted map of areas. No page tables, no frames.

use core::ops::Range;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rights of an area: bits of `PROT_READ` (1), `PROT_WRITE` (2), `PROT_EXEC` (4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prot(pub u8);

impl Prot {
    /// No access.
    pub const NONE: Self = Self(0);
    /// Read and write.
    pub const RW: Self = Self(3);

    /// From the argument of `mmap` and `mprotect`.
    #[must_use]
    pub const fn from_arg(prot: u64) -> Self {
        Self((prot & 7) as u8)
    }
    /// No access at all.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
    /// May be written.
    #[must_use]
    pub const fn writes(self) -> bool {
        self.0 & 2 != 0
    }
    /// May be executed.
    #[must_use]
    pub const fn executes(self) -> bool {
        self.0 & 4 != 0
    }
}

/// Which file: device and inode.
pub type FileId = (u64, u64);

/// A file behind mappings, held open by the guest kernel under a descriptor of its own.
#[derive(PartialEq, Eq, Debug)]
pub struct File {
    /// The guest kernel's descriptor.
    pub fd: i32,
    /// The same for all descriptors of one file.
    pub id: FileId,
    /// Shared mappings of it may be written.
    pub writable: bool,
    /// What `/proc/self/maps` shows, if known.
    pub name: String,
}

/// What backs an area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Zero pages; the name is for `/proc/self/maps`.
    Anon(&'static str),
    /// The main thread's stack: grows downwards on a fault below it.
    Stack,
    /// A file; private copies of its pages unless the area is shared.
    File {
        /// Which.
        file: Arc<File>,
        /// Where in the file the area starts.
        offset: u64,
    },
}

/// One area; its start is its key in the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vma {
    /// First byte behind it.
    pub end: u64,
    /// Rights.
    pub prot: Prot,
    /// MAP_SHARED: what is written is written to the file.
    pub shared: bool,
    /// What backs it.
    pub backing: Backing,
}

impl Vma {
    /// The file that a shared mapping shows, and where in it the area starts.
    #[must_use]
    pub fn shared_file(&self) -> Option<(&Arc<File>, u64)> {
        match &self.backing {
            Backing::File { file, offset } if self.shared => Some((file, *offset)),
            _ => None,
        }
    }

    /// The same area cut to start at `at` (`start` is where it starts now).
    fn from(&self, start: u64, at: u64) -> Self {
        let mut v = self.clone();
        if let Backing::File { offset, .. } = &mut v.backing {
            *offset += at - start;
        }
        v
    }

    /// Whether `next`, which starts where this ends, continues it.
    fn continues(&self, start: u64, next: &Vma) -> bool {
        let backing = match (&self.backing, &next.backing) {
            (Backing::Anon(a), Backing::Anon(b)) => a == b,
            (Backing::File { file, offset }, Backing::File { file: f, offset: o }) => {
                Arc::ptr_eq(file, f) && offset + (self.end - start) == *o
            }
            _ => false,
        };
        backing && self.prot == next.prot && self.shared == next.shared
    }
}

/// The areas of an address space. They never overlap and are never empty.
#[derive(Default, Debug)]
pub struct Areas {
    map: BTreeMap<u64, Vma>,
    /// Ranges that are not what they were when the recording began.
    changes: Option<Vec<Range<u64>>>,
}

impl Areas {
    /// From now on it is recorded which ranges change.
    pub fn record(&mut self) {
        self.changes = Some(Vec::new());
    }

    /// Ends the recording: the ranges, in order and apart from each other.
    pub fn recorded(&mut self) -> Vec<Range<u64>> {
        let mut changes = self.changes.take().unwrap_or_default();
        changes.sort_unstable_by_key(|r| r.start);
        let mut apart: Vec<Range<u64>> = Vec::new();
        for next in changes {
            match apart.last_mut() {
                Some(last) if next.start <= last.end => last.end = last.end.max(next.end),
                _ => apart.push(next),
            }
        }
        apart
    }

    /// `[start, end)` is not what it was.
    pub fn changed(&mut self, start: u64, end: u64) {
        if let Some(changes) = &mut self.changes {
            changes.push(start..end);
        }
    }

    /// The area that `va` lies in, and its start.
    #[must_use]
    pub fn find(&self, va: u64) -> Option<(u64, &Vma)> {
        let (start, vma) = self.map.range(..=va).next_back()?;
        (va < vma.end).then_some((*start, vma))
    }

    /// The first area that starts at or above `va`.
    #[must_use]
    pub fn above(&self, va: u64) -> Option<(u64, &Vma)> {
        self.map.range(va..).next().map(|(s, v)| (*s, v))
    }

    /// The last area that starts below `va`.
    #[must_use]
    pub fn below(&self, va: u64) -> Option<(u64, &Vma)> {
        self.map.range(..va).next_back().map(|(s, v)| (*s, v))
    }

    /// All areas, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Vma)> {
        self.map.iter().map(|(s, v)| (*s, v))
    }

    /// The parts of areas that lie in `[start, end)`, cut to it.
    #[must_use]
    pub fn within(&self, start: u64, end: u64) -> Vec<(u64, Vma)> {
        let first = self.find(start).map_or(start, |(s, _)| s);
        self.map
            .range(first..end)
            .map(|(s, v)| {
                let at = (*s).max(start);
                let mut part = v.from(*s, at);
                part.end = v.end.min(end);
                (at, part)
            })
            .collect()
    }

    /// Whether areas cover all of `[start, end)`.
    #[must_use]
    pub fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        while at < end {
            match self.find(at) {
                Some((_, v)) => at = v.end,
                None => return false,
            }
        }
        true
    }

    /// Whether nothing lies in `[start, end)`.
    #[must_use]
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        self.below(end).is_none_or(|(_, v)| v.end <= start)
    }

    /// Takes whatever lies in `[start, end)` out, cutting areas at its borders; returns the parts.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<(u64, Vma)> {
        let parts = self.within(start, end);
        for (at, _) in &parts {
            self.split(*at);
        }
        self.split(end);
        for (at, part) in &parts {
            self.map.remove(at);
            self.changed(*at, part.end);
        }
        parts
    }

    /// Makes `at` a border if it lies inside an area.
    fn split(&mut self, at: u64) {
        let Some((start, vma)) = self.find(at).map(|(s, v)| (s, v.clone())) else {
            return;
        };
        if start == at {
            return;
        }
        let tail = vma.from(start, at);
        if let Some(head) = self.map.get_mut(&start) {
            head.end = at;
        }
        self.map.insert(at, tail);
    }

    /// Puts an area where nothing is, joining it with neighbours that it continues.
    pub fn insert(&mut self, start: u64, vma: Vma) {
        debug_assert!(start < vma.end && self.is_free(start, vma.end));
        self.changed(start, vma.end);
        let (mut start, mut vma) = (start, vma);
        if let Some(next) = self.map.get(&vma.end)
            && vma.continues(start, next)
        {
            let (at, end) = (vma.end, next.end);
            self.map.remove(&at);
            vma.end = end;
        }
        if let Some((s, previous)) = self.below(start)
            && previous.end == start
            && previous.continues(s, &vma)
        {
            vma = Vma {
                end: vma.end,
                ..previous.clone()
            };
            start = s;
        }
        self.map.insert(start, vma);
    }

    /// Moves the start of the area at `start` down to `to`, where nothing is (a stack that grows).
    pub fn extend_down(&mut self, start: u64, to: u64) {
        if let Some(vma) = self.map.remove(&start) {
            self.map.insert(to, vma);
            self.changed(to, start);
        }
    }

    /// The highest free range of `len` bytes below `top` and not below `bottom`.
    #[must_use]
    pub fn gap_below(&self, top: u64, bottom: u64, len: u64) -> Option<u64> {
        let mut end = top;
        for (start, vma) in self.map.range(..top).rev() {
            if vma.end < end && end - vma.end >= len {
                break;
            }
            end = end.min(*start);
        }
        end.checked_sub(len).filter(|s| *s >= bottom)
    }
}
