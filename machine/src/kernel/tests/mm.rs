//! Memory management on model memory.

mod files;

use std::collections::HashMap;
use std::sync::Arc as Rc;

use sevlab_arch::{PAGE_SIZE, Va};

use super::*;
use crate::kernel::error::Fail;
use crate::kernel::mm::{
    AddressSpace, Backing, Fault, File, Hw, MMAP_TOP, Place, Prot, USER_END, Vma,
};
use crate::kernel::outside::WindowCall;

const P: u64 = PAGE_SIZE;

/// Memory as a map of pages, one file, and a record of what was asked.
#[derive(Default)]
struct Model {
    pages: HashMap<u64, [u8; 4096]>,
    accepted: std::collections::HashSet<u64>,
    file: Vec<u8>,
    closed: Vec<i32>,
    invalidated: Vec<u64>,
    dropped: Vec<(u64, u64)>,
    /// Frames that are shared with the hypervisor.
    shared: std::collections::HashSet<u64>,
    /// What is in the file window: descriptor, offset, writable.
    mapped: HashMap<u64, (i32, u64, bool)>,
    /// How often something was mapped there.
    maps: u64,
}

/// Where the model's file window is: room for four chunks.
const WINDOW: u64 = 1 << 40;
const CHUNK: u64 = 2 << 20;

impl Model {
    fn page(&mut self, gpa: Gpa) -> &mut [u8; 4096] {
        assert!(self.accepted.contains(&gpa.pfn()), "{gpa} was not accepted");
        assert!(!self.shared.contains(&gpa.pfn()), "{gpa} is shared");
        self.pages.entry(gpa.pfn()).or_insert([0xcc; 4096])
    }
    fn shared_page(&mut self, gpa: Gpa) -> &mut [u8; 4096] {
        assert!(self.shared.contains(&gpa.pfn()), "{gpa} is private");
        self.pages.entry(gpa.pfn()).or_insert([0xcc; 4096])
    }
    /// What the hardware's walk finds at `va`: frame and entry.
    fn walk(&mut self, cr3: u64, va: u64) -> Option<(Gpa, u64)> {
        let mut table = Gpa(cr3 & !(1 << 51));
        let mut entry = 0;
        for shift in [39, 30, 21, 12] {
            entry = self
                .read_u64(table.plus((va >> shift & 511) * 8))
                .expect("model");
            if entry & 1 == 0 {
                return None;
            }
            table = Gpa(entry & 0x0007_ffff_ffff_f000);
            let shared = self.shared.contains(&table.pfn()) || table.0 >= WINDOW;
            assert_eq!(entry >> 51 & 1 == 0, shared, "C-bit");
        }
        Some((table, entry))
    }
}

