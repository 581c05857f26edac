#![allow(unsafe_code)] // memory that survives a fork as one
//! Process and thread ids of a guest whose runs repeat: numbers that follow from the seed, and what the host calls them.
//!
//! As a pid namespace would, the host's side translates: the guest only ever sees its own numbers. The n-th process or
//! thread that a process makes has the same number in every run, whatever happens elsewhere at the same time. What is not
//! the guest's (the process that started it, a terminal's session) gets numbers in order of appearance.
//!
//! All processes of a guest share one table, in memory that stays shared over forks; it also says when a process ended.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::simtime::Random;

/// Entries of a table, a power of two.
const ENTRIES: usize = 1 << 15;
/// Places that are looked at before the table counts as full.
const PROBES: usize = 256;
/// The least number given, and how many there are.
const FIRST: u64 = 100_000;
const RANGE: u64 = 4_000_000;
/// A host id that nothing has.
const NOBODY: i32 = i32::MAX;
/// The purpose of a stranger's number.
const STRANGER: u64 = 0x73_7472_616e_6765;

/// A process or thread.
#[derive(Default)]
#[repr(C)]
struct Entry {
    /// Host id in the upper half, the guest's in the lower; 0: free.
    ids: AtomicU64,
    /// When it ended, the cycles it was busy, and those of them that were the system's.
    ended: [AtomicU64; 3],
}

#[repr(C)]
struct Table {
    /// Strangers so far.
    strangers: AtomicU32,
    /// By the guest's number.
    inner: [Entry; ENTRIES],
    /// By the host's.
    outer: [AtomicU64; ENTRIES],
}

/// The ids of one guest.
pub struct Pids {
    table: NonNull<Table>,
    seed: u64,
    /// Numbers that this process has given so far.
    made: AtomicU64,
    /// The process's own number.
    own: AtomicU32,
}

// SAFETY: the table is atomics, and is never unmapped.
unsafe impl Send for Pids {}
// SAFETY: as above.
unsafe impl Sync for Pids {}

