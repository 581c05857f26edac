//! A small machine for firmware tests: memory, a firmware, a driver.
#![allow(dead_code, unused_imports)] // each test file uses a part

use std::sync::Arc;

pub use sevlab_arch::psp::*;
pub use sevlab_arch::rmp::{RmpEntry, RmpStatus, RmpUpdate};
pub use sevlab_arch::{Asid, PAGE_SIZE, Spa};
pub use sevlab_memctl::{CacheMode, CipherKind, Domain, MemCtl};
pub use sevlab_psp::driver::{Driver, DriverError};
pub use sevlab_psp::{Config, Entropy, Firmware, VmplPerms};

pub const AREA: Spa = Spa(0x1_0000);
pub const TMR: Spa = Spa(0x10_0000);
pub const GUEST: Spa = Spa(0x40_0000);
pub const GCTX: Spa = Spa(0x30_0000);
pub const ES_ASID: Asid = Asid(1);
pub const SEV_ASID: Asid = Asid(100);

pub struct Rig {
    pub mem: Arc<MemCtl>,
    pub fw: Arc<Firmware>,
    pub driver: Driver,
}

pub fn rig(snp: bool, cipher: CipherKind) -> Rig {
    rig_with(snp, cipher, |_| {})
}

pub fn rig_with(snp: bool, cipher: CipherKind, change: impl FnOnce(&mut Config)) -> Rig {
    let mem = MemCtl::new(sevlab_memctl::Config {
        size: 16 << 20,
        cipher,
        cache: CacheMode::Page,
        resident: None,
        tweak_seed: 1,
        hierarchy: None,
        cores: 1,
        snp,
    })
    .expect("memory");
    let mut config = Config {
        chip_seed: [9; 32],
        entropy: Entropy::Seeded([5; 32]),
        ..Config::default()
    };
    change(&mut config);
    let fw = Arc::new(Firmware::new(Arc::clone(&mem), config));
    let driver = Driver::new(Arc::clone(&fw), Arc::clone(&mem), AREA);
    Rig { mem, fw, driver }
}

impl Rig {
    pub fn write(&self, at: Spa, data: &[u8]) {
        self.mem.write(Domain::Shared, at, data).expect("write");
    }

    pub fn raw(&self, at: Spa, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.mem.bus_read(at, &mut out);
        out
    }

    pub fn private(&self, asid: Asid, at: Spa, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.mem
            .decrypt_for_firmware(asid, at, &mut out)
            .expect("a key");
        out
    }

    pub fn assign(&self, at: Spa, gpa: u64, asid: u32, immutable: bool, large: bool) {
        let update = RmpUpdate {
            gpa,
            assigned: 1,
            page_size: u8::from(large),
            immutable: u8::from(immutable),
            reserved: 0,
            asid,
        };
        assert_eq!(self.mem.rmp().rmpupdate(at, &update), RmpStatus::SUCCESS);
    }

    pub fn entry(&self, at: Spa) -> RmpEntry {
        self.mem.rmp().lookup(at).expect("an entry")
    }
}

/// The firmware's answer of a driver call.
pub fn status<T>(r: Result<T, DriverError>) -> Status {
    match r {
        Ok(_) => Status::SUCCESS,
        Err(e) => e.status().expect("a firmware answer"),
    }
}

pub fn pattern(seed: u8) -> Vec<u8> {
    (0..4096u32)
        .map(|i| (i as u8).wrapping_mul(7) ^ seed)
        .collect()
}
