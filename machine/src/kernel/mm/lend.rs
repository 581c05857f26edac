//! An address space lent to a vfork child: what the child changed of it, and the original's taking that over.
//!
//! The problem: by vfork parent and child share one memory, but here the child is a clone of the machine, with memory of its own.
//!
//! 1. The child records which pages it writes (`Vcpu::record_writes`) and which parts of its address space change.
//! 2. When it lets the original go, the original makes those parts anew as the child has them, and pages the child wrote go
//!    from frame to frame, as ciphertext, which needs the same frame on both sides.
//! 3. A page that the original lacks takes the child's frame, which is free there unless another thread has taken it since.

use sevlab_arch::{Gpa, PAGE_SIZE, Va};

use super::{AddressSpace, Backing, Error, Hw, Prot, USER_END, Vma};

/// Words of one [`Change`] on its way.
const WORDS: usize = 7;
/// Names of anonymous areas, which go by number.
const NAMES: [&str; 2] = ["", "[heap]"];
const STACK: u64 = 2;
const FILE: u64 = 3;

/// One thing that the original does to have what its vfork child has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Nothing between these addresses is as it was.
    Gone(u64, u64),
    /// The area in its place, and its start.
    Area(u64, Vma),
    /// A part of a file: the original's own, if it has mapped it with that descriptor from that place on; else zeroes.
    File {
        /// First byte.
        start: u64,
        /// First byte behind it.
        end: u64,
        /// Rights.
        prot: Prot,
        /// MAP_SHARED.
        shared: bool,
        /// The guest kernel's descriptor.
        fd: i32,
        /// Where in the file the part starts.
        offset: u64,
    },
    /// The break.
    Brk(u64),
    /// The page at an address has the content of a frame.
    Page(u64, Gpa),
}

impl Change {
    /// As bytes, [`Change::LEN`] of them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let words: [u64; WORDS] = match self {
            Self::Gone(start, end) => [0, *start, *end, 0, 0, 0, 0],
            Self::Area(start, area) => {
                let kind = match &area.backing {
                    Backing::Stack => STACK,
                    Backing::Anon(name) => NAMES.iter().position(|n| n == name).unwrap_or(0) as u64,
                    Backing::File { .. } => 0,
                };
                [1, *start, area.end, u64::from(area.prot.0), kind, 0, 0]
            }
            Self::File {
                start,
                end,
                prot,
                shared,
                fd,
                offset,
            } => [
                1,
                *start,
                *end,
                u64::from(prot.0) | u64::from(*shared) << 8,
                FILE,
                u64::from(fd.unsigned_abs()),
                *offset,
            ],
            Self::Brk(at) => [2, *at, 0, 0, 0, 0, 0],
            Self::Page(va, gpa) => [3, *va, gpa.0, 0, 0, 0, 0],
        };
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// Bytes of one.
    pub const LEN: usize = WORDS * 8;

    /// From [`Change::to_bytes`]; `None` for what that can't have made.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |i: usize| {
            let word = bytes.get(i * 8..i * 8 + 8)?.try_into().ok()?;
            Some(u64::from_le_bytes(word))
        };
        let (start, end) = (word(1)?, word(2)?);
        let is_range = (start | end).is_multiple_of(PAGE_SIZE) && start < end && end <= USER_END;
        let prot = Prot::from_arg(word(3)? & 0xff);
        Some(match word(0)? {
            0 if is_range => Self::Gone(start, end),
            1 if is_range && word(4)? == FILE => Self::File {
                start,
                end,
                prot,
                shared: word(3)? & 0x100 != 0,
                fd: i32::try_from(word(5)?).ok()?,
                offset: word(6)?,
            },
            1 if is_range => {
                let backing = match word(4)? {
                    STACK => Backing::Stack,
                    kind => Backing::Anon(NAMES.get(kind as usize)?),
                };
                let area = Vma {
                    end,
                    prot,
                    shared: false,
                    backing,
                };
                Self::Area(start, area)
            }
            2 => Self::Brk(start),
            3 if start.is_multiple_of(PAGE_SIZE) && start < USER_END => Self::Page(start, Gpa(end)),
            _ => return None,
        })
    }
}

impl AddressSpace {
    /// This address space is a vfork child's: from now on it is recorded what changes.
    pub fn lent(&mut self) {
        self.areas.record();
    }