fn place(key: u32) -> usize {
    (u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % ENTRIES
}

fn probes(key: u32) -> impl Iterator<Item = usize> {
    let first = place(key);
    (0..PROBES).map(move |i| (first + i) % ENTRIES)
}

impl Pids {
    /// The numbers of a guest whose first process is this one. `None`: the host has no memory left.
    pub(crate) fn new(seed: u64) -> Option<Self> {
        // SAFETY: a new mapping, of which nothing else knows; never unmapped.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Table>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return None;
        }
        let pids = Self {
            table: NonNull::new(at.cast())?,
            seed,
            made: AtomicU64::new(0),
            own: AtomicU32::new(0),
        };
        let own = pids.next(std::process::id());
        pids.own.store(own, Ordering::Relaxed);
        pids.insert(std::process::id(), own);
        Some(pids)
    }

    fn table(&self) -> &Table {
        // SAFETY: mapped, zeroed at first (a valid state of atomics), and never unmapped.
        unsafe { self.table.as_ref() }
    }

    /// The number of the next process or thread that this process makes.
    fn next(&self, outer: u32) -> u32 {
        let n = self.made.fetch_add(1, Ordering::Relaxed);
        let own = self.own.load(Ordering::Relaxed);
        self.number(u64::from(own), n, outer)
    }

    fn number(&self, whose: u64, n: u64, outer: u32) -> u32 {
        let mut random = Random::new(self.seed ^ n << 32, whose);
        loop {
            let number = (FIRST + random.number() % RANGE) as u32;
            // Else it is taken, by chance.
            let owner = self
                .find(number)
                .map(|e| e.ids.load(Ordering::Acquire) >> 32);
            if owner.is_none_or(|owner| owner == u64::from(outer)) {
                return number;
            }
        }
    }

    fn find(&self, inner: u32) -> Option<&Entry> {
        let all = probes(inner).map(|i| &self.table().inner[i]);
        let mut used = all.take_while(|e| e.ids.load(Ordering::Acquire) != 0);
        used.find(|e| e.ids.load(Ordering::Acquire) as u32 == inner)
    }

    /// From now on the host's `outer` is the guest's `inner`.
    fn insert(&self, outer: u32, inner: u32) {
        let ids = u64::from(outer) << 32 | u64::from(inner);
        let claim = |slot: &AtomicU64, mine: &dyn Fn(u64) -> bool| {
            let mut now = slot.load(Ordering::Acquire);
            while now == 0 || mine(now) {
                match slot.compare_exchange(now, ids, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return true,
                    Err(other) => now = other,
                }
            }
            false
        };
        for i in probes(inner) {
            if claim(&self.table().inner[i].ids, &|v| v as u32 == inner) {
                break;
            }
        }
        for i in probes(outer) {
            // A number that the host gives again.
            if claim(&self.table().outer[i], &|v| (v >> 32) as u32 == outer) {
                break;
            }
        }
    }

    /// The guest's number of a process or thread that it has just made, by its host id.
    pub(crate) fn made(&self, outer: i64) -> i64 {
        let Ok(outer @ 1..) = u32::try_from(outer) else {
            return outer;
        };
        let inner = self.next(outer);
        self.insert(outer, inner);
        i64::from(inner)
    }

    /// In a clone of the process: it is the one that its original has just made.
    pub(crate) fn forked(&self) {
        let inner = self.next(std::process::id());
        self.own.store(inner, Ordering::Relaxed);
        self.made.store(0, Ordering::Relaxed);
        self.insert(std::process::id(), inner);
    }

    /// What the guest calls a host id that it has met.
    #[must_use]
    pub fn known(&self, outer: i32) -> Option<i32> {
        let id = u32::try_from(outer).ok()?;
        for i in probes(id) {
            match self.table().outer[i].load(Ordering::Acquire) {
                0 => break,
                v if (v >> 32) as u32 == id => return Some(v as u32 as i32),
                _ => {}
            }
        }
        None
    }

    /// What the guest calls a host id. Numbers that are none stay what they are.
    #[must_use]
    pub fn inward(&self, outer: i32) -> i32 {
        let Ok(id @ 2..) = u32::try_from(outer) else {
            return outer;
        };
        if let Some(inner) = self.known(outer) {
            return inner;
        }
        let n = self.table().strangers.fetch_add(1, Ordering::Relaxed);
        let inner = self.number(STRANGER, u64::from(n), id);
        self.insert(id, inner);
        inner as i32
    }

    /// The host id behind a number of the guest's; one that nothing has if there is none.
    #[must_use]
    pub fn outward(&self, inner: i32) -> i32 {
        let Ok(id @ 2..) = u32::try_from(inner) else {
            return inner;
        };
        let entry = self.find(id);
        entry.map_or(NOBODY, |e| {
            (e.ids.load(Ordering::Acquire) >> 32) as u32 as i32
        })
    }

    /// As [`Pids::outward`], where a negative number is a process group.
    #[must_use]
    pub fn outward_or_group(&self, inner: i32) -> i32 {
        match inner {
            i32::MIN..=-2 => -self.outward(-inner),
            n => self.outward(n),
        }
    }

    /// This process ends: when, and what it has used.
    pub(crate) fn end(&self, times: [u64; 3]) {
        if let Some(entry) = self.find(self.own.load(Ordering::Relaxed)) {
            for (slot, time) in entry.ended.iter().zip(times) {
                slot.store(time, Ordering::Release);
            }
        }
    }

    /// When a process ended, by the guest's number, and what it had used; zeroes if it did not say.
    #[must_use]
    pub fn ended(&self, inner: i32) -> [u64; 3] {
        let entry = u32::try_from(inner).ok().and_then(|id| self.find(id));
        entry.map_or([0; 3], |e| {
            [0, 1, 2].map(|i| e.ended[i].load(Ordering::Acquire))
        })
    }

    /// A path into `/proc` with the host's numbers for the guest's. `None`: it is right as it is.
    #[must_use]
    pub fn path(&self, path: &[u8]) -> Option<Vec<u8>> {
        let rest = path.strip_prefix(b"/proc/")?;
        let mut parts: Vec<Vec<u8>> = rest.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let mut changed = false;
        for at in [0, 2] {
            if at == 2 && parts.get(1).is_none_or(|p| p != b"task") {
                continue;
            }
            let number = parts.get(at).and_then(|p| std::str::from_utf8(p).ok());
            if let Some(number) = number.and_then(|p| p.parse::<i32>().ok()) {
                parts[at] = self.outward(number).to_string().into_bytes();
                changed = true;
            }
        }
        changed.then(|| [b"/proc".to_vec(), parts.join(&b'/')].join(&b'/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_from_the_seed() {
        let numbers = |seed| {
            let p = Pids::new(seed).expect("memory");
            let own = p.inward(std::process::id() as i32);
            let made = [p.made(77_001), p.made(77_002)];
            (own, made, p.inward(4_000_123))
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
    }

    #[test]
    fn both_ways() {
        let p = Pids::new(1).expect("memory");
        let inner = p.made(4321) as i32;
        assert_eq!((p.outward(inner), p.inward(4321)), (4321, inner));
        assert_eq!(p.outward_or_group(-inner), -4321);
        assert_eq!(p.outward(inner ^ 1), NOBODY);
        assert_eq!([p.outward(0), p.outward(-1), p.inward(-3)], [0, -1, -3]);
        // The host gives the number again.
        let other = p.made(4321) as i32;
        assert_eq!((p.inward(4321), p.outward(other)), (other, 4321));
        let path = format!("/proc/{other}/task/{other}/stat");
        assert_eq!(
            p.path(path.as_bytes()),
            Some(b"/proc/4321/task/4321/stat".to_vec())
        );
        assert_eq!(p.path(b"/proc/self/stat"), None);
    }

    #[test]
    fn ends_are_told() {
        let p = Pids::new(1).expect("memory");
        let own = p.inward(std::process::id() as i32);
        assert_eq!(p.ended(own), [0; 3]);
        p.end([3, 2, 1]);
        assert_eq!(p.ended(own), [3, 2, 1]);
        assert_eq!(p.ended(5), [0; 3]);
    }
}
