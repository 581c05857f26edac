//! The secure processor's mailbox: sequences of commands on buffers, data pages and RMP changes of the fuzzer's choice.
//! Every command is answered with a status there is, and one that is refused leaves the platform's state as it was.
//!
//! Input: a byte (SNP or not), then steps: a byte says which.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sevlab_arch::psp::{Command, SevPolicy, SnpPageType, SnpPolicy, Status};
use sevlab_arch::rmp::RmpUpdate;
use sevlab_arch::{Asid, Gpa, Spa};
use sevlab_fuzz::Input;
use sevlab_memctl::{CacheMode, CipherKind, Domain, MemCtl};
use sevlab_psp::driver::Driver;
use sevlab_psp::{Config, Entropy, Firmware, VmplPerms};

const SIZE: u64 = 8 << 20;
const AREA: Spa = Spa(0x1_0000);
const TMR: Spa = Spa(0x10_0000);
const GCTX: Spa = Spa(0x30_0000);
const GUEST: Spa = Spa(0x40_0000);
const ANCHORS: [u64; 10] = [
    AREA.0,
    AREA.0 + 0x1000,
    AREA.0 + 0x2000,
    TMR.0,
    GCTX.0,
    GUEST.0,
    GUEST.0 + 0x1000,
    SIZE,
    SIZE - 4096,
    u64::MAX,
];
/// Most commands of one input: some of them hash megabytes.
const STEPS: usize = 48;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mode = input.u8();
    let snp = mode & 1 != 0;
    let mem = MemCtl::new(sevlab_memctl::Config {
        size: SIZE,
        cipher: if mode & 2 == 0 {
            CipherKind::Aes128Xex
        } else {
            CipherKind::Aes256Xts
        },
        cache: CacheMode::Page,
        resident: None,
        tweak_seed: 1,
        hierarchy: None,
        cores: 1,
        snp,
    })
    .expect("memory");
    let config = Config {
        chip_seed: [9; 32],
        entropy: Entropy::Seeded([5; 32]),
        ..Config::default()
    };
    let firmware = Arc::new(Firmware::new(Arc::clone(&mem), config));
    let driver = Driver::new(Arc::clone(&firmware), Arc::clone(&mem), AREA);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.u8();
        match step & 7 {
            0..=2 => submit(&mut input, &firmware, &driver, &mem),
            3 => {
                let at = Spa(ANCHORS[usize::from(step >> 3) % ANCHORS.len()]);
                let len = usize::from(input.u8());
                let _ = mem.write(Domain::Shared, at, input.bytes(len));
            }
            4 => {
                let at = Spa(input.word(&ANCHORS));
                let flags = input.u8();
                let update = RmpUpdate {
                    gpa: input.word(&ANCHORS),
                    assigned: flags & 1,
                    page_size: flags >> 1 & 1,
                    immutable: flags >> 2 & 1,
                    reserved: flags >> 7,
                    asid: u32::from(input.u8()),
                };
                if snp {
                    let _ = mem.rmp().rmpupdate(at, &update);
                }
            }
            _ => drive(step >> 3, &mut input, &driver, &mem),
        }
    }
});

/// A raw command.
fn submit(input: &mut Input, firmware: &Firmware, driver: &Driver, mem: &MemCtl) {
    let which = input.u8();
    let command = match Command::ALL.get(usize::from(which)) {
        Some(c) => c.0,
        None => input.word(&[]) as u32,
    };
    let mut buffer = Vec::new();
    for _ in 0..input.u8() % 24 {
        buffer.extend(input.word(&ANCHORS).to_le_bytes());
    }
    let _ = mem.write(Domain::Shared, AREA, &buffer);
    let at = if input.u8() < 240 {
        AREA
    } else {
        Spa(input.word(&ANCHORS))
    };
    let before = driver.platform_status().map(|s| (s.state, s.guest_count));
    let _ = mem.write(Domain::Shared, AREA, &buffer);
    let status = firmware.submit(command, at);
    assert!(status.name().is_some(), "{status:?}");
    if status != Status::SUCCESS {
        let after = driver.platform_status().map(|s| (s.state, s.guest_count));
        // The command buffer may itself have become a page that the hypervisor can't write.
        if let (Ok(before), Ok(after)) = (before, after) {
            assert_eq!(before, after, "a refused command had an effect");
        }
    }
}

/// A step of a launch as the driver takes it, so that commands meet guests in every state.
fn drive(step: u8, input: &mut Input, driver: &Driver, mem: &MemCtl) {
    let handle = 1 + u32::from(input.u8() & 3);
    let page = GUEST.plus(u64::from(input.u8() & 15) * 4096);
    let assign = |at: Spa, gpa: Gpa, asid: u32, immutable: u8| {
        let update = RmpUpdate {
            gpa: gpa.0,
            assigned: 1,
            page_size: 0,
            immutable,
            reserved: 0,
            asid,
        };
        let _ = mem.rmp().rmpupdate(at, &update);
    };
    let snp = mem.config().snp;
    match step {
        0 => drop(driver.init(Some((TMR, 1 << 20)))),
        1 => drop(driver.launch_start(SevPolicy::from_bits_retain(u32::from(input.u8())), None)),
        2 => drop(driver.activate(handle, Asid(u32::from(input.u8())))),
        3 => drop(driver.launch_update_data(handle, page, 16 * (1 + u32::from(input.u8())))),
        4 => drop(driver.launch_update_vmsa(handle, page)),
        5 => drop(driver.launch_measure(handle)),
        6 => drop(driver.launch_finish(handle)),
        7 => drop(driver.deactivate(handle)),
        8 => drop(driver.decommission(handle)),
        9 => drop(driver.df_flush()),
        10 => drop(driver.guest_status(handle)),
        11 => drop(driver.shutdown()),
        12 => drop(driver.snp_init()),
        13 if snp => {
            assign(GCTX, Gpa(0), 0, 1);
            let _ = driver.snp_gctx_create(GCTX);
        }
        14 => drop(driver.snp_launch_start(
            GCTX,
            SnpPolicy::from_bits_retain(0x3_0000 | u64::from(input.u8()) << 16),
        )),
        15 => drop(driver.snp_activate(GCTX, Asid(u32::from(input.u8())))),
        16 if snp => {
            let kind = SnpPageType(input.u8() & 7);
            assign(page, Gpa(page.0 - GUEST.0), u32::from(input.u8()), 1);
            let _ = driver.snp_launch_update(GCTX, page, kind, false, VmplPerms::default());
        }
        17 => drop(driver.snp_launch_finish(GCTX, [1; 32], None)),
        18 => drop(driver.snp_guest_status(GCTX)),
        19 => drop(driver.snp_decommission(GCTX)),
        20 => drop(driver.snp_page_reclaim(page)),
        21 => drop(driver.snp_df_flush()),
        22 => drop(driver.snp_shutdown()),
        23 => drop(driver.snp_platform_status()),
        _ => {}
    }
}
