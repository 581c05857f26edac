//! The code cache: what one engine has translated and written, another takes in, or refuses, and nothing that a guest does depends
//! on it.

#[path = "diff/compare.rs"]
mod compare;
#[path = "diff/forms.rs"]
mod forms;
#[path = "diff/machine.rs"]
mod machine;
#[path = "diff/program.rs"]
mod program;

use compare::{Sticky, same};
use forms::Forms;
use iced_x86::code_asm::*;
use machine::{CODE, DATA, DATA_PAGES, Kind, Machine, Outcome, PAGE, READ_ONLY, Start, UNMAPPED};
use program::{Generator, assemble, calling};
use sevlab_jit::{CodeCache, JitOptions, JitStats};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// The program that engines are told of; what tells programs apart is in the key's own tests.
const PROGRAM: &str = "/nowhere/guest";

/// A process has room for a few views: what is to find the files of machines with one waits for its turn.
static TURN: Mutex<()> = Mutex::new(());

struct Folder(TempDir, #[allow(dead_code)] MutexGuard<'static, ()>);

impl Folder {
    fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Self(
            tempfile::tempdir().expect("a folder for temporary files"),
            turn,
        )
    }

    fn cache(&self) -> PathBuf {
        self.0.path().join("code")
    }

    fn options(&self) -> JitOptions {
        JitOptions {
            threshold: 2,
            background: false,
            code_bytes: 4 << 20,
            cache: Some(Arc::new(CodeCache::new(self.cache(), 1 << 30))),
            ..JitOptions::default()
        }
    }

    /// The files in the cache.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache()).into_iter().flatten();
        let mut files: Vec<_> = entries.map(|e| e.expect("readable").path()).collect();
        files.sort();
        files
    }

    /// The one file.
    fn file(&self) -> PathBuf {
        let files = self.files();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

/// Runs a program a few times on a new machine and saves what was translated. The last outcome, and what the engine did.
fn run(options: JitOptions, start: &Start) -> (Outcome, JitStats) {
    run_as(options, start, PROGRAM)
}

fn run_as(options: JitOptions, start: &Start, program: &str) -> (Outcome, JitStats) {
    run_times(options, start, program, 5, false)
}

/// The same, so often; `forks`: what saves is a clone's engine.
fn run_times(
    options: JitOptions,
    start: &Start,
    program: &str,
    times: usize,
    forks: bool,
) -> (Outcome, JitStats) {
    let mut m = Machine::new(Kind::Plain, Some(options));
    let engine = m.engine.as_mut().expect("made with one");
    engine.program(&m.vcpu, Path::new(program));
    let mut out = None;
    for _ in 0..times {
        m.reset(start);
        out = Some(m.run().expect("engines have no budget"));
    }
    let engine = m.engine.as_mut().expect("made with one");
    let stats = engine.stats();
    if forks {
        engine.forked().expect("room for its code");
    }
    engine.save(&m.vcpu);
    (out.expect("run"), stats)
}

#[test]
fn the_second_run_compiles_nothing() {
    let folder = Folder::new();
    let start = Start::new(0, &calling(3));
    let (cold, first) = run(folder.options(), &start);
    assert!(first.regions > 0 && first.loaded == 0);
    let (warm, second) = run(folder.options(), &start);
    // What has become part of a loop around it is not entered any more.
    assert_eq!(second.regions, 0);
    assert!((1..=first.regions).contains(&second.loaded), "{second:?}");
    assert!(second.interpreted < first.interpreted);
    assert!(warm == cold && cold.gpr[0] == 300);
    // Another program has a file of its own.
    let (_, other) = run_as(folder.options(), &start, "/nowhere/other");
    assert_eq!((other.regions, other.loaded), (first.regions, 0));
    assert_eq!(folder.files().len(), 2);
}

/// Blocks are copied at once, and nothing is compiled.
fn copying(folder: &Folder) -> JitOptions {
    JitOptions {
        threshold: u32::MAX,
        direct: 1,
        ..folder.options()
    }
}

#[test]
fn the_second_run_copies_nothing() {
    let folder = Folder::new();
    let start = Start::new(0, &calling(3));
    let (cold, first) = run(copying(&folder), &start);
    assert!(first.direct > 1 && first.loaded_copies == 0, "{first:?}");
    for _ in 0..2 {
        let (warm, second) = run(copying(&folder), &start);
        assert_eq!((second.direct, second.loaded_copies), (0, first.direct));
        assert!(second.interpreted < first.interpreted, "{second:?}");
        assert!(warm == cold && cold.gpr[0] == 300);
    }
    // The loop is as it was, the function is not.
    let start = Start::new(0, &calling(5));
    let (out, third) = run(copying(&folder), &start);
    assert_eq!(out.gpr[0], 500);
    assert!(third.direct > 0 && third.loaded_copies > 0, "{third:?}");
    // What is there now has taken its place in the file.
    let (out, fourth) = run(copying(&folder), &start);
    assert_eq!(out.gpr[0], 500);
    assert_eq!(fourth.direct, 0);
    // Without a view there are none.
    let mut m = Machine::with_view(Kind::Plain, Some(copying(&folder)), false);
    let engine = m.engine.as_mut().expect("made with one");
    engine.program(&m.vcpu, Path::new(PROGRAM));
    m.reset(&start);
    assert_eq!(m.run().expect("no budget").gpr[0], 500);
    let stats = m.engine.as_ref().expect("made with one").stats();
    assert_eq!((stats.direct, stats.loaded_copies), (0, 0));
}

#[test]
fn what_runs_once_is_copied_for_the_third_run() {
    let folder = Folder::new();
    let start = Start::new(0, &calling(3));
    let options = |cold| JitOptions {
        threshold: u32::MAX,
        direct: 8,
        cold,
        ..folder.options()
    };
    let run = |times| run_times(options(true), &start, PROGRAM, times, false);
    let (expected, first) = run(1);
    assert!(first.direct > 0 && first.interpreted > 16, "{first:?}");
    let hot = fs::metadata(folder.file()).expect("written").len();
    // A clone leaves what is cold to others.
    let (_, clone) = run_times(options(true), &start, PROGRAM, 1, true);
    assert_eq!(clone.loaded_copies, first.direct);
    assert_eq!(fs::metadata(folder.file()).expect("there").len(), hot);
    for _ in 0..3 {
        let (_, second) = run_times(options(false), &start, PROGRAM, 1, false);
        assert_eq!(second.cold_copies, 0);
    }
    assert_eq!(folder.files().len(), 2, "a file for each set of options");
    let (_, second) = run(1);
    assert_eq!(
        (second.loaded_copies, second.cold_copies),
        (first.direct, 0)
    );
    let (out, third) = run(1);
    assert!(out == expected);
    assert!(third.cold_copies > 0 && third.direct == 0, "{third:?}");
    assert!(third.interpreted < second.interpreted, "{third:?}");
    // What begins in the middle of a block, behind a page that was not open yet, is known now, too.
    run(1);
    let written = || {
        let meta = folder
            .files()
            .into_iter()
            .map(|f| fs::metadata(f).expect("there"));
        meta.map(|m| (m.len(), m.modified().expect("known")))
            .collect::<Vec<_>>()
    };
    let before = written();
    assert!(run(1).0 == expected);
    assert!(before == written());
    // What is not cold any more is decoded, and copied as what is hot.
    let (out, fourth) = run(40);
    assert!(out == expected);
    assert!(fourth.direct > 0 && fourth.cold_copies > 0, "{fourth:?}");
    let (out, fifth) = run(40);
    assert!(out == expected);
    assert!(fifth.direct < fourth.direct, "{fifth:?}");
    // Another program there is not run by the copies of this one.
    let start = Start::new(0, &calling(5));
    let (out, _) = run_times(options(true), &start, PROGRAM, 1, false);
    assert_eq!(out.gpr[0], 500);
}

/// Damage anywhere costs copies and nothing else.
#[test]
fn damaged_copies_are_refused_and_made_anew() {
    let folder = Folder::new();
    let start = Start::new(0, &calling(3));
    let (cold, first) = run(copying(&folder), &start);
    let good = fs::read(folder.file()).expect("readable");
    for n in 1..60 {
        let mut flipped = good.clone();
        flipped[good.len() * n / 60] ^= 1 << (n % 8);
        fs::write(folder.file(), flipped).expect("writable");
        let (out, stats) = run(copying(&folder), &start);
        assert!(out == cold, "damage {n}");
        assert_eq!(stats.direct + stats.loaded_copies, first.direct, "{n}");
        let (out, stats) = run(copying(&folder), &start);
        assert!(out == cold, "after damage {n}");
        assert_eq!(stats.loaded_copies, first.direct, "after damage {n}");
    }
}

/// A copy that was left at faults too often is given up, and not taken from the file again in that run.
#[test]
fn a_stored_copy_faults_as_a_new_one_does() {
    let folder = Folder::new();
    let start = walk(DATA, (DATA_PAGES + 2) as u32 * (PAGE / 64) as u32, false);
    let mut plain = Machine::new(Kind::Plain, None);
    plain.reset(&start);
    let expected = plain.run().expect("ends");
    for round in 0..3 {
        let mut m = Machine::new(Kind::Plain, Some(copying(&folder)));
        let engine = m.engine.as_mut().expect("made with one");
        engine.program(&m.vcpu, Path::new(PROGRAM));
        for n in 0..60 {
            // Each page is to come into the view anew.
            m.forget_mappings();
            m.reset(&start);
            let out = m.run().expect("no budget");
            assert!(out == expected, "round {round}, run {n}");
        }
        let engine = m.engine.as_mut().expect("made with one");
        engine.save(&m.vcpu);
        let stats = engine.stats();
        let bytes = fs::metadata(folder.file()).expect("just written").len();
        assert_eq!(
            stats.loaded_copies == 0,
            round == 0,
            "round {round}, a file of {bytes} bytes: {stats:?}"
        );
    }
}

#[test]
fn other_options_do_not_find_the_file() {
    let folder = Folder::new();
    let start = Start::new(0, &calling(3));
    run(folder.options(), &start);
    for options in [
        JitOptions {
            groups: false,
            ..folder.options()
        },
        JitOptions {
            chaining: false,
            ..folder.options()
        },
    ] {
        let (out, stats) = run(options, &start);
        assert!(stats.loaded == 0 && stats.regions > 0);
        assert_eq!(out.gpr[0], 300);
    }
    // These are about regions as they are made.
    let counted = JitOptions {
        count_host: true,
        ..folder.options()
    };
    assert_eq!(run(counted, &start).1.loaded, 0);
    // And with these, turns depend on what is translated.
    let turns = JitOptions {
        budget: true,
        ..folder.options()
    };
    let mut m = Machine::new(Kind::Plain, Some(turns));
    let engine = m.engine.as_mut().expect("made with one");
    engine.program(&m.vcpu, Path::new(PROGRAM));
    let files = folder.files();
    m.vcpu.state.budget = i64::MAX;
    for _ in 0..5 {
        m.reset(&start);
        m.run();
    }
    let engine = m.engine.as_mut().expect("made with one");
    engine.save(&m.vcpu);
    assert_eq!(engine.stats().loaded, 0);
    assert_eq!(folder.files(), files);
}

#[test]
fn changed_guest_bytes_are_translated_anew() {
    let folder = Folder::new();
    run(folder.options(), &Start::new(0, &calling(3)));
    for value in [5, 7] {
        // The loop is as it was, the function is not.
        let start = Start::new(0, &calling(value));
        let (out, stats) = run(folder.options(), &start);
        assert_eq!(out.gpr[0], 100 * u64::from(value));
        assert!(stats.loaded > 0 && stats.regions > 0, "{stats:?}");
        // What is there now has taken its place in the file.
        let (out, stats) = run(folder.options(), &start);
        assert_eq!(out.gpr[0], 100 * u64::from(value));
        assert_eq!(stats.regions, 0);
    }
}

#[test]
fn code_that_changes_while_it_runs_is_dropped() {
    let folder = Folder::new();
    let start = Start::new(0, &calling(3));
    run(folder.options(), &start);
    let mut m = Machine::new(Kind::Plain, Some(folder.options()));
    let engine = m.engine.as_mut().expect("made with one");
    engine.program(&m.vcpu, Path::new(PROGRAM));
    m.reset(&start);
    assert_eq!(m.run().expect("no budget").gpr[0], 300);
    let stats = |m: &Machine| m.engine.as_ref().expect("made with one").stats();
    assert!(stats(&m).loaded > 0);
    for value in [5u32, 3, 11] {
        m.poke(CODE + PAGE + 1, &value.to_le_bytes());
        let start = Start::new(0, &calling(value));
        for _ in 0..4 {
            m.reset(&start);
            assert_eq!(m.run().expect("no budget").gpr[0], 100 * u64::from(value));
        }
    }
    assert!(stats(&m).dropped >= 3, "{:?}", stats(&m));
}

#[test]
fn a_loop_that_patches_itself_is_right_when_warm() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax)?;
        a.mov(r15d, 40)?;
        a.set_label(&mut top)?;
        a.mov(byte_ptr(CODE + 0x11), r15b)?;
        a.add(eax, 0x0102_0304)?;
        a.dec(r15d)?;
        a.jne(top)?;
        a.cpuid()
    });
    let folder = Folder::new();
    let start = Start::new(0, &code);
    let (expected, _) = run(
        JitOptions {
            cache: None,
            ..folder.options()
        },
        &start,
    );
    for _ in 0..3 {
        let (out, _) = run(folder.options(), &start);
        assert!(out == expected);
    }
}

