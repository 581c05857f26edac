//! Shared files in the window.

use super::*;

fn shared_file(fd: i32, id: u64, writable: bool, prot: Prot, offset: u64) -> Vma {
    let file = Rc::new(File {
        fd,
        id: (1, id),
        writable,
        name: "f".into(),
    });
    Vma {
        end: 0,
        prot,
        shared: true,
        backing: Backing::File { file, offset },
    }
}

/// The window's address that `va` leads to, and the entry.
fn shown(hw: &mut Model, mm: &AddressSpace, va: u64) -> (u64, u64) {
    let (frame, entry) = hw.walk(mm.cr3(), va).expect("entered");
    assert!(frame.0 >= WINDOW && entry >> 51 & 1 == 0);
    (frame.0, entry)
}

#[test]
fn a_page_of_a_file_is_one_frame_under_every_address() {
    let mut hw = Model {
        file: vec![1; 3 * CHUNK as usize],
        ..Model::default()
    };
    let mut mm = space(&mut hw, 4);
    let free = mm.frames().free();
    // Another descriptor of the same file, opened for reading.
    let reader = shared_file(1001, 7, false, Prot(1), P);
    let a = mm.map(&mut hw, ANY, 2 * CHUNK, reader, false).unwrap();
    let writer = shared_file(1002, 7, true, Prot::RW, 0);
    let b = mm.map(&mut hw, ANY, 3 * CHUNK, writer, false).unwrap();
    let other = shared_file(1003, 8, true, Prot::RW, 0);
    let c = mm.map(&mut hw, ANY, P, other, false).unwrap();
    for va in [a + 4 * P, b + 5 * P, c, b + CHUNK, b + 2 * CHUNK] {
        assert_eq!(mm.fault(&mut hw, va, false, false).unwrap(), Fault::Fixed);
    }
    let (frame, entry) = shown(&mut hw, &mm, a + 4 * P);
    assert_eq!(shown(&mut hw, &mm, b + 5 * P).0, frame);
    assert_ne!(
        shown(&mut hw, &mm, c).0 & !(CHUNK - 1),
        frame & !(CHUNK - 1)
    );
    assert_eq!(entry & 2, 0, "read only");
    assert_eq!(frame % CHUNK, 5 * P, "as in the file");
    assert_eq!(
        mm.shared_frame(&mut hw, b + 5 * P + 9).unwrap(),
        Some(Gpa(frame + 9))
    );
    assert_eq!(mm.shared_frame(&mut hw, b + CHUNK - P).unwrap(), None);
    // The chunk was mapped again for the writer, in its place.
    assert_eq!(hw.mapped[&(frame - 5 * P)], (1002, 0, true));
    assert_eq!((hw.mapped.len(), hw.maps), (4, 5));
    assert_eq!(
        mm.fault(&mut hw, a + 4 * P, true, false).unwrap(),
        Fault::Segv(2)
    );
    // Neighbours came along, but none from another chunk.
    assert!(hw.walk(mm.cr3(), b + 6 * P).is_some());
    assert!(hw.walk(mm.cr3(), a + CHUNK - 2 * P).is_none());
    // Moved, not copied; and the last entry takes the chunk along.
    let to = mm
        .remap(&mut hw, b, 3 * CHUNK, 4 * CHUNK, true, Some(1 << 33))
        .unwrap();
    assert_eq!(shown(&mut hw, &mm, to + 5 * P).0, frame);
    mm.unmap(&mut hw, a, a + 2 * CHUNK).unwrap();
    assert_eq!(hw.mapped.len(), 4);
    mm.discard(&mut hw, to, to + CHUNK).unwrap();
    assert_eq!(hw.mapped.len(), 3);
    mm.unmap(&mut hw, to, to + 4 * CHUNK).unwrap();
    mm.unmap(&mut hw, c, c + P).unwrap();
    assert!(hw.mapped.is_empty());
    hw.closed.sort_unstable();
    assert_eq!(hw.closed, [1001, 1002, 1003]);
    assert_eq!(mm.stats().resident, 0);
    assert!(mm.frames().free() >= free - 24, "all but page tables");
}

#[test]
fn a_full_window_gives_way() {
    let mut hw = Model {
        file: vec![1; 8 * CHUNK as usize],
        ..Model::default()
    };
    let mut mm = space(&mut hw, 4);
    let area = shared_file(1001, 7, true, Prot::RW, 0);
    let at = mm.map(&mut hw, ANY, 8 * CHUNK, area, false).unwrap();
    for i in (0..8).chain(0..8) {
        let va = at + i * CHUNK;
        if hw.walk(mm.cr3(), va).is_none() {
            assert_eq!(mm.fault(&mut hw, va, true, false).unwrap(), Fault::Fixed);
        }
        let (frame, _) = shown(&mut hw, &mm, va);
        assert_eq!(hw.mapped[&frame], (1001, i * CHUNK, true));
        assert!(hw.mapped.len() <= 4);
        assert!(hw.invalidated.len() as u64 >= 64 * (hw.maps - hw.mapped.len() as u64));
    }
    assert!(hw.maps > 8);
    mm.unmap(&mut hw, at, at + 8 * CHUNK).unwrap();
    assert!(hw.mapped.is_empty());
    // None at all.
    mm.use_window(Gpa(0)..Gpa(0));
    let area = shared_file(1002, 7, true, Prot::RW, 0);
    let at = mm.map(&mut hw, ANY, P, area, false).unwrap();
    assert_eq!(
        mm.fault(&mut hw, at, true, false).unwrap(),
        Fault::OutOfMemory
    );
}