impl Hw for Model {
    fn read(&mut self, gpa: Gpa, out: &mut [u8]) -> Result<(), Error> {
        let at = gpa.offset() as usize;
        out.copy_from_slice(&self.page(gpa)[at..at + out.len()]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), Error> {
        let at = gpa.offset() as usize;
        self.page(gpa)[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn zero(&mut self, gpa: Gpa) -> Result<(), Error> {
        self.page(gpa).fill(0);
        Ok(())
    }
    fn accept(&mut self, gpa: Gpa, pages: u64) -> Result<(), Error> {
        for pfn in gpa.pfn()..gpa.pfn() + pages {
            assert!(self.accepted.insert(pfn), "accepted twice");
        }
        Ok(())
    }
    fn share(&mut self, gpa: Gpa, pages: u64, shared: bool) -> Result<(), Error> {
        for pfn in gpa.pfn()..gpa.pfn() + pages {
            assert!(self.accepted.contains(&pfn));
            let changed = if shared {
                self.shared.insert(pfn)
            } else {
                self.shared.remove(&pfn)
            };
            assert!(changed, "frame {pfn:#x} was so already");
            self.pages.insert(pfn, [0xdd; 4096]);
        }
        Ok(())
    }
    fn read_shared(&mut self, gpa: Gpa, out: &mut [u8]) -> Result<(), Error> {
        let at = gpa.offset() as usize;
        out.copy_from_slice(&self.shared_page(gpa)[at..at + out.len()]);
        Ok(())
    }
    fn write_shared(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), Error> {
        let at = gpa.offset() as usize;
        self.shared_page(gpa)[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn invalidate(&mut self, va: Va) {
        self.invalidated.push(va.0);
    }
    fn flush(&mut self, _: Va, _: Va) {}
    fn drop_code(&mut self, start: Va, end: Va) {
        self.dropped.push((start.0, end.0));
    }
    fn pread(&mut self, _: i32, off: u64, out: &mut [u8]) -> Result<Result<usize, Errno>, Error> {
        let rest = self.file.get(off as usize..).unwrap_or_default();
        let n = rest.len().min(out.len());
        out[..n].copy_from_slice(&rest[..n]);
        Ok(Ok(n))
    }
    fn file_size(&mut self, _: i32) -> Result<u64, Error> {
        Ok(self.file.len() as u64)
    }
    fn close(&mut self, fd: i32) -> Result<(), Error> {
        self.closed.push(fd);
        Ok(())
    }
    fn window(&mut self, call: &WindowCall) -> Result<Result<u64, Errno>, Error> {
        match *call {
            WindowCall::Map {
                fd,
                offset,
                len,
                at,
                writable,
            } => {
                assert_eq!(len, CHUNK);
                self.maps += 1;
                self.mapped.insert(at.0, (fd, offset, writable));
            }
            WindowCall::Unmap { at, len } => {
                assert_eq!(len, CHUNK);
                assert!(self.mapped.remove(&at.0).is_some(), "{at} is not mapped");
            }
            WindowCall::Check { .. } | WindowCall::Create { .. } => return Ok(Err(Errno::ENODEV)),
        }
        Ok(Ok(0))
    }
}

fn space(hw: &mut Model, mib: u64) -> AddressSpace {
    let memory = Gpa(0x10_0000)..Gpa(0x10_0000 + (mib << 20));
    let mut mm = AddressSpace::new(hw, memory, 1 << 51).expect("space");
    mm.use_window(Gpa(WINDOW)..Gpa(WINDOW + 4 * CHUNK));
    mm
}

fn anon(prot: Prot) -> Vma {
    Vma {
        end: 0,
        prot,
        shared: false,
        backing: Backing::Anon(""),
    }
}

fn errno<T: std::fmt::Debug>(r: Result<T, Fail>) -> Errno {
    match r {
        Err(Fail::Errno(e)) => e,
        other => panic!("{other:?}"),
    }
}

const ANY: Place = Place::Any {
    hint: 0,
    top: MMAP_TOP,
};

#[test]
fn mappings_go_downwards_and_gaps_are_reused() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 4);
    let a = mm.map(&mut hw, ANY, 2 * P, anon(Prot::RW), false).unwrap();
    let b = mm.map(&mut hw, ANY, P, anon(Prot::NONE), false).unwrap();
    assert_eq!((a, b), (MMAP_TOP - 2 * P, MMAP_TOP - 3 * P));
    mm.unmap(&mut hw, a, a + P).unwrap();
    assert_eq!(mm.map(&mut hw, ANY, P, anon(Prot::NONE), false).unwrap(), a);
    let hint = Place::Any {
        hint: 0x1000_0000,
        top: MMAP_TOP,
    };
    assert_eq!(
        mm.map(&mut hw, hint, P, anon(Prot::RW), false).unwrap(),
        0x1000_0000
    );
    assert_eq!(
        errno(mm.map(&mut hw, Place::Free(a), P, anon(Prot::RW), false)),
        Errno::EEXIST
    );
    assert_eq!(
        errno(mm.map(&mut hw, Place::Fixed(a + 1), P, anon(Prot::RW), false)),
        Errno::EINVAL
    );
    assert_eq!(
        errno(mm.map(&mut hw, Place::Fixed(USER_END), P, anon(Prot::RW), false)),
        Errno::ENOMEM
    );
    assert_eq!(
        errno(mm.map(&mut hw, ANY, u64::MAX, anon(Prot::RW), false)),
        Errno::ENOMEM
    );
}

#[test]
fn reservations_of_gigabytes_cost_no_memory() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 4);
    let free = mm.frames().free();
    let at = mm
        .map(&mut hw, ANY, 64 << 30, anon(Prot::NONE), false)
        .unwrap();
    mm.protect(&mut hw, at, at + (1 << 30), Prot::RW).unwrap();
    mm.unmap(&mut hw, at, at + (64 << 30)).unwrap();
    assert_eq!(mm.frames().free(), free);
    assert_eq!(
        errno(mm.map(&mut hw, ANY, 1 << 30, anon(Prot::RW), false)),
        Errno::ENOMEM
    );
    assert!(mm.map(&mut hw, ANY, 1 << 30, anon(Prot::RW), true).is_ok());
}

#[test]
fn faults_give_zero_pages_with_the_areas_rights() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 4);
    let at = mm.map(&mut hw, ANY, 8 * P, anon(Prot::RW), false).unwrap();
    assert_eq!(
        mm.fault(&mut hw, at + 5, true, false).unwrap(),
        Fault::Fixed
    );
    let (frame, entry) = hw.walk(mm.cr3(), at).unwrap();
    assert_eq!(hw.page(frame), &[0; 4096]);
    assert_eq!(entry & 7, 7);
    assert_eq!(entry >> 63, 1);
    assert_eq!(mm.fault(&mut hw, at, false, true).unwrap(), Fault::Segv(2));
    assert_eq!(
        mm.fault(&mut hw, at + 8 * P, false, false).unwrap(),
        Fault::Segv(1)
    );
    mm.protect(&mut hw, at, at + P, Prot(1)).unwrap();
    assert_eq!(hw.walk(mm.cr3(), at).unwrap().1 & 2, 0);
    assert!(hw.invalidated.contains(&at));
    assert_eq!(mm.fault(&mut hw, at, true, false).unwrap(), Fault::Segv(2));
    mm.protect(&mut hw, at, at + P, Prot::NONE).unwrap();
    assert!(hw.walk(mm.cr3(), at).is_none());
    hw.page(frame)[9] = 42;
    mm.protect(&mut hw, at, at + P, Prot(5)).unwrap();
    let (again, entry) = hw.walk(mm.cr3(), at).unwrap();
    assert_eq!((again, hw.page(again)[9], entry >> 63), (frame, 42, 0));
    mm.unmap(&mut hw, at, at + P).unwrap();
    assert!(hw.dropped.contains(&(at, at + P)));
}

