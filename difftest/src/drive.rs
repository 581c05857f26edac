//! Many cases on worker processes.
//!
//! A worker is a fork of the parent, which has made nothing but the tables by then. It runs a bounded number of cases
//! and goes: what the engines keep for good (thunks, above all) goes with it. A worker that dies tells by its slot in
//! the shared memory what it was running.
#![allow(unsafe_code)] // forks, waits

use crate::case::Case;
use crate::check::Analysis;
use crate::coverage::Picker;
use crate::forms::Forms;
use crate::generate::Generator;
use crate::native::confine;
use crate::random::Rng;
use crate::rig::{Engines, Failure, Rig, Verdict};
use crate::shared::Shared;
use crate::{report, shrink, text};
use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Until when.
    pub seconds: Option<u64>,
    /// How many cases.
    pub cases: Option<u64>,
    /// Where random numbers begin.
    pub seed: u64,
    /// Workers.
    pub threads: usize,
    /// Rows whose name passes.
    pub row: Option<String>,
    /// Rows whose name contains this, in any case.
    pub filter: Option<String>,
    /// Engines.
    pub engines: Engines,
    /// One case in so many is translated; 0: none.
    pub share: u64,
    /// Where failures are written.
    pub regress: PathBuf,
    /// Stop after so many different failures.
    pub failures: u64,
}

impl Plan {
    fn passes(&self, name: &str) -> bool {
        if let Some(row) = &self.row
            && !name.eq_ignore_ascii_case(row)
        {
            return false;
        }
        self.filter
            .as_ref()
            .is_none_or(|f| name.to_lowercase().contains(&f.to_lowercase()))
    }
}

/// What Ctrl-C raises.
static STOP: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn on_interrupt(_: i32) {
    let shared = STOP.load(Ordering::Acquire);
    if !shared.is_null() {
        // SAFETY: set once to memory that is never unmapped.
        unsafe { (*shared).stop.store(true, Ordering::Release) };
    }
}

/// Cases that one worker process runs before another takes its place.
const TERM: u64 = 200_000;

