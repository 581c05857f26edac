//! Runs on this machine, several at a time.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use crate::error::Error;
use crate::exec::{Bench, SCRATCH};
use crate::guard::Guard;
use crate::os;
use crate::plan::{Entry, Plan};
use crate::progress::Progress;
use crate::record::Record;
use crate::store::Store;

/// How a study went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Runs made now.
    pub made: usize,
    /// Results that were there already.
    pub kept: usize,
    /// A signal ended it.
    pub stopped: bool,
}

/// The runs of a plan that have no result that stands.
#[must_use]
pub fn pending<'a>(plan: &'a Plan, store: &Store, again: bool) -> Vec<&'a Entry> {
    let stands = |entry: &&Entry| {
        let record = store.records().get(&entry.key);
        !record.is_some_and(|r| {
            r.stands(entry.seconds, entry.instructions)
                && !(again && r.status != crate::record::Status::Ok)
        })
    };
    plan.unique().into_iter().filter(stands).collect()
}

/// Makes the runs that are pending, `jobs` at a time. `again`: also those that went ill.
pub fn run(
    plan: &Plan,
    store: &mut Store,
    dir: &Path,
    jobs: usize,
    again: bool,
) -> Result<Outcome, Error> {
    let pending = pending(plan, store, again);
    let mut outcome = Outcome {
        kept: plan.unique().len() - pending.len(),
        ..Outcome::default()
    };
    // Whatever a killed study left there.
    let _ = std::fs::remove_dir_all(dir.join(SCRATCH));
    if pending.is_empty() {
        return Ok(outcome);
    }
    let jobs = jobs.clamp(1, pending.len());
    let guard = Guard::start().ok();
    let bench = Bench::of(plan, dir, guard.as_ref());
    let mut progress = Progress::new(&pending, jobs);
    let next = AtomicUsize::new(0);
    let (tell, told) = channel::<(usize, Result<Option<Record>, Error>)>();
    let mut failure = None;
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (tell, next, bench, pending) = (tell.clone(), &next, &bench, &pending);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::SeqCst);
                    let Some(entry) = pending.get(at).filter(|_| !os::stopped()) else {
                        break;
                    };
                    if tell.send((at, bench.run(entry))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(tell);
        for (at, result) in told {
            let kept = match result {
                Ok(None) => continue,
                Ok(Some(record)) if failure.is_none() => store.add(record.clone()).map(|()| {
                    outcome.made += 1;
                    progress.ended(pending[at], &record);
                }),
                Ok(Some(_)) => continue,
                Err(e) => Err(e),
            };
            if let Err(e) = kept {
                failure.get_or_insert(e);
                os::request_stop();
            }
        }
    });
    progress.finish();
    let _ = std::fs::remove_dir(dir.join(SCRATCH));
    outcome.stopped = os::stopped();
    match failure {
        Some(e) => Err(e),
        None => Ok(outcome),
    }
}
