use super::super::sites::{Lists, tests::table};
use super::*;
use std::borrow::Cow;

const KEY: Key = Key([7; 16]);

fn record(rip: u64, slot_base: u32) -> Vec<u8> {
    let sites = Lists::new(&table(rip)).expect("of the kind");
    Record {
        slot_base,
        step_base: 3,
        insns: 4,
        groups: true,
        view: true,
        entry: 2,
        targets: &[U64::new(0x1234), U64::new(0x5678)],
        steps: &[U64::new(rip + 1)],
        spans: &[
            Span {
                rip: U64::new(rip),
                bytes: U32::new(3),
            },
            Span {
                rip: U64::new(rip + 64),
                bytes: U32::new(2),
            },
        ],
        guest: &[1, 2, 3, 4, 5],
        code: &[0x90; 33],
        sites: sites.packed(),
    }
    .encode()
}

fn copy(rip: u64) -> Vec<u8> {
    let span = Span {
        rip: U64::new(rip),
        bytes: U32::new(2),
    };
    Stored {
        view: 1 << 40,
        cold: false,
        spans: &[span],
        guest: &[0x90; 2],
        code: &[0xcc; 5],
        exits: &[],
        steps: &[],
        sites: &[],
        fixes: &[],
    }
    .encode()
}

fn whole() -> Vec<u8> {
    Contents {
        slots: 10,
        steps: 4,
        regions: vec![
            (0x5000, Cow::Owned(record(0x5000, 2))),
            (0x4000, Cow::Owned(record(0x4000, 8))),
        ],
        copies: vec![(0x4000, Cow::Owned(copy(0x4000)))],
        counts: vec![(0x9000, 70), (0x8000, 100)],
    }
    .encode(&KEY)
}

/// Everything that an engine would read of a file.
fn read_all(bytes: Vec<u8>) -> Result<usize, Refused> {
    let image = Image::parse(bytes, &KEY)?;
    let mut code = 0;
    for entry in image.index() {
        code += image.record(entry)?.code.len();
    }
    for entry in image.copies() {
        code += image.copy(entry)?.code.len();
    }
    Ok(code + image.hits().len())
}

#[test]
fn what_was_written_is_read() {
    let image = Image::parse(whole(), &KEY).expect("whole");
    assert_eq!((image.slots, image.steps), (10, 4));
    let entry = image.find(0x4000).expect("there");
    let r = image.record(entry).expect("whole");
    assert_eq!((r.slot_base, r.step_base, r.insns, r.entry), (8, 3, 4, 2));
    assert!(r.groups && r.view);
    let (sites, expected) = (r.sites.unpack().expect("good"), table(0x4000));
    assert_eq!(
        (sites.starts, sites.sites),
        (expected.starts, expected.sites)
    );
    assert_eq!(r.targets[1].get(), 0x5678);
    assert_eq!(r.steps[0].get(), 0x4001);
    assert_eq!(
        r.spans[1],
        Span {
            rip: U64::new(0x4040),
            bytes: U32::new(2)
        }
    );
    assert_eq!((r.guest, r.code), (&[1, 2, 3, 4, 5][..], &[0x90; 33][..]));
    assert!(image.find(0x4001).is_none());
    assert_eq!(
        (
            image.hits_at(0x8000),
            image.hits_at(0x9000),
            image.hits_at(1)
        ),
        (100, 70, 0)
    );
    assert_eq!(read_all(whole()), Ok(2 * 33 + 5 + 2));
}

#[test]
fn an_empty_file_of_this_kind_is_one() {
    let none = Contents {
        slots: 0,
        steps: 0,
        regions: vec![],
        copies: vec![],
        counts: vec![],
    };
    assert_eq!(read_all(none.encode(&KEY)), Ok(0));
}

#[test]
fn another_key_is_foreign() {
    let other = Key([8; 16]);
    assert_eq!(
        Image::parse(whole(), &other).map(|_| ()),
        Err(Refused::Foreign)
    );
    assert!(peek(&whole(), &other).is_none());
    assert_eq!(peek(&whole(), &KEY).map(|p| p.1), Some(3));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let good = whole();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(read_all(bad).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn every_shorter_or_longer_file_is_noticed() {
    let good = whole();
    for len in 0..good.len() {
        assert!(read_all(good[..len].to_vec()).is_err(), "{len} bytes");
    }
    assert!(read_all([&good[..], &[0]].concat()).is_err());
}

/// As somebody might write it who knows the checksums.
fn forged(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = whole();
    change(&mut bytes);
    let front = HEADER + 3 * size_of::<Entry>() + 2 * size_of::<Count>();
    bytes[24..40].fill(0);
    let check = xxh3_128(&bytes[..front]);
    bytes[24..40].copy_from_slice(&check.to_le_bytes());
    bytes
}

#[test]
fn offsets_and_lengths_are_not_believed() {
    assert!(read_all(forged(|_| ())).is_ok());
    let entry = |field: usize| HEADER + field;
    let cases: [(&str, usize, u64); 7] = [
        ("offset", entry(8), u64::MAX),
        ("offset into the index", entry(8), 0),
        ("length", entry(16), u64::MAX - 200),
        ("length to the end", entry(16), 1 << 40),
        ("order", entry(0), 0x6000),
        ("a copy's offset", entry(2 * size_of::<Entry>() + 8), 0),
        ("length of the file", 40, u64::MAX),
    ];
    for (what, at, value) in cases {
        let bytes = forged(|b| b[at..at + 8].copy_from_slice(&value.to_le_bytes()));
        assert!(read_all(bytes).is_err(), "{what}");
    }
    for (what, at) in [("regions", 56), ("copies", 60), ("counts", 64)] {
        let bytes = forged(|b| b[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes()));
        assert!(read_all(bytes).is_err(), "{what}");
    }
}

#[test]
fn no_table_of_sites_is_believed() {
    let image = Image::parse(whole(), &KEY).expect("whole");
    let good = record(0x4000, 8);
    let lists = Lists::new(&table(0x4000)).expect("of the kind");
    let packed = lists.packed();
    let bytes =
        size_of_val(packed.starts) + size_of_val(packed.sites) + size_of_val(packed.sources);
    let mut refused = 0;
    for at in good.len() - bytes..good.len() {
        for value in [0, 1, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= value;
            match image.parts(0x4000, &bad) {
                None => refused += 1,
                // What is left to be wrong are values.
                Some(r) => assert!(r.sites.unpack().is_some()),
            }
        }
    }
    assert!(refused > bytes, "{refused} of {bytes}");
    // Code with probes has no sites.
    let mut bad = good.clone();
    bad[16..20].fill(0);
    assert!(image.parts(0x4000, &bad).is_none());
}

#[test]
fn parts_of_a_record_lie_in_it_and_its_numbers_below_the_files() {
    let image = Image::parse(whole(), &KEY).expect("whole");
    let good = record(0x4000, 8);
    assert!(image.parts(0x4000, &good).is_some());
    assert!(image.parts(0x4001, &good).is_none(), "another entry");
    assert!(
        image.parts(0x4000, &record(0x4000, 9)).is_none(),
        "slot number"
    );
    for at in (0..size_of::<Head>()).step_by(4) {
        // The count of instructions and the switches are as good as any.
        for value in [u32::MAX, 1 << 20, 0] {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            if let Some(r) = image.parts(0x4000, &bad) {
                assert!(
                    (8..20).contains(&at) || value == 0,
                    "field {at} = {value:#x}"
                );
                assert!((r.entry as usize) < r.code.len());
            }
        }
    }
}