#[test]
fn sequential_faults_bring_contiguous_frames() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 8);
    let at = mm
        .map(&mut hw, ANY, 256 * P, anon(Prot::RW), false)
        .unwrap();
    let mut faults = 0;
    for i in 0..256 {
        if hw.walk(mm.cr3(), at + i * P).is_none() {
            assert_eq!(
                mm.fault(&mut hw, at + i * P, true, false).unwrap(),
                Fault::Fixed
            );
            faults += 1;
        }
    }
    assert!(faults < 20, "{faults} faults");
    let first = hw.walk(mm.cr3(), at).unwrap().0;
    let breaks = (0..256).filter(|i| hw.walk(mm.cr3(), at + i * P).unwrap().0 != first.plus(i * P));
    assert_eq!(breaks.count(), 0);
}

#[test]
fn frames_run_out_and_come_back() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 1);
    let total = mm.frames().total();
    let at = mm
        .map(&mut hw, ANY, total * P, anon(Prot::RW), false)
        .unwrap();
    let mut mapped = 0;
    let end = loop {
        match mm.fault(&mut hw, at + mapped * P, true, false).unwrap() {
            Fault::Fixed => {
                while hw.walk(mm.cr3(), at + mapped * P).is_some() {
                    mapped += 1;
                }
            }
            other => break other,
        }
    };
    assert_eq!(end, Fault::OutOfMemory);
    assert!(mapped > total - 8);
    mm.unmap(&mut hw, at, at + total * P).unwrap();
    assert_eq!(mm.stats().resident, 0);
    let at = mm.map(&mut hw, ANY, P, anon(Prot::RW), false).unwrap();
    assert_eq!(mm.fault(&mut hw, at, true, false).unwrap(), Fault::Fixed);
}