#[test]
fn damaged_files_are_refused_and_made_anew() {
    let folder = Folder::new();
    let start = Start::new(0, &calling(3));
    let (cold, _) = run(folder.options(), &start);
    let (_, first) = run(folder.options(), &start);
    assert!(first.loaded > 0 && first.regions == 0);
    let good = fs::read(folder.file()).expect("readable");
    let mut bad: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"not a cache file".to_vec(),
        vec![0xff; good.len()],
        [&good[..], &good[..]].concat(),
    ];
    for n in 1..40 {
        bad.push(good[..good.len() * n / 40].to_vec());
        let mut flipped = good.clone();
        flipped[good.len() * n / 40] ^= 1 << (n % 8);
        bad.push(flipped);
    }
    for (n, bytes) in bad.into_iter().enumerate() {
        fs::write(folder.file(), bytes).expect("writable");
        let (out, stats) = run(folder.options(), &start);
        assert!(out == cold, "damage {n}");
        // Damage in a region that is not asked for is not noticed.
        assert!(stats.loaded <= first.loaded, "damage {n}");
        let (out, stats) = run(folder.options(), &start);
        assert!(out == cold, "after damage {n}");
        assert!(stats.regions == 0 && stats.loaded > 0, "after damage {n}");
    }
}

#[test]
fn files_that_others_may_write_are_refused() {
    let folder = Folder::new();
    let start = Start::new(0, &calling(3));
    run(folder.options(), &start);
    let cases = [
        (folder.file(), 0o666, false),
        (folder.file(), 0o620, false),
        (folder.file(), 0o644, true),
        (folder.cache(), 0o777, false),
        (folder.cache(), 0o755, true),
    ];
    for (path, mode, good) in cases {
        let before = fs::metadata(&path).expect("there").permissions();
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
        let mut m = Machine::new(Kind::Plain, Some(folder.options()));
        let engine = m.engine.as_mut().expect("made with one");
        engine.program(&m.vcpu, Path::new(PROGRAM));
        for _ in 0..5 {
            m.reset(&start);
            assert_eq!(m.run().expect("no budget").gpr[0], 300);
        }
        let loaded = m.engine.as_ref().expect("made with one").stats().loaded;
        assert_eq!(loaded > 0, good, "{path:?} {mode:o}");
        fs::set_permissions(&path, before).expect("ours");
    }
    // Nor is a link followed, wherever it leads.
    let (there, away) = (folder.file(), folder.0.path().join("away"));
    fs::rename(&there, &away).expect("renamed");
    std::os::unix::fs::symlink(&away, &there).expect("linked");
    let (_, stats) = run(folder.options(), &start);
    assert_eq!(stats.loaded, 0);
    assert!(fs::symlink_metadata(&there).expect("there").is_file());
}