/// Runs the plan; the counters say what came of it.
///
/// # Errors
/// No row passes, or the host gives no process or memory.
pub fn run(plan: &Plan, forms: &Forms, shared: &'static Shared) -> Result<(), Box<dyn Error>> {
    let picker = Picker::new(forms, shared, &|name| plan.passes(name));
    if picker.is_empty() {
        return Err("no row of the table that can be run has such a name".into());
    }
    STOP.store(std::ptr::from_ref(shared).cast_mut(), Ordering::Release);
    // SAFETY: the handler stores to an atomic.
    unsafe { libc::signal(libc::SIGINT, on_interrupt as *const () as usize) };
    let started = Instant::now();
    let deadline = plan.seconds.map(|s| started + Duration::from_secs(s));
    let mut workers: Vec<Option<i32>> = vec![None; plan.threads];
    let mut generation = 0u64;
    let mut shown = Instant::now();
    let terminal = io::stderr().is_terminal();
    loop {
        let over = shared.stop.load(Ordering::Acquire)
            || deadline.is_some_and(|d| Instant::now() >= d)
            || plan
                .cases
                .is_some_and(|n| shared.begun.load(Ordering::Relaxed) >= n);
        if over {
            shared.stop.store(true, Ordering::Release);
        }
        for (w, worker) in workers.iter_mut().enumerate() {
            match *worker {
                None if !over => {
                    generation += 1;
                    let seed = plan.seed ^ generation.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    *worker = Some(spawn(plan, forms, &picker, shared, w, seed)?);
                }
                None => {}
                Some(pid) => {
                    let mut status = 0;
                    // SAFETY: waits for a child of ours.
                    let r = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
                    if r == pid {
                        *worker = None;
                        if status != 0 {
                            lost(plan, shared, w, status);
                        }
                    }
                }
            }
        }
        if over && workers.iter().all(Option::is_none) {
            break;
        }
        if terminal && shown.elapsed() > Duration::from_millis(500) {
            shown = Instant::now();
            let n = shared.cases.load(Ordering::Relaxed);
            let rate = n as f64 / started.elapsed().as_secs_f64();
            let failed = shared.failed.load(Ordering::Relaxed);
            eprint!("\r{n} cases, {rate:.0}/s, {failed} differ \x1b[K");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    Ok(())
}

/// A worker died: its case is a failure.
fn lost(plan: &Plan, shared: &Shared, w: usize, status: i32) {
    shared.failed.fetch_add(1, Ordering::Relaxed);
    let why = if libc::WIFSIGNALED(status) {
        format!("killed by signal {}", libc::WTERMSIG(status))
    } else {
        format!("exit code {}", libc::WEXITSTATUS(status))
    };
    match shared.left(w) {
        Some(case) => {
            let path = save(&plan.regress, &case, &format!("a worker was lost: {why}"));
            eprintln!(
                "a worker was lost ({why}) while it ran\n{}saved as {path}",
                report::listing(&case)
            );
        }
        None => eprintln!("a worker was lost ({why}) between cases"),
    }
    if shared.failed.load(Ordering::Relaxed) >= plan.failures {
        shared.stop.store(true, Ordering::Release);
    }
}

fn spawn(
    plan: &Plan,
    forms: &Forms,
    picker: &Picker,
    shared: &'static Shared,
    w: usize,
    seed: u64,
) -> Result<i32, Box<dyn Error>> {
    io::stderr().flush()?;
    // SAFETY: this process has one thread, so the child is whole.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error().into()),
        0 => {
            // SAFETY: the parent alone answers Ctrl-C; and a worker does not outlive it.
            unsafe {
                libc::signal(libc::SIGINT, libc::SIG_IGN);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            }
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                work(plan, forms, picker, shared, w, seed)
            }));
            let code = match done {
                Ok(Ok(())) => 0,
                Ok(Err(e)) => {
                    eprintln!("difftest: {e}");
                    shared.stop.store(true, Ordering::Release);
                    3
                }
                Err(_) => 101,
            };
            // SAFETY: ends the child without running what the parent registered.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

fn work(
    plan: &Plan,
    forms: &Forms,
    picker: &Picker,
    shared: &'static Shared,
    w: usize,
    seed: u64,
) -> Result<(), Box<dyn Error>> {
    let mut rig = Rig::new(plan.engines)?;
    confine()?;
    let mut generator = Generator::new(forms, seed);
    for n in 0..TERM {
        if shared.stop.load(Ordering::Acquire) {
            break;
        }
        let Some(case) = generator.case(picker) else {
            continue;
        };
        let begun = shared.begun.fetch_add(1, Ordering::Relaxed);
        if plan.cases.is_some_and(|most| begun >= most) {
            break;
        }
        let translate = plan.share != 0 && n % plan.share == 0;
        shared.begin(w, &case);
        let verdict = rig.run(&case, translate);
        shared.end(w);
        shared.cases.fetch_add(1, Ordering::Relaxed);
        match verdict {
            Verdict::Agree(ran) => count(shared, &case, ran, translate),
            Verdict::Endless => {
                shared.endless.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::Known(n) => {
                shared.known[n as usize].fetch_add(1, Ordering::Relaxed);
            }
            Verdict::Differ(f) => {
                shared.failed.fetch_add(1, Ordering::Relaxed);
                failed(plan, shared, &mut rig, w, &case, *f);
            }
        }
        if translate {
            let t = std::mem::take(&mut rig.translated);
            shared.translated_cases.fetch_add(1, Ordering::Relaxed);
            shared.translated_insns[0].fetch_add(t.insns, Ordering::Relaxed);
            shared.translated_insns[1].fetch_add(t.interpreted, Ordering::Relaxed);
            shared.sticky.fetch_add(t.sticky, Ordering::Relaxed);
            shared.refused.fetch_add(t.refused, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn count(shared: &Shared, case: &Case, ran: usize, translated: bool) {
    for i in Analysis::new(case).instructions.iter().take(ran) {
        shared.ran[i.code() as usize].fetch_add(1, Ordering::Relaxed);
        if translated {
            shared.translated[i.code() as usize].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What makes two failures the same: the engine, the last instruction that ran, the kind of fields.
fn signature(case: &Case, f: &Failure) -> u64 {
    let mut h = DefaultHasher::new();
    f.engine.hash(&mut h);
    let a = Analysis::new(case);
    let rip = f.outcomes[0].1.rip;
    let at = a.position(rip);
    for k in [at.wrapping_sub(1), at] {
        if a.instructions.len() <= 2 || k == at {
            a.instructions.get(k).map(|i| i.code() as u16).hash(&mut h);
        }
    }
    for d in &f.differences {
        let kind: String = d
            .field
            .chars()
            .take_while(|c| c.is_alphabetic() || *c == '[')
            .collect();
        if !crate::report::GPR.contains(&d.field.as_str()) {
            kind.hash(&mut h);
        }
    }
    h.finish()
}

fn failed(plan: &Plan, shared: &Shared, rig: &mut Rig, w: usize, case: &Case, f: Failure) {
    // Before shrinking, too: what fails all the time is not looked at each time.
    if shared.note(signature(case, &f)) > 2 {
        return;
    }
    let engine = f.engine;
    let fields = |f: &Failure| {
        f.differences
            .iter()
            .map(|d| d.field.split(' ').next().unwrap_or("").to_owned())
            .collect::<Vec<_>>()
    };
    let kind = fields(&f);
    let small = shrink::shrink(case, &mut |c| {
        shared.begin(w, c);
        let v = rig.run(c, engine.starts_with("jit"));
        shared.end(w);
        matches!(v, Verdict::Differ(d) if d.engine == engine && fields(&d).iter().any(|x| kind.contains(x)))
    });
    let verdict = rig.run(&small, true);
    let (case, f) = match verdict {
        Verdict::Differ(d) => (small, *d),
        _ => (*case, f),
    };
    if shared.note(!signature(&case, &f)) > 0 {
        return;
    }
    let path = save(
        &plan.regress,
        &case,
        &format!("{} against {}", f.engine, f.reference),
    );
    eprintln!("{}saved as {path}\n", report::failure(&case, &f));
    let different = shared.different.fetch_add(1, Ordering::Relaxed) + 1;
    if different >= plan.failures {
        shared.stop.store(true, Ordering::Release);
    }
}

/// Writes a case to a directory; returns where, or why not.
fn save(dir: &Path, case: &Case, why: &str) -> String {
    let mut h = DefaultHasher::new();
    let body = text::write(case);
    body.hash(&mut h);
    let name = crate::forms::decode(case.code(), case.at).map_or("invalid".to_owned(), |i| {
        format!("{:?}", i.code()).to_lowercase()
    });
    let path = dir.join(format!("{name}-{:08x}.txt", h.finish() as u32));
    let done = std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&path, format!("# {why}\n{body}")));
    match done {
        Ok(()) => path.display().to_string(),
        Err(e) => format!("nothing: {}: {e}", path.display()),
    }
}

/// Runs the cases of files in every engine, in a process of their own; returns how many differ.
///
/// # Errors
/// A file can't be read, or the host can't run an engine.
pub fn replay(files: &[PathBuf], engines: Engines, quiet: bool) -> Result<usize, Box<dyn Error>> {
    let mut cases = Vec::new();
    for f in files {
        let body = std::fs::read_to_string(f).map_err(|e| format!("{}: {e}", f.display()))?;
        let case = text::read(&body).map_err(|e| format!("{}: {e}", f.display()))?;
        cases.push((f, case));
    }
    let mut rig = Rig::new(engines)?;
    confine()?;
    let mut failed = 0;
    for (f, case) in cases {
        match rig.run(&case, true) {
            Verdict::Agree(_) => {
                if !quiet {
                    println!("{}: agrees", f.display());
                }
            }
            Verdict::Known(n) => {
                println!("{}: known difference: {}", f.display(), n.words());
            }
            Verdict::Endless => println!("{}: does not end", f.display()),
            Verdict::Differ(d) => {
                failed += 1;
                println!("{}: {}", f.display(), report::failure(&case, &d));
            }
        }
    }
    Ok(failed)
}

/// A seed from the clock.
#[must_use]
pub fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64);
    Rng::new(now).bits() & 0xffff_ffff
}
