//! Where regions are compiled: at once, or by a thread of the engine's own.
#![allow(unsafe_code)] // signal masks

use super::Engine;
use crate::Error;
use crate::compile::{Compiled, Compiler};
use crate::region::Region;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Where regions are compiled.
pub(super) enum Worker {
    Foreground(Box<Compiler>),
    /// On a thread that starts with the first request; `None` if there is no compiler yet either.
    Idle(Option<Box<Compiler>>),
    Background {
        requests: Sender<(u64, Region)>,
        results: Receiver<Compiled>,
        ready: Arc<AtomicUsize>,
        thread: JoinHandle<()>,
    },
}

impl Engine {
    /// The engine ends, and its compile thread with it: after what it is at.
    pub fn close(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let worker = std::mem::replace(&mut self.worker, Worker::Idle(None));
        if let Worker::Background {
            requests, thread, ..
        } = worker
        {
            drop(requests);
            // A panic there has been printed.
            let _ = thread.join();
        }
    }

    /// Hands a region to the compile thread, which is started if need be. False if there is none.
    pub(super) fn send(&mut self, ticket: u64, region: Region) -> bool {
        if let Worker::Idle(compiler) = &mut self.worker {
            let compiler = match compiler.take() {
                Some(compiler) => Ok(*compiler),
                None => Compiler::again(&self.options, Arc::clone(&self.shared)),
            };
            match compiler.and_then(|c| background(c, &self.stop, &self.quiet)) {
                Ok(worker) => self.worker = worker,
                Err(e) => {
                    tracing::warn!(target: "sevlab::jit", error = %e, "no compile thread");
                    return false;
                }
            }
        }
        match &self.worker {
            Worker::Background { requests, .. } => requests.send((ticket, region)).is_ok(),
            _ => false,
        }
    }

    /// Takes in what the compile thread has finished.
    pub(super) fn receive(&mut self) {
        while let Worker::Background { results, ready, .. } = &self.worker
            && ready.load(Ordering::Acquire) != 0
            && let Ok(done) = results.try_recv()
        {
            ready.fetch_sub(1, Ordering::AcqRel);
            self.install(done);
        }
    }
}

/// Starts the compile thread.
fn background(
    mut compiler: Compiler,
    stop: &Arc<AtomicBool>,
    quiet: &Arc<Mutex<()>>,
) -> Result<Worker, Error> {
    let (requests, inbox) = channel::<(u64, Region)>();
    let (outbox, results) = channel();
    let ready = Arc::new(AtomicUsize::new(0));
    let (flag, stopped, quiet) = (Arc::clone(&ready), Arc::clone(stop), Arc::clone(quiet));
    let (begun, has_begun) = sync_channel(1);
    let work = move || {
        let _ = begun.send(());
        while let Ok((ticket, region)) = inbox.recv() {
            let _working = quiet.lock().unwrap_or_else(PoisonError::into_inner);
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            let done = compiler.compile(ticket, &region);
            if outbox.send(done).is_err() {
                break;
            }
            flag.fetch_add(1, Ordering::Release);
        }
    };
    let thread = without_signals(|| {
        std::thread::Builder::new()
            .name("sevlab-jit".into())
            .spawn(work)
            .map_err(|e| Error::Host(format!("compile thread: {e}")))
    })?;
    // A thread that is being started holds locks of the standard library, which a clone of the host process would find locked.
    let _ = has_begun.recv();
    Ok(Worker::Background {
        requests,
        results,
        ready,
        thread,
    })
}

/// Runs `f`, whose new threads take none of the process's signals.
fn without_signals<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: plain calls on live locals.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result
    }
}