#[test]
fn several_write_and_read_at_once() {
    let folder = Folder::new();
    std::thread::scope(|scope| {
        for n in 0..4u32 {
            let folder = &folder;
            scope.spawn(move || {
                for round in 0..12 {
                    // Two values, so that they replace each other's regions.
                    let value = 3 + (n + round) % 2;
                    let start = Start::new(0, &calling(value));
                    let (out, _) = run(folder.options(), &start);
                    assert_eq!(out.gpr[0], 100 * u64::from(value));
                }
            });
        }
    });
    // No temporary file is left, and what is there is whole.
    folder.file();
    let (_, stats) = run(folder.options(), &Start::new(0, &calling(3)));
    assert!(stats.loaded > 0);
}

#[test]
fn the_oldest_files_go() {
    let folder = Folder::new();
    let start = Start::new(0, &calling(3));
    run_as(folder.options(), &start, "/nowhere/0");
    let one = fs::metadata(folder.file()).expect("there").len();
    let options = |limit| JitOptions {
        cache: Some(Arc::new(CodeCache::new(folder.cache(), limit))),
        ..folder.options()
    };
    for n in 1..8 {
        // Times of change are told apart by the host's clock, which ticks every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        run_as(options(3 * one + one / 2), &start, &format!("/nowhere/{n}"));
        let names: Vec<_> = folder.files();
        assert!(names.len() <= 3, "{names:?}");
        let newest = format!("{n}-");
        let is_newest = |p: &PathBuf| {
            p.file_name()
                .is_some_and(|f| f.to_string_lossy().starts_with(&newest))
        };
        assert!(names.iter().any(is_newest), "{names:?}");
    }
    // One file alone is too large.
    run_as(options(one / 2), &start, "/nowhere/9");
    assert!(folder.files().is_empty());
}