#[test]
fn files_are_read_around_the_fault_and_end_with_sigbus() {
    let mut hw = Model {
        file: (0..5 * 4096 + 100).map(|i| (i / 7) as u8).collect(),
        ..Model::default()
    };
    let mut mm = space(&mut hw, 4);
    let file = Rc::new(File {
        fd: 1001,
        id: (1, 7),
        writable: false,
        name: "f".into(),
    });
    let backing = Backing::File { file, offset: P };
    let area = Vma {
        end: 0,
        prot: Prot(5),
        shared: false,
        backing,
    };
    let at = mm.map(&mut hw, ANY, 8 * P, area, false).unwrap();
    assert_eq!(
        mm.fault(&mut hw, at + 4 * P, false, false).unwrap(),
        Fault::Fixed
    );
    let expected = hw.file.clone();
    for i in 0..5 {
        let (frame, entry) = hw
            .walk(mm.cr3(), at + i * P)
            .expect("brought in around the fault");
        let n = if i == 4 { 100 } else { 4096 };
        let from = ((i + 1) * P) as usize;
        assert_eq!(hw.page(frame)[..n], expected[from..from + n]);
        assert!(hw.page(frame)[n..].iter().all(|b| *b == 0));
        assert_eq!(entry & 2, 0);
    }
    assert_eq!(
        mm.fault(&mut hw, at + 5 * P, false, false).unwrap(),
        Fault::Bus
    );
    mm.unmap(&mut hw, at, at + 4 * P).unwrap();
    assert!(hw.closed.is_empty());
    mm.unmap(&mut hw, at, at + 8 * P).unwrap();
    assert_eq!(hw.closed, [1001]);
}

#[test]
fn the_stack_grows_to_its_limit_and_keeps_a_gap() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 4);
    let start = USER_END - 16 * P;
    mm.reserve(
        start,
        Vma {
            end: USER_END,
            prot: Prot::RW,
            shared: false,
            backing: Backing::Stack,
        },
    )
    .unwrap();
    assert_eq!(
        mm.fault(&mut hw, start - 40 * P, true, false).unwrap(),
        Fault::Fixed
    );
    assert_eq!(
        mm.fault(&mut hw, USER_END - mm.stack_limit - P, true, false)
            .unwrap(),
        Fault::Segv(1)
    );
    let near = Place::Fixed(USER_END - 400 * P);
    mm.map(&mut hw, near, P, anon(Prot::RW), false).unwrap();
    assert_eq!(
        mm.fault(&mut hw, USER_END - 300 * P, true, false).unwrap(),
        Fault::Segv(1)
    );
    assert_eq!(
        mm.fault(&mut hw, USER_END - 100 * P, true, false).unwrap(),
        Fault::Fixed
    );
}

#[test]
fn the_heap_grows_shrinks_and_reads_zero_again() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 4);
    mm.set_brk_start(0x60_0000);
    assert_eq!(mm.set_brk(&mut hw, 0).unwrap(), 0x60_0000);
    assert_eq!(mm.set_brk(&mut hw, 0x60_2800).unwrap(), 0x60_2800);
    assert_eq!(
        mm.fault(&mut hw, 0x60_2000, true, false).unwrap(),
        Fault::Fixed
    );
    assert_eq!(
        mm.fault(&mut hw, 0x60_3000, true, false).unwrap(),
        Fault::Segv(1)
    );
    let frame = hw.walk(mm.cr3(), 0x60_2000).unwrap().0;
    hw.page(frame)[0] = 9;
    assert_eq!(mm.set_brk(&mut hw, 0x60_1000).unwrap(), 0x60_1000);
    assert_eq!(mm.set_brk(&mut hw, 0x60_3000).unwrap(), 0x60_3000);
    assert_eq!(
        mm.fault(&mut hw, 0x60_2000, true, false).unwrap(),
        Fault::Fixed
    );
    let frame = hw.walk(mm.cr3(), 0x60_2000).unwrap().0;
    assert_eq!(hw.page(frame)[0], 0);
    assert_eq!(
        mm.set_brk(&mut hw, 1 << 40).unwrap(),
        0x60_3000,
        "more than all memory"
    );
}