    /// What the original has to do, pages last: they are those in `written`, and all in parts that changed.
    ///
    /// # Errors
    /// Guest memory can't be read.
    pub fn give_back(&mut self, hw: &mut dyn Hw, written: &[u64]) -> Result<Vec<Change>, Error> {
        let ranges = self.areas.recorded();
        let mut changes = vec![Change::Brk(self.brk)];
        let mut pages = written.to_vec();
        for range in ranges {
            changes.push(Change::Gone(range.start, range.end));
            for (start, area) in self.areas.within(range.start, range.end) {
                let (end, prot) = (area.end, area.prot);
                changes.push(match &area.backing {
                    Backing::File { file, offset } => Change::File {
                        start,
                        end,
                        prot,
                        shared: area.shared,
                        fd: file.fd,
                        offset: *offset,
                    },
                    _ => Change::Area(start, area),
                });
            }
            self.tables
                .visit(hw, range.start, range.end, |_, va, _, _| {
                    pages.push(va.0);
                    Ok(None)
                })?;
        }
        pages.sort_unstable();
        pages.dedup();
        for va in pages {
            let entry = self.tables.get(hw, Va(va))?;
            let frame = self.tables.frame(entry);
            let private = !self.tables.is_shared(entry) && self.window.place(frame).is_none();
            if entry != 0 && private {
                changes.push(Change::Page(va, frame));
            }
        }
        Ok(changes)
    }

    /// Does what a vfork child did. Frames whose content is to be the child's come back.
    ///
    /// # Errors
    /// Guest memory can't be accessed.
    pub fn take_back(&mut self, hw: &mut dyn Hw, changes: &[Change]) -> Result<Vec<Gpa>, Error> {
        // What is needed of areas that go first.
        let known: Vec<Option<Backing>> = changes
            .iter()
            .map(|change| match change {
                Change::File {
                    start, fd, offset, ..
                } => self.file_at(*start, *fd, *offset),
                _ => None,
            })
            .collect();
        for change in changes {
            if let Change::Gone(start, end) = change {
                self.unmap(hw, *start, *end)?;
            }
        }
        for (change, known) in changes.iter().zip(known) {
            match change {
                Change::Area(start, area) if self.areas.is_free(*start, area.end) => {
                    self.areas.insert(*start, area.clone());
                }
                Change::File {
                    start,
                    end,
                    prot,
                    shared,
                    ..
                } if self.areas.is_free(*start, *end) => {
                    if known.is_none() {
                        tracing::warn!(
                            "a vfork child mapped a file at {start:#x}, which its original does not see"
                        );
                    }
                    let area = Vma {
                        end: *end,
                        prot: *prot,
                        shared: *shared && known.is_some(),
                        backing: known.unwrap_or(Backing::Anon("")),
                    };
                    self.areas.insert(*start, area);
                }
                Change::Brk(at) => self.brk = *at,
                _ => {}
            }
        }
        // All frames before any page table, which would take one of them.
        let mut fresh = Vec::new();
        let mut taken = Vec::new();
        for change in changes {
            let Change::Page(va, gpa) = *change else {
                continue;
            };
            let entry = self.tables.get(hw, Va(va))?;
            if entry != 0 && self.tables.frame(entry) == gpa {
                taken.push(gpa);
                continue;
            }
            let frame = match entry {
                0 => self.frames.alloc(hw, Some(gpa))?,
                _ => None,
            };
            if frame == Some(gpa) {
                fresh.push((va, gpa));
            } else {
                if let Some(other) = frame {
                    self.frames.release(other);
                }
                tracing::warn!(
                    "what a vfork child wrote at {va:#x} is lost: another thread took the page's frame"
                );
            }
        }
        for (va, gpa) in fresh {
            let area = self.areas.find(va).map(|(_, area)| area.clone());
            match area {
                Some(area) if self.install(hw, va, gpa, &area)? => taken.push(gpa),
                Some(_) => {}
                None => self.frames.release(gpa),
            }
        }
        Ok(taken)
    }

    /// The backing of the area at `start`, if that is this place of the file with this descriptor.
    fn file_at(&self, start: u64, fd: i32, offset: u64) -> Option<Backing> {
        let (_, area) = self.areas.within(start, start + PAGE_SIZE).pop()?;
        match &area.backing {
            Backing::File { file, offset: at } if file.fd == fd && *at == offset => {
                Some(area.backing)
            }
            _ => None,
        }
    }
}