#[test]
fn shared_pages_behind_the_end_are_a_bus_error() {
    let mut hw = Model {
        file: vec![1; 2 * 4096 + 1],
        ..Model::default()
    };
    let mut mm = space(&mut hw, 4);
    let area = shared_file(1001, 7, true, Prot::RW, P);
    let at = mm.map(&mut hw, ANY, 4 * P, area, false).unwrap();
    assert_eq!(mm.fault(&mut hw, at, false, false).unwrap(), Fault::Fixed);
    shown(&mut hw, &mm, at + P);
    assert_eq!(
        mm.fault(&mut hw, at + 2 * P, false, false).unwrap(),
        Fault::Bus
    );
    hw.file.resize(4 * 4096, 0);
    assert_eq!(
        mm.fault(&mut hw, at + 2 * P, false, false).unwrap(),
        Fault::Fixed
    );
    hw.file.truncate(4097);
    mm.truncated(&mut hw, (1, 7), 4097).unwrap();
    shown(&mut hw, &mm, at);
    for i in [1, 2, 3] {
        assert!(hw.walk(mm.cr3(), at + i * P).is_none());
        assert_eq!(
            mm.fault(&mut hw, at + i * P, true, false).unwrap(),
            Fault::Bus
        );
    }
    mm.truncated(&mut hw, (1, 8), 0).unwrap();
    shown(&mut hw, &mm, at);
}

#[test]
fn what_is_executed_is_a_private_copy_until_someone_writes() {
    let mut hw = Model {
        file: vec![1; 2 * 4096],
        ..Model::default()
    };
    let mut mm = space(&mut hw, 4);
    let code = shared_file(1001, 7, true, Prot(5), 0);
    let x = mm.map(&mut hw, ANY, 2 * P, code, false).unwrap();
    let data = shared_file(1002, 7, true, Prot::RW, 0);
    let w = mm.map(&mut hw, ANY, 2 * P, data, false).unwrap();
    assert_eq!(mm.fault(&mut hw, w, true, false).unwrap(), Fault::Fixed);
    assert_eq!(mm.fault(&mut hw, x, false, false).unwrap(), Fault::Fixed);
    assert_eq!(
        shown(&mut hw, &mm, x).1 >> 63,
        1,
        "no fetch from shared memory"
    );
    for round in 2..5 {
        hw.file[0] = round; // what a store through the window does
        assert_eq!(mm.fault(&mut hw, x, false, true).unwrap(), Fault::Fixed);
        let (frame, entry) = hw.walk(mm.cr3(), x).unwrap();
        assert_eq!((entry >> 63, entry & 2), (0, 0));
        assert_eq!(hw.page(frame)[..2], [round, 1]);
        // The window is read-only now, also where it is entered later.
        assert_eq!(shown(&mut hw, &mm, w).1 & 2, 0);
        assert!(shown(&mut hw, &mm, w + P).1 & 2 != 0);
        mm.discard(&mut hw, w, w + P).unwrap();
        assert_eq!(mm.fault(&mut hw, w, false, false).unwrap(), Fault::Fixed);
        assert_eq!(shown(&mut hw, &mm, w).1 & 2, 0);
        mm.protect(&mut hw, w, w + P, Prot(1)).unwrap();
        mm.protect(&mut hw, w, w + P, Prot::RW).unwrap();
        assert_eq!(shown(&mut hw, &mm, w).1 & 2, 0);
        hw.dropped.clear();
        assert_eq!(mm.fault(&mut hw, w, true, false).unwrap(), Fault::Fixed);
        assert!(shown(&mut hw, &mm, w).1 & 2 != 0);
        assert!(hw.walk(mm.cr3(), x).is_none());
        assert_eq!(hw.dropped, [(x, x + P)]);
    }
    // Turned from code into data, it is the file again.
    assert_eq!(mm.fault(&mut hw, x, false, true).unwrap(), Fault::Fixed);
    mm.protect(&mut hw, x, x + P, Prot::RW).unwrap();
    assert_eq!(mm.fault(&mut hw, x, true, false).unwrap(), Fault::Fixed);
    shown(&mut hw, &mm, x);
    assert_eq!(mm.stats().resident, 0);
    // Code that changes itself makes progress.
    mm.protect(&mut hw, x, x + P, Prot(7)).unwrap();
    assert_eq!(mm.fault(&mut hw, x, false, true).unwrap(), Fault::Fixed);
    let (_, entry) = hw.walk(mm.cr3(), x).unwrap();
    assert_eq!((entry >> 63, entry & 2), (0, 2));
    mm.unmap(&mut hw, x, x + 2 * P).unwrap();
    mm.unmap(&mut hw, w, w + 2 * P).unwrap();
    assert!(hw.mapped.is_empty());
    assert_eq!(mm.stats().resident, 0);
}
