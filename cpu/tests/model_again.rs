//! Walks that are made again in few steps ([`sevlab_cpu::mmu`]) against full ones: a traced core makes those alone.

mod model;

use model::{CODE, DATA, MOVED, Rig, small};
use sevlab_arch::paging::C_MASK;
use sevlab_arch::paging::pte::{A, D, P, W};
use sevlab_arch::{Gpa, Spa, Va};
use sevlab_cpu::{Access, SevMode};
use sevlab_memctl::model::Model;
use sevlab_memctl::{Domain, PageSize};

/// Pages of three last-level tables.
const PAGES: u64 = 24;

fn page(n: u64) -> u64 {
    DATA + n % 3 * 0x20_0000 + n / 3 * 0x1000
}

fn machine(mode: SevMode, m: &Model, traced: bool) -> Rig {
    let mut rig = Rig::new(mode, m);
    rig.map(CODE, 1);
    for n in 0..PAGES {
        rig.map(page(n), 1);
    }
    rig.start(m);
    if traced {
        drop(rig.traced());
    }
    rig
}

/// Where the nested entry of a level for `gpa` is.
fn nested_entry(rig: &Rig, gpa: u64, level: u32) -> Option<Spa> {
    let mut table = rig.v.ncr3?.0;
    let at = |table: u64, l: u32| Spa(table + (gpa >> (12 + 9 * (l - 1)) & 511) * 8);
    for l in (level + 1..=4).rev() {
        let e = rig.v.mem.read_u64(Domain::Shared, at(table, l)).unwrap();
        table = e & 0x000f_ffff_ffff_f000;
    }
    Some(at(table, level))
}

/// One thing that happens to a machine, chosen by `r`; what comes of it.
fn step(rig: &mut Rig, r: u64) -> String {
    let [n, m] = [8, 16].map(|shift| page((r >> shift & 0xff) % PAGES));
    let private = rig.v.domain(true);
    let change = |rig: &Rig, d: Domain, at: Spa, clear: u64, set: u64| {
        let e = rig.v.mem.read_u64(d, at).unwrap();
        rig.v.mem.write_u64(d, at, e & !clear | set).unwrap();
    };
    match r & 0xff {
        // Entries change, and nobody says so.
        0 => change(rig, private, rig.entry_of(n, 1), D, 0),
        1 => change(rig, private, rig.entry_of(n, 2), A, 0),
        2 => change(rig, private, rig.entry_of(n, 3), A, 0),
        3 => change(rig, private, rig.entry_of(n, 1), W, 0),
        4 => change(rig, private, rig.entry_of(n, 1), 0, W),
        5 => change(rig, private, rig.entry_of(n, 2), W, 0),
        6 | 7 => change(rig, private, rig.entry_of(n, 2), 0, W),
        8 => change(rig, private, rig.entry_of(n, 1), P, 0),
        9 | 10 => change(rig, private, rig.entry_of(n, 1), 0, P),
        11 => {
            let (a, b) = (rig.entry_of(n, 1), rig.entry_of(m, 1));
            let [x, y] = [a, b].map(|at| rig.v.mem.read_u64(private, at).unwrap());
            rig.v.mem.write_u64(private, a, y).unwrap();
            rig.v.mem.write_u64(private, b, x).unwrap();
        }
        12..16 => {
            let e = rig.v.mem.read_u64(private, rig.entry_of(n, 1)).unwrap();
            let level = 1 + (r >> 24) as u32 % 3;
            if let Some(at) = nested_entry(rig, e & 0xf_ffff_f000, level) {
                let bits = if level == 1 { A | D } else { A };
                change(rig, Domain::Shared, at, bits, 0);
            }
        }
        16 | 17 if rig.v.mode == SevMode::Snp => {
            // The page's frame, or that of a table.
            let at = rig.entry_of(n, 1);
            let e = rig.v.mem.read_u64(private, at).unwrap();
            let frame = [(e & 0xf_ffff_f000) + MOVED, at.page().0][(r >> 40) as usize & 1];
            let (asid, spa, gpa) = (rig.v.asid, Spa(frame), frame - MOVED);
            let rmp = rig.v.mem.rmp();
            let valid = r & 1 != 0;
            let done = rmp.pvalidate(asid, Gpa(gpa), spa, PageSize::Size4K, valid);
            return format!("{done:?}");
        }
        18 => rig.v.invlpg(Va(n)),
        19 => rig.v.flush_tlb(),
        20 => rig.v.flush_nested(),
        21 => rig.v.state.cpl ^= 3,
        22 => rig.v.state.sys.cr3 ^= 1 << 3,
        23 if rig.v.mode.encrypted() => {
            change(rig, private, rig.entry_of(n, 1), C_MASK & r, 0);
        }
        _ => {
            let access = [Access::Read, Access::Read, Access::Write, Access::Exec];
            let access = access[(r >> 24) as usize % 4];
            let (va, at) = (n + (r >> 32 & 0xfc0), rig.v.at());
            let done = match access {
                Access::Exec => rig.v.touch_fetch(va, at).err(),
                _ => rig.v.touch_data(va, 8, access, at).err(),
            };
            rig.v.state.retired += 1;
            return format!("{access:?} {va:#x} {done:?}");
        }
    }
    String::new()
}

#[test]
fn walks_made_again_are_walks() {
    for mode in [SevMode::Off, SevMode::Sev, SevMode::Snp] {
        for seed in 1..9u64 {
            let m = small();
            let mut both = [false, true].map(|traced| machine(mode, &m, traced));
            let mut random = seed;
            for k in 0..6000 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let [a, b] = &mut both;
                let (x, y) = (step(a, random), step(b, random));
                assert_eq!(x, y, "{mode:?} {seed} {k}");
                if k % 16 == 0 {
                    assert_eq!(a.core(), b.core(), "{mode:?} {seed} {k}");
                    assert_eq!(a.caches(), b.caches(), "{mode:?} {seed} {k}");
                }
            }
            let [a, b] = &both;
            assert_eq!(a.v.cycles(), b.v.cycles());
            assert_eq!(a.v.mem.stats(), b.v.mem.stats());
            let walks = |r: &Rig| r.v.counters.full_walks + r.v.counters.short_walks;
            assert_eq!(walks(a), walks(b));
        }
    }
}