#[test]
fn a_folder_that_cannot_be_made_costs_nothing_else() {
    let folder = Folder::new();
    let options = JitOptions {
        cache: Some(Arc::new(CodeCache::new("/proc/no/such".into(), 1 << 30))),
        ..folder.options()
    };
    assert_eq!(run(options, &Start::new(0, &calling(3))).0.gpr[0], 300);
}

#[test]
fn warm_blocks_of_a_former_run_are_translated_early() {
    let folder = Folder::new();
    let start = Start::new(0, &calling(3));
    // Far from hot.
    let options = || JitOptions {
        threshold: 100_000,
        direct: 0,
        ..folder.options()
    };
    let (cold, first) = run(options(), &start);
    assert_eq!(first.regions, 0);
    let (mut interpreted, mut regions) = (first.interpreted, 0);
    for _ in 0..40 {
        let (out, stats) = run(options(), &start);
        assert!(out == cold);
        regions += stats.regions;
        interpreted = stats.interpreted;
    }
    assert!(regions > 0);
    assert!(
        interpreted < first.interpreted / 4,
        "{interpreted} of {}",
        first.interpreted
    );
}

/// A loop that goes over memory in steps of 64 bytes, with registers and flags that have changed since it was entered.
fn walk(from: u64, times: u32, writes: bool) -> Start {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax)?;
        a.mov(rsi, from)?;
        a.set_label(&mut top)?;
        a.lea(r9, ptr(rsi + rcx))?;
        a.add(r10, 3)?;
        a.mov(r11d, r10d)?;
        a.sub(rax, rcx)?;
        if writes {
            a.mov(qword_ptr(rsi), rax)?;
        } else {
            a.mov(rdx, qword_ptr(rsi))?;
            a.adc(rdx, qword_ptr(rsi + 8))?;
        }
        a.lea(rsi, ptr(rsi + 64))?;
        a.inc(r8)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.cpuid()
    });
    let mut start = Start::new(3, &code);
    start.gpr[1] = times.into();
    start
}