#[test]
fn mremap_moves_frames_with_their_contents() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 4);
    mm.map(&mut hw, ANY, P, anon(Prot::NONE), false).unwrap();
    let a = mm.map(&mut hw, ANY, 4 * P, anon(Prot::RW), false).unwrap();
    mm.fault(&mut hw, a + P, true, false).unwrap();
    let frame = hw.walk(mm.cr3(), a + P).unwrap().0;
    hw.page(frame)[0] = 77;
    assert_eq!(
        errno(mm.remap(&mut hw, a, 4 * P, 16 * P, false, None)),
        Errno::ENOMEM
    );
    let b = mm.remap(&mut hw, a, 4 * P, 16 * P, true, None).unwrap();
    assert_ne!(a, b);
    assert_eq!(hw.walk(mm.cr3(), b + P).unwrap().0, frame);
    assert!(hw.walk(mm.cr3(), a + P).is_none());
    assert_eq!(
        mm.fault(&mut hw, a + P, false, false).unwrap(),
        Fault::Segv(1)
    );
    assert_eq!(mm.remap(&mut hw, b, 16 * P, 2 * P, false, None).unwrap(), b);
    assert_eq!(
        mm.fault(&mut hw, b + 2 * P, false, false).unwrap(),
        Fault::Segv(1)
    );
    assert_eq!(
        mm.remap(&mut hw, b, 2 * P, 2 * P, true, Some(0x2000_0000))
            .unwrap(),
        0x2000_0000
    );
    assert_eq!(hw.walk(mm.cr3(), 0x2000_0000 + P).unwrap().0, frame);
    assert_eq!(
        errno(mm.remap(&mut hw, 0x3000_0000, P, P, true, None)),
        Errno::EFAULT
    );
}

#[test]
fn discarded_pages_read_zero_and_mincore_sees_it() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 4);
    let at = mm.map(&mut hw, ANY, 4 * P, anon(Prot::RW), false).unwrap();
    mm.fault(&mut hw, at + P, true, false).unwrap();
    assert_eq!(mm.resident(&mut hw, at, at + 4 * P).unwrap(), [0, 1, 0, 0]);
    mm.discard(&mut hw, at, at + 4 * P).unwrap();
    assert_eq!(mm.resident(&mut hw, at, at + 4 * P).unwrap(), [0; 4]);
    assert_eq!(errno(mm.discard(&mut hw, at, at + 5 * P)), Errno::ENOMEM);
}

#[test]
fn pages_are_shared_on_purpose_and_come_back_private() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 4);
    let free = mm.frames().free();
    let at = mm.map(&mut hw, ANY, 8 * P, anon(Prot::RW), false).unwrap();
    mm.fault(&mut hw, at, true, false).unwrap();
    let (frame, _) = hw.walk(mm.cr3(), at).unwrap();
    hw.page(frame)[7] = 42;
    // One page that is there and two that are not.
    mm.share(&mut hw, at, at + 3 * P, true).unwrap();
    assert_eq!(hw.shared.len(), 3);
    assert_eq!(hw.walk(mm.cr3(), at).unwrap().0, frame, "in its place");
    assert_eq!(hw.shared_page(frame)[7], 42);
    let (second, _) = hw.walk(mm.cr3(), at + P).unwrap();
    assert_eq!(hw.shared_page(second), &[0; 4096]);
    assert!(hw.invalidated.contains(&at));
    mm.share(&mut hw, at, at + 3 * P, true).unwrap(); // no change, no page state change
    // Rights change, the state does not.
    mm.protect(&mut hw, at, at + P, Prot(1)).unwrap();
    mm.protect(&mut hw, at, at + P, Prot::RW).unwrap();
    hw.walk(mm.cr3(), at).unwrap();
    hw.shared_page(frame)[8] = 43;
    mm.share(&mut hw, at, at + P, false).unwrap();
    assert_eq!(hw.page(frame)[7..9], [42, 43]);
    hw.walk(mm.cr3(), at).unwrap();
    // A moved page stays what it is, and whatever goes is private before it is free.
    let to = mm.remap(&mut hw, at + P, P, 4 * P, true, None).unwrap();
    assert_eq!(hw.walk(mm.cr3(), to).unwrap().0, second);
    mm.discard(&mut hw, to, to + P).unwrap();
    assert!(!hw.shared.contains(&second.pfn()));
    mm.unmap(&mut hw, at, at + 8 * P).unwrap();
    assert!(hw.shared.is_empty());
    mm.unmap(&mut hw, to, to + 4 * P).unwrap();
    assert!(mm.frames().free() >= free - 4, "all but page tables");
}

