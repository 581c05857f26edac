//! Lists of page state changes.

use crate::common::Random;
use sevlab_arch::Gpa;
use sevlab_arch::ghcb::{
    PSC_ERROR_INVALID_ENTRY, PSC_ERROR_INVALID_HEADER, PSC_MAX_ENTRIES, SHARED_BUFFER_LEN,
};
use sevlab_ghcb::psc::{PscEntry, PscError, PscList, PscOperation};

fn small(page: u64) -> PscEntry {
    PscEntry {
        gpa: Gpa(page << 12),
        operation: PscOperation::Private,
        large: false,
        done: 0,
    }
}

fn large(page: u64) -> PscEntry {
    PscEntry {
        gpa: Gpa(page << 21),
        operation: PscOperation::Shared,
        large: true,
        done: 0,
    }
}

fn buffer(entries: &[PscEntry]) -> Vec<u8> {
    let mut bytes = vec![0; SHARED_BUFFER_LEN];
    PscList::new(entries).unwrap().write(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_list_is_worked_off_and_taken_up_again() {
    let entries = [small(3), large(1), small(4)];
    let mut mine = PscList::new(&entries).unwrap();
    let mut bytes = buffer(&entries);

    let mut theirs = PscList::parse(&bytes).unwrap();
    assert_eq!(theirs.current(), Ok(Some(entries[0])));
    theirs.advance(1);
    assert_eq!(theirs.current(), Ok(Some(entries[1])));
    theirs.advance(100);
    theirs.write(&mut bytes).unwrap();

    assert_eq!(mine.check_progress(&bytes), Ok(false));
    assert_eq!(mine.current_index(), 1);
    mine.write(&mut bytes).unwrap();

    let mut theirs = PscList::parse(&bytes).unwrap();
    assert_eq!(
        theirs.current(),
        Ok(Some(PscEntry {
            done: 100,
            ..entries[1]
        }))
    );
    theirs.advance(412);
    theirs.advance(1);
    assert_eq!(theirs.current(), Ok(None));
    theirs.advance(1);
    theirs.write(&mut bytes).unwrap();
    assert_eq!(mine.check_progress(&bytes), Ok(true));
}

#[test]
fn the_longest_list_fills_the_buffer() {
    let most = vec![small(1); PSC_MAX_ENTRIES];
    let list = PscList::new(&most).unwrap();
    assert_eq!(list.size(), SHARED_BUFFER_LEN);
    assert_eq!(PscList::parse(&buffer(&most)), Ok(list.clone()));
    assert_eq!(
        PscList::new(&vec![small(1); 254]),
        Err(PscError::Count { count: 254 })
    );
    assert_eq!(PscList::new(&[]), Err(PscError::Count { count: 0 }));
    assert_eq!(
        list.write(&mut [0; 100]),
        Err(PscError::Count { count: 253 })
    );
}

#[test]
fn headers_that_lie() {
    let good = buffer(&[small(1), small(2)]);
    let header = |cur: u16, end: u16, reserved: u32, room: usize| {
        let mut bytes = good.clone();
        bytes[..2].copy_from_slice(&cur.to_le_bytes());
        bytes[2..4].copy_from_slice(&end.to_le_bytes());
        bytes[4..8].copy_from_slice(&reserved.to_le_bytes());
        PscList::parse(&bytes[..room]).map_err(|error| error.info())
    };
    assert!(header(0, 1, 0, SHARED_BUFFER_LEN).is_ok());
    assert!(header(0, 252, 0, SHARED_BUFFER_LEN).is_ok());
    assert!(header(0, 1, 0, 24).is_ok());
    for (cur, end, reserved, room) in [
        (2, 1, 0, SHARED_BUFFER_LEN),
        (0, 253, 0, SHARED_BUFFER_LEN),
        (0, u16::MAX, 0, SHARED_BUFFER_LEN),
        (u16::MAX, u16::MAX, 0, SHARED_BUFFER_LEN),
        (0, 1, 1, SHARED_BUFFER_LEN),
        (0, 1, 0, 23),
        (0, 0, 0, 8),
        (0, 0, 0, 7),
        (0, 0, 0, 0),
    ] {
        assert_eq!(
            header(cur, end, reserved, room),
            Err(PSC_ERROR_INVALID_HEADER),
            "{cur} {end} {reserved} {room}"
        );
    }
}

#[test]
fn entries_that_lie() {
    let entry = |raw: u64| {
        let mut bytes = buffer(&[small(1)]);
        bytes[8..16].copy_from_slice(&raw.to_le_bytes());
        PscList::parse(&bytes)
            .unwrap()
            .current()
            .map_err(|error| error.info())
    };
    let private = 1_u64 << 52;
    let huge = 1_u64 << 56;
    assert!(entry(private | 5 << 12).is_ok());
    assert!(entry(private | huge | 512 << 12 | 512).is_ok());
    for raw in [
        5 << 12,                    // operation 0
        5_u64 << 52,                // operation 5
        private | 1 << 57,          // reserved bit
        private | 1 << 63,          // reserved bit
        private | huge | 513 << 12, // large page off its alignment
        private | huge | 513,       // more pages done than there are
        private | 2,                // more pages done than there are
        private | 1 << 51,          // C-bit in the address
    ] {
        assert_eq!(entry(raw), Err(PSC_ERROR_INVALID_ENTRY), "{raw:#x}");
    }
}

#[test]
fn progress_that_cannot_be() {
    let entries = [small(1), large(1), small(2)];
    let sent = buffer(&entries);
    let progress = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut list = PscList::new(&entries).unwrap();
        list.advance(1);
        let mut bytes = sent.clone();
        bytes[0] = 1;
        change(&mut bytes);
        list.check_progress(&bytes).map(|_| list)
    };
    assert!(progress(&|_| {}).is_ok());
    assert!(progress(&|b| b[0] = 3).is_ok());
    assert!(progress(&|b| b[0] = 0).is_err(), "backwards");
    assert!(progress(&|b| b[0] = 4).is_err(), "past the end");
    assert!(progress(&|b| b[2] = 1).is_err(), "another end");
    assert!(progress(&|b| b[4] = 1).is_err(), "reserved");
    assert!(
        progress(&|b| b[17] = 3).is_err(),
        "more pages than there are"
    );
    // The page an entry names is the guest's to say.
    let mut kept = PscList::new(&entries).unwrap();
    kept.advance(1);
    assert_eq!(progress(&|b| b[18] ^= 0x40), Ok(kept));
}

#[test]
fn random_lists_never_panic() {
    let mut random = Random(99);
    for _ in 0..50_000 {
        let mut bytes = buffer(&[small(1), large(2), small(3)]);
        for _ in 0..random.below(8) {
            let at = random.below(32);
            bytes[at] ^= 1 << random.below(8);
        }
        bytes.truncate(random.below(64));
        if let Ok(mut list) = PscList::parse(&bytes) {
            for _ in 0..300 {
                match list.current() {
                    Ok(Some(entry)) => list.advance(entry.pages()),
                    Ok(None) | Err(_) => break,
                }
            }
            list.write(&mut bytes).unwrap();
        }
        let mut mine = PscList::new(&[small(1), large(2), small(3)]).unwrap();
        let _ = mine.check_progress(&bytes);
    }
}