#[test]
fn a_stored_region_faults_as_a_new_one_does() {
    let (first, second, third) = (DATA, DATA + PAGE, READ_ONLY);
    let pages = |n: u64| (n * PAGE / 64) as u32;
    let cases = [
        ("nothing faults", walk(first, pages(DATA_PAGES), true), None),
        (
            "not present, read",
            walk(first, pages(DATA_PAGES + 2), false),
            Some(UNMAPPED),
        ),
        (
            "read-only",
            walk(second, pages(DATA_PAGES), true),
            Some(READ_ONLY),
        ),
        (
            "not present, at once",
            walk(UNMAPPED, 10, false),
            Some(UNMAPPED),
        ),
        (
            "not present, from a page that can be read",
            walk(third, pages(2), false),
            Some(UNMAPPED),
        ),
    ];
    for (what, start, stops) in cases {
        let mut plain = Machine::new(Kind::Plain, None);
        plain.reset(&start);
        let expected = plain.run().expect("ends");
        assert_eq!(
            expected.gpr[6] & !0xfff,
            stops.unwrap_or(READ_ONLY),
            "{what}"
        );
        let folder = Folder::new();
        let mut interpreted = Vec::new();
        for round in 0..3 {
            let mut m = Machine::new(Kind::Plain, Some(folder.options()));
            let engine = m.engine.as_mut().expect("made with one");
            engine.program(&m.vcpu, Path::new(PROGRAM));
            for n in 0..6 {
                // Each page is to come into the view anew.
                m.forget_mappings();
                m.reset(&start);
                let out = m.run().expect("no budget");
                assert!(out == expected, "{what}, round {round}, run {n}");
            }
            let engine = m.engine.as_mut().expect("made with one");
            engine.save(&m.vcpu);
            let stats = engine.stats();
            interpreted.push(stats.interpreted);
            assert_eq!(stats.regions == 0, round != 0, "{what}: {stats:?}");
            assert_eq!(stats.loaded == 0, round == 0, "{what}: {stats:?}");
        }
        // The program's end, and an instruction that faults, are left to the interpreter.
        assert!(interpreted[1] < 60, "{what}: {interpreted:?}");
    }
}