#[test]
fn only_private_anonymous_memory_is_shared() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 1);
    let at = mm.map(&mut hw, ANY, P, anon(Prot::RW), false).unwrap();
    let end = at + 2 * P;
    assert_eq!(errno(mm.share(&mut hw, at, end, true)), Errno::ENOMEM);
    let area = Vma {
        shared: true,
        ..anon(Prot::RW)
    };
    let at = mm.map(&mut hw, ANY, P, area, false).unwrap();
    assert_eq!(errno(mm.share(&mut hw, at, at + P, true)), Errno::EINVAL);
    let area = Vma {
        backing: Backing::File {
            file: Rc::new(File {
                fd: 3,
                id: (1, 3),
                writable: false,
                name: String::new(),
            }),
            offset: 0,
        },
        ..anon(Prot::RW)
    };
    let at = mm.map(&mut hw, ANY, P, area, false).unwrap();
    assert_eq!(errno(mm.share(&mut hw, at, at + P, true)), Errno::EINVAL);
    // More than there is: an error, and what was there stays private.
    let at = mm.map(&mut hw, ANY, 1 << 20, anon(Prot::RW), true).unwrap();
    assert_eq!(
        errno(mm.share(&mut hw, at, at + (1 << 20), true)),
        Errno::ENOMEM
    );
    assert!(hw.shared.is_empty());
}

/// Highest frame number that was ever handed out, above the first.
fn reach(hw: &Model) -> u64 {
    hw.pages.keys().max().map_or(0, |pfn| pfn - 0x100)
}

#[test]
fn thousands_of_mappings_come_and_go_in_the_same_frames() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 256);
    let mut kept: Vec<(u64, u64)> = Vec::new();
    let mut rng = 1u64;
    for i in 0..10_000 {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let len = (rng >> 33) % 40 * P + if i % 97 == 0 { 2 << 20 } else { P };
        // Some at addresses that never come again.
        let place = match i % 5 {
            0 => Place::Fixed(0x1_0000_0000 + i * 0x100_0000),
            _ => ANY,
        };
        let at = mm.map(&mut hw, place, len, anon(Prot::RW), false).unwrap();
        for page in (at..at + len).step_by(5 * P as usize) {
            assert_eq!(mm.fault(&mut hw, page, true, false).unwrap(), Fault::Fixed);
        }
        kept.push((at, len));
        if kept.len() > 16 {
            let (at, len) = kept.swap_remove((rng >> 40) as usize % 16);
            mm.unmap(&mut hw, at, at + len).unwrap();
        }
    }
    for (at, len) in kept {
        mm.unmap(&mut hw, at, at + len).unwrap();
    }
    assert_eq!(mm.stats().resident, 0);
    // Page tables stay: at each of the 2000 addresses that came once, and above. The rest was used again and again.
    let tables = mm.frames().total() - mm.frames().free();
    assert!(tables < 2300, "{tables} frames are not free");
    let reached = reach(&hw);
    assert!(reached < tables + 4096, "{reached} frames were touched");
}

#[test]
fn memory_touched_here_and_there_is_packed() {
    let mut hw = Model::default();
    let mut mm = space(&mut hw, 256);
    let at = mm.map(&mut hw, ANY, 2 << 30, anon(Prot::RW), true).unwrap();
    for i in 0..1024 {
        let page = at + i * (2 << 20) + i * 7 % 512 * P;
        assert_eq!(mm.fault(&mut hw, page, true, false).unwrap(), Fault::Fixed);
    }
    // A page and a page table each.
    assert!(reach(&hw) < 2 * 1024 + 64, "{}", reach(&hw));
    // What is touched densely after all gets frames in a row.
    let dense = at + (1 << 30);
    for i in (0..512).rev() {
        let page = dense + i * P;
        if hw.walk(mm.cr3(), page).is_none() {
            mm.fault(&mut hw, page, true, false).unwrap();
        }
    }
    let frames: Vec<u64> = (0..512)
        .map(|i| hw.walk(mm.cr3(), dense + i * P).unwrap().0.pfn())
        .collect();
    let breaks = frames.windows(2).filter(|w| w[1] != w[0] + 1).count();
    assert!(breaks < 40, "{breaks} breaks");
}