#[test]
fn pages_may_go_and_come_while_a_stored_region_runs() {
    let folder = Folder::new();
    let start = walk(DATA, (DATA_PAGES * PAGE / 64) as u32, true);
    let (expected, _) = run(folder.options(), &start);
    let mut m = Machine::new(Kind::Plain, Some(folder.options()));
    let engine = m.engine.as_mut().expect("made with one");
    engine.program(&m.vcpu, Path::new(PROGRAM));
    let mut plain = Machine::new(Kind::Plain, None);
    for (page, bits) in [(2, 5), (3, 0), (0, 0), (1, 5)] {
        let at = DATA + page * PAGE;
        for m in [&mut m, &mut plain] {
            m.reset(&start);
            m.remap(at, at, bits);
        }
        let out = m.run().expect("no budget");
        assert!(out == plain.run().expect("ends"), "page {page}");
        assert_eq!(out.gpr[6] & !0xfff, at);
        for m in [&mut m, &mut plain] {
            m.remap(at, at, 7);
            m.reset(&start);
        }
        assert!(m.run().expect("no budget") == expected);
    }
    let stats = m.engine.as_ref().expect("made with one").stats();
    assert!(stats.loaded > 0 && stats.regions == 0, "{stats:?}");
}

#[test]
fn code_without_probes_is_for_who_has_a_view() {
    let folder = Folder::new();
    let start = walk(DATA, 100, true);
    let (expected, first) = run(folder.options(), &start);
    let on = |view: bool| {
        let mut m = Machine::with_view(Kind::Plain, Some(folder.options()), view);
        let engine = m.engine.as_mut().expect("made with one");
        engine.program(&m.vcpu, Path::new(PROGRAM));
        for _ in 0..5 {
            m.reset(&start);
            assert!(m.run().expect("no budget") == expected);
        }
        let engine = m.engine.as_mut().expect("made with one");
        engine.save(&m.vcpu);
        engine.stats()
    };
    let without = on(false);
    assert_eq!((without.loaded, without.regions), (0, first.regions));
    assert_ne!(without.host_bytes, first.host_bytes);
    // Each has a file.
    assert_eq!(folder.files().len(), 2);
    for view in [true, false] {
        let stats = on(view);
        assert!(stats.loaded > 0 && stats.regions == 0, "{view}: {stats:?}");
    }
}

#[test]
fn a_stored_region_that_misses_the_view_too_often_is_not_taken_again() {
    // Farther away than the view is large.
    const FAR: u64 = 1 << 46;
    let folder = Folder::new();
    let go = |times: u32| {
        let start = walk(FAR, times, false);
        let mut m = Machine::new(Kind::Plain, Some(folder.options()));
        m.remap(FAR, DATA, 7);
        let engine = m.engine.as_mut().expect("made with one");
        engine.program(&m.vcpu, Path::new(PROGRAM));
        let mut plain = Machine::new(Kind::Plain, None);
        plain.remap(FAR, DATA, 7);
        plain.reset(&start);
        let expected = plain.run().expect("ends");
        for _ in 0..8 {
            m.reset(&start);
            assert!(m.run().expect("no budget") == expected);
        }
        let engine = m.engine.as_mut().expect("made with one");
        engine.save(&m.vcpu);
        engine.stats()
    };
    let first = go(3);
    assert!(first.regions > 0);
    let second = go(50);
    assert!(second.loaded > 0 && second.regions > 0, "{second:?}");
    assert!(second.loaded <= first.regions, "{second:?}");
    let third = go(50);
    assert!(third.loaded > 0 && third.regions == 0, "{third:?}");
    assert!(third.interpreted < second.interpreted, "{third:?}");
}

#[test]
fn another_program_in_the_same_process_changes_the_file() {
    let folder = Folder::new();
    let (one, two) = (Start::new(0, &calling(3)), Start::new(0, &calling(4)));
    for round in 0..2 {
        let mut m = Machine::new(Kind::Plain, Some(folder.options()));
        for (start, program) in [(&one, "/nowhere/one"), (&two, "/nowhere/two")] {
            let engine = m.engine.as_mut().expect("made with one");
            engine.program(&m.vcpu, Path::new(program));
            m.vcpu.drop_all_code();
            for _ in 0..5 {
                m.reset(start);
                let value = if program.ends_with("one") { 3 } else { 4 };
                assert_eq!(m.run().expect("no budget").gpr[0], 100 * value);
            }
        }
        let engine = m.engine.as_mut().expect("made with one");
        engine.save(&m.vcpu);
        let stats = engine.stats();
        if round == 0 {
            assert!(stats.regions > 1 && stats.loaded == 0);
        } else {
            assert!(stats.regions == 0 && stats.loaded > 1, "{stats:?}");
        }
        assert_eq!(stats.flushes, 0);
    }
    assert_eq!(folder.files().len(), 2);
}

#[test]
fn random_programs_do_the_same_warm() {
    let forms = Forms::new();
    let (mut loaded, mut copies, mut cold) = (0, 0, 0);
    for seed in 0..90 {
        let program = Generator::new(&forms, seed).program();
        let start = Start::new(seed, &program.assemble());
        let mut plain = Machine::new(Kind::Plain, None);
        plain.reset(&start);
        let Some(expected) = plain.run() else {
            continue;
        };
        let folder = Folder::new();
        for _ in 0..4 {
            let options = JitOptions {
                shared_frame: seed % 3 != 0,
                chaining: seed % 5 != 0,
                view: seed % 7 != 0,
                // A third of them run as copies.
                threshold: if seed % 3 == 1 { u32::MAX } else { 2 },
                direct: match seed % 9 {
                    1 => 1,
                    4 | 7 => 15,
                    _ => 16,
                },
                ..folder.options()
            };
            let sticky = Sticky::of(&options);
            let mut m = Machine::new(Kind::Plain, Some(options));
            let engine = m.engine.as_mut().expect("made with one");
            engine.program(&m.vcpu, Path::new(PROGRAM));
            for _ in 0..4 {
                m.reset(&start);
                let out = m.run().expect("engines have no budget");
                assert!(same(&expected, &out, sticky), "seed {seed}");
            }
            let engine = m.engine.as_mut().expect("made with one");
            engine.save(&m.vcpu);
            loaded += engine.stats().loaded;
            copies += engine.stats().loaded_copies;
            cold += engine.stats().cold_copies;
        }
    }
    assert!(loaded > 100, "{loaded}");
    assert!(copies > 100, "{copies}");
    assert!(cold > 40, "{cold}");
}
